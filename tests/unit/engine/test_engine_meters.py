"""Where the time of a run goes: every second in one account, parts of a step, means of an interval."""

import time

import pytest
import torch

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.fit import fit
from sensorlab.engine.meters import SPANS, IntervalMeter, StepRecord, WallClock, read_scalars
from sensorlab.engine.timers import PARTS, StepTimer
from sensorlab.engine.workers import WorkerGroup
from sensorlab.experiment import EvalConfig, TrainConfig
from toy import ToyConfig, ToyStream, ToyTask, toy_experiment

CPU = torch.device("cpu")


def test_a_block_takes_its_time_away_from_the_one_around_it():
    clock = WallClock()
    clock.enter("other")
    with clock.span("callback"):
        time.sleep(0.02)
        with clock.span("checkpoint"):
            time.sleep(0.05)
    assert 0.02 <= clock.totals["callback"] < 0.045
    assert 0.05 <= clock.totals["checkpoint"] < 0.09


def test_shares_add_up_to_one():
    clock = WallClock()
    for kind in SPANS:
        with clock.span(kind):
            time.sleep(0.002)
    metrics = clock.metrics()
    assert metrics.keys() == {"perf/goodput", *(f"perf/share_{kind}" for kind in SPANS if kind != "step")}
    assert sum(metrics.values()) == pytest.approx(1.0)


def test_a_restart_counts_what_was_lost_unless_the_run_was_over():
    first = WallClock()
    state = first.state_dict()
    time.sleep(0.05)
    again, over = WallClock(), WallClock()
    again.load_state_dict(state, is_over=False)
    over.load_state_dict(state, is_over=True)
    assert again.totals["lost"] >= 0.045
    assert over.totals["lost"] == 0.0


class Slow(Callback):
    """Spends time in every call that a callback may have."""

    def on_phase(self, training, phase, total):
        time.sleep(0.01)

    def on_step_end(self, training, record):
        time.sleep(0.002)

    def on_epoch_end(self, training, metrics):
        time.sleep(0.05)


def test_every_second_of_a_run_is_accounted_for(tmp_path):
    task = ToyTask(ToyConfig())
    config = toy_experiment(
        train=TrainConfig(duration="3 epochs", log_every="2 steps"), eval=EvalConfig(metric="val/mse", mode="min")
    )
    clock = {}

    class Watch(Callback):
        def on_fit_end(self, training):
            training.clock.enter("other")
            clock.update(training.clock.totals)

    start = time.perf_counter()
    train, val = ToyStream(24, 4, task), ToyStream(8, 4, task, training=False)
    fit(config, task, train, val, run_dir=tmp_path, callbacks=[Slow(), Watch()])
    wall = time.perf_counter() - start
    assert sum(clock.values()) == pytest.approx(wall, rel=0.1)
    assert 3 * 0.05 + 18 * 0.002 <= clock["callback"] < wall
    assert clock["step"] > 0
    assert clock["checkpoint"] > 0
    assert clock["evaluation"] > 0
    assert clock["restart"] > 0
    assert clock["lost"] == 0.0


def test_parts_of_a_step_are_means_over_the_interval():
    timer = StepTimer(CPU)
    for _ in range(2):
        timer.start()
        time.sleep(0.01)
        timer.mark("forward")
        timer.count_step()
    means = timer.collect()
    assert means.keys() == {f"perf/{part}_s" for part in PARTS}
    assert 0.01 <= means["perf/forward_s"] < 0.02
    assert timer.collect()["perf/forward_s"] == 0.0


def record(loss: float, updated: bool = True) -> StepRecord:
    return StepRecord(
        1, 0, 4, {"loss": torch.tensor(loss)}, {}, torch.tensor(1.0), 0.1, data_wait_s=0.1, step_s=0.3, updated=updated
    )


def test_skipped_steps_count_for_times_and_not_for_losses():
    meter = IntervalMeter()
    meter.update(record(1.0))
    meter.update(record(float("nan"), updated=False))
    meter.update(record(3.0))
    metrics = meter.reduce(WorkerGroup(), StepTimer(CPU))
    assert metrics["train/loss"] == 2.0
    assert metrics["perf/data_wait_s"] == pytest.approx(0.1)
    assert metrics["perf/samples_per_s"] == pytest.approx(12 / 1.2)
    assert meter.reduce(WorkerGroup(), StepTimer(CPU)) == {}


def test_an_interval_of_skipped_steps_has_no_loss():
    meter = IntervalMeter()
    meter.update(record(float("nan"), updated=False))
    metrics = meter.reduce(WorkerGroup(), StepTimer(CPU))
    assert not any(name.startswith("train/loss") for name in metrics)
    assert metrics["train/lr"] == 0.1


def test_an_interval_that_is_cut_by_a_checkpoint_has_the_same_bits():
    values = [0.1 * k for k in range(7)]
    straight, first, second = IntervalMeter(), IntervalMeter(), IntervalMeter()
    for value in values:
        straight.update(record(value))
    for value in values[:3]:
        first.update(record(value))
    second.load_state_dict([first.state_dict()], WorkerGroup())
    for value in values[3:]:
        second.update(record(value))
    timer = StepTimer(CPU)
    assert straight.reduce(WorkerGroup(), timer) == second.reduce(WorkerGroup(), timer)


def test_read_scalars():
    assert read_scalars([torch.tensor(1.5), torch.tensor(2.0, dtype=torch.float64)]) == [1.5, 2.0]
    assert read_scalars([]) == []
