"""What a training writes for the driver: with the real engine, and with a clock that the test holds."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from sensorlab.cluster.files import PROGRESS
from sensorlab.cluster.progress import ProgressWriter
from sensorlab.cluster.progress import writer as writer_module
from sensorlab.cluster.progress.state import Progress
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.duration import Progress as Passed
from sensorlab.engine.fit import fit
from sensorlab.engine.meters import StepRecord
from sensorlab.engine.workers import WorkerGroup
from toy import ToyStream, ToyTask, toy_experiment


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class ByHand:
    """A training of ``total_steps`` steps in epochs of 10, driven by the test."""

    def __init__(self, tmp_path, *, rank=0, step=0, total_steps=30, evaluated=-1, saved=0) -> None:
        self.clock = Clock()
        self.writer = ProgressWriter(self.clock)
        self.training = SimpleNamespace(
            workers=WorkerGroup(rank, 1 + rank),
            run_dir=tmp_path,
            cursor=SimpleNamespace(epoch=step // 10, batch=step % 10, step=step),
            batches_per_epoch=10,
            total_steps=total_steps,
            total_epochs=-(-total_steps // 10),
            evaluated=Passed(-1, evaluated, -1),
            saved=Passed(0, saved, 0),
        )
        self.writer.on_fit_start(self.training)

    def phase(self, name, total=0, seconds=0.0):
        self.writer.on_phase(self.training, name, total)
        self.clock.now += seconds

    def step(self, seconds, losses=None):
        """One step of ``seconds``; a fifth of it waiting for data, a tenth in callbacks."""
        cursor = self.training.cursor
        self.clock.now += seconds
        cursor.batch, cursor.step = cursor.batch + 1, cursor.step + 1
        values = losses or {"box": torch.tensor(0.25), "loss": torch.tensor(0.75)}
        times = {"data_wait_s": 0.2 * seconds, "step_s": 0.7 * seconds}
        record = StepRecord(cursor.step, cursor.epoch, 4, values, {}, torch.tensor(1.0), 0.01, **times)
        self.writer.on_step_end(self.training, record)

    def end_epoch(self):
        self.training.cursor.epoch, self.training.cursor.batch = self.training.cursor.epoch + 1, 0

    def report(self, **losses):
        metrics = {f"train/{name}": value for name, value in losses.items()}
        self.writer.on_metrics(self.training, metrics, self.training.cursor.step)

    def read(self) -> Progress:
        progress = Progress.read(self.training.run_dir)
        assert progress is not None
        return progress


def test_time_left_counts_steps_evaluations_and_checkpoints(tmp_path):
    run = ByHand(tmp_path)
    run.phase("train", 10)
    run.step(50.0)  # compiles
    assert run.read().eta_s is None  # "?"
    for _ in range(4):
        run.step(2.0)
    seen = run.read()
    assert seen.eta_s == pytest.approx(25 * 2.0)
    assert seen.eta_is_bound  # evaluations will come on top
    for _ in range(5):
        run.step(2.0)
    run.end_epoch()
    run.phase("val", 8, seconds=3.0)
    run.writer.on_eval_batch(run.training, 2, 8)
    seen = run.read()
    assert (seen.phase.name, seen.phase.done, seen.phase.total) == ("val", 2, 8)
    assert seen.eta_s == pytest.approx(20 * 2.0 + 2 * 12.0 + 9.0)  # steps, two more evaluations, the rest of this one
    run.clock.now += 9.0
    run.phase("checkpoint", seconds=5.0)
    run.phase("train", 10)
    seen = run.read()
    assert seen.eta_s == pytest.approx(20 * 2.0 + 2 * 12.0 + 2 * 5.0)
    assert not seen.eta_is_bound


def test_time_left_of_a_resumed_run(tmp_path):
    run = ByHand(tmp_path, step=18, evaluated=10, saved=18)
    run.phase("train", 10)
    run.step(2.0)
    run.step(2.0)
    run.end_epoch()
    run.phase("val", 8, seconds=10.0)
    run.phase("train", 10)
    assert run.read().eta_s == pytest.approx(10 * 2.0 + 10.0)  # one evaluation every ten steps, not every two


def test_training_that_goes_on_after_an_evaluation_inside_of_an_epoch(tmp_path):
    run = ByHand(tmp_path)
    run.phase("train", 10)
    for _ in range(3):
        run.step(1.0)
    run.phase("val", 8, seconds=100.0)
    run.step(1.0)  # the engine does not say that the epoch goes on
    seen = run.read()
    assert (seen.phase.name, seen.phase.done, seen.phase.total, seen.phase.epoch) == ("train", 4, 10, 1)
    assert [(phase.name, phase.done) for phase in seen.finished] == [("train", 3), ("val", 0)]
    assert seen.finished[1].seconds == pytest.approx(100.0 + 0.1)  # but for the wait and the work of the step
    run.phase("val", 8)
    assert [phase.done for phase in run.read().finished] == [3, 0, 4]  # a phase of one step
    run.step(1.0)
    run.step(1.0)
    assert run.read().phase.samples_per_s == pytest.approx(4 / 0.9)
    assert run.read().phase.step_s == pytest.approx(0.7)


def test_losses_are_means_over_the_epoch_with_the_total_first(tmp_path):
    run = ByHand(tmp_path)
    run.phase("train", 10)
    run.step(2.0)
    assert run.read().phase.values == {"loss": 0.75, "box": 0.25}  # of the step, before there is a report
    run.step(2.0)
    run.report(box=1.0, loss=3.0, grad_norm=9.0)
    run.step(2.0)
    run.report(box=4.0, loss=6.0)
    run.step(2.0)
    seen = run.read().phase
    assert list(seen.values) == ["loss", "box"]
    assert seen.values == pytest.approx({"loss": (2 * 3.0 + 6.0) / 3, "box": (2 * 1.0 + 4.0) / 3})
    assert seen.lr == 0.01
    run.end_epoch()
    run.phase("train", 10)
    run.step(2.0)
    assert run.read().phase.values == {"loss": 0.75, "box": 0.25}


class Unreadable:
    def __float__(self) -> float:
        raise AssertionError("a loss was read on the step path")


def test_no_loss_is_read_on_the_step_path(tmp_path):
    run = ByHand(tmp_path, total_steps=100)
    run.phase("train", 100)
    for _ in range(9):
        run.step(0.1, {"loss": Unreadable()})  # 0.9 s in all: nothing is due
    with pytest.raises(AssertionError, match="was read"):
        run.step(0.2, {"loss": Unreadable()})  # the write of the second: the test sees readings


def test_a_step_costs_at_most_three_microseconds_when_nothing_is_due(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "WRITE_EVERY_S", 1e9)
    run = ByHand(tmp_path)
    run.writer._clock = time.monotonic
    run.phase("train", 10)
    record = StepRecord(1, 0, 4, {}, {}, torch.tensor(1.0), 0.01, 0.1, 0.1)
    costs = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(10_000):
            run.writer.on_step_end(run.training, record)
        costs.append((time.perf_counter() - started) / 10_000)
    assert min(costs) <= 3e-6


def test_other_workers_write_nothing(tmp_path):
    run = ByHand(tmp_path, rank=1)
    run.phase("train", 10)
    run.step(5.0)
    run.phase("val", 3, seconds=5.0)
    run.writer.on_eval_batch(run.training, 1, 3)
    run.writer.on_epoch_end(run.training, {})
    run.writer.on_fit_end(run.training)
    run.writer.on_error(run.training, ValueError())
    assert list(tmp_path.iterdir()) == []


class Spy(Callback):
    """Reads the file whenever the engine has told the writer something."""

    priority = 21

    def __init__(self) -> None:
        self.seen: list[Progress] = []

    def _look(self, training, *_):
        progress = Progress.read(training.run_dir)
        if progress is not None:
            self.seen.append(progress)

    on_fit_start = on_phase = on_step_end = on_eval_batch = on_epoch_end = on_fit_end = _look


def test_the_engine_fills_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "WRITE_EVERY_S", 0.0)
    config = toy_experiment(eval={"metric": "val/mse", "mode": "min"}, checkpoint={"every": "1 epoch"})
    task = ToyTask(config.task)
    streams = [ToyStream(16, 4, task), ToyStream(10, 4, task, training=False)]
    spy = Spy()
    fit(config, task, *streams, run_dir=tmp_path, callbacks=[ProgressWriter(), spy])

    counted = [(p.phase.name, p.phase.epoch, p.phase.done, p.phase.total) for p in spy.seen]
    for epoch in (1, 2, 3):
        assert [c for c in counted if c[:2] == ("train", epoch) and c[2]][:4] == [
            ("train", epoch, done, 4) for done in (1, 2, 3, 4)
        ]
        assert {c[2:] for c in counted if c[:2] == ("val", epoch)} == {(0, 3), (1, 3), (2, 3), (3, 3)}
    assert spy.seen[0].phase.name == "start"
    last = spy.seen[-1]
    assert (last.phase.name, last.step, last.total_steps, last.epoch, last.total_epochs) == ("done", 12, 12, 3.0, 3)
    assert last.eta_s == 0.0
    assert [(phase.name, phase.epoch) for phase in last.finished] == [
        (name, epoch) for epoch in (1, 2, 3) for name in ("train", "val")
    ]
    trained, evaluated = last.finished[-2:]
    assert (trained.done, trained.total) == (4, 4)
    assert list(trained.values) == ["loss", "squared", "small"]
    assert trained.values["loss"] == pytest.approx(trained.values["squared"] + trained.values["small"])
    assert list(evaluated.values)[:2] == ["val/mse", "val/loss"]
    assert last.memory_of == "process"
    assert last.memory_gib > 0.05
    assert (tmp_path / PROGRESS).stat().st_size < 8192
