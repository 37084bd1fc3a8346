"""Norms per module: the right numbers at the right steps, and nothing else changed."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from callback_runs import EPOCHS, STEPS_PER_EPOCH, Interrupted, StopAfter, experiment, log_of, run
from run_states import assert_equal, final_state
from torch import nn
from two_workers import run_on_two_workers

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.weight_norms import WeightNorms, parts_of
from sensorlab.engine.duration import Every
from sensorlab.engine.fit import fit
from sensorlab.engine.optim import ClipConfig
from sensorlab.engine.workers import WorkerGroup
from sensorlab.experiment import TrainConfig
from toy import ToyConfig, ToyStream, ToyTask

NORMS = ("train/grad_norm/", "train/weight_norm/")


def steps_of(run_dir) -> list[int]:
    return sorted({step for step, _, _ in log_of(run_dir, *NORMS)})


class Weights(Callback):
    """The weights after each step, and the norm of all gradients before clipping."""

    priority = 0

    def __init__(self):
        self.modules, self.grad_norm = {}, {}

    def on_step_end(self, training, record):
        children = training.model.named_children()
        self.modules[record.step] = {
            name: torch.cat([p.detach().flatten() for p in module.parameters()])
            for name, module in children
            if list(module.parameters())
        }
        self.grad_norm[record.step] = float(record.grad_norm)


def test_norms_are_those_of_the_weights_and_gradients_of_the_step(tmp_path):
    weights = Weights()
    train = TrainConfig(duration="2 epochs", clip=None, accumulate=2)
    run(tmp_path, weights, WeightNorms(Every.parse("1 step")), train=train)
    reported = {(step, name): value for step, name, value in log_of(tmp_path, *NORMS)}
    assert steps_of(tmp_path) == list(range(1, 7))
    for step, modules in weights.modules.items():
        assert list(modules) == ["0", "1", "4"]
        for name, values in modules.items():
            assert reported[step, f"train/weight_norm/{name}"] == pytest.approx(float(values.norm()), rel=1e-6)
        squares = sum(reported[step, f"train/grad_norm/{name}"] ** 2 for name in modules)
        assert math.sqrt(squares) == pytest.approx(weights.grad_norm[step], rel=1e-6)
    assert len(reported) == 6 * 6


def test_gradients_are_those_that_the_optimiser_gets(tmp_path):
    weights = Weights()
    train = TrainConfig(duration="2 epochs", clip=ClipConfig(value=0.5))
    run(tmp_path, weights, WeightNorms(Every.parse("1 step")), train=train)
    assert min(weights.grad_norm.values()) > 0.5  # all are clipped
    for step in weights.grad_norm:
        squares = sum(value**2 for at, _, value in log_of(tmp_path, NORMS[0]) if at == step)
        assert math.sqrt(squares) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("4 steps", [4, 8, 12]),
        ("1 epoch", [5, 10, 15]),
        ("2 epochs", [10]),
        ("30 samples", [8, 15]),  # 4 a step
        (["2 epochs", "6 steps"], [6, 10, 12]),
    ],
)
def test_interval(tmp_path, every, expected):
    run(tmp_path, WeightNorms(Every.parse(every)))
    assert steps_of(tmp_path) == expected


def test_the_last_step_of_an_epoch_counts_with_the_batches_that_make_no_step(tmp_path):
    train = TrainConfig.model_validate_json(
        '{"duration": "3 epochs", "accumulate": {"passes": 2, "window": "multiple"}}'
    )
    result = run(tmp_path, WeightNorms(Every.parse("1 epoch")), train=train)
    assert len(steps_of(tmp_path)) == EPOCHS
    assert steps_of(tmp_path)[-1] == result.steps


@pytest.mark.parametrize("stop", [1, 4, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, EPOCHS * STEPS_PER_EPOCH])
def test_a_resumed_run_reports_the_same_numbers_once(tmp_path, stop):
    norms = lambda: WeightNorms(Every.parse(["2 epochs", "4 steps"]))  # noqa: E731
    run(tmp_path / "straight", norms())
    with pytest.raises(Interrupted):
        run(tmp_path / "resumed", norms(), StopAfter(stop))
    run(tmp_path / "resumed", norms())
    assert log_of(tmp_path / "resumed", *NORMS) == log_of(tmp_path / "straight", *NORMS)


def test_training_is_the_same_to_the_bit(tmp_path):
    run(tmp_path / "plain")
    run(tmp_path / "watched", WeightNorms(Every.parse("1 step")))
    plain, watched = final_state(tmp_path / "plain")[0], final_state(tmp_path / "watched")[0]
    for part in ("model", "optimizer", "cursor"):
        assert_equal(watched[part], plain[part], part)


def test_a_skipped_update_reports_nothing(tmp_path):
    train = TrainConfig(duration="1 epoch", nonfinite="skip", nonfinite_budget=1)
    run(tmp_path, WeightNorms(Every.parse("1 step")), train=train, task=ToyConfig(poison_step=5))
    assert len(steps_of(tmp_path)) == STEPS_PER_EPOCH - 1
    assert all(math.isfinite(value) for _, _, value in log_of(tmp_path, *NORMS))


def test_the_hook_is_gone_after_the_run(tmp_path):
    class Keeper(Callback):
        def on_fit_start(self, training):
            self.training = training

    for callbacks in ([], [StopAfter(2)]):
        keeper = Keeper()
        try:
            run(tmp_path / str(len(callbacks)), keeper, WeightNorms(Every.parse("1 step")), *callbacks)
        except Interrupted:
            assert callbacks
        assert not keeper.training.optimizer._optimizer_step_pre_hooks


def test_a_part_without_gradients_has_no_gradient_norm(tmp_path):
    class FrozenFirst(ToyTask):
        def build_model(self):
            model = super().build_model()
            model[0].requires_grad_(False)
            return model

    run(tmp_path, WeightNorms(Every.parse("5 steps")), task_class=FrozenFirst)
    names = {name for _, name, _ in log_of(tmp_path, *NORMS)}
    assert "train/weight_norm/0" in names
    assert "train/grad_norm/0" not in names
    assert "train/grad_norm/4" in names


def test_parts_go_below_a_single_module_and_their_number_is_bounded():
    inner = nn.Sequential(*(nn.Linear(2, 2) for _ in range(40)))
    model = nn.Sequential()
    model.add_module("net", inner)
    parts = parts_of(model, max_parts=8)
    assert list(parts) == [*(f"net.{i}" for i in range(7)), "other"]
    listed = [id(parameter) for parameters in parts.values() for parameter in parameters]
    assert listed == [id(parameter) for parameter in model.parameters()]
    assert list(parts_of(inner)) == [*(str(i) for i in range(31)), "other"]
    assert list(parts_of(nn.Linear(2, 2))) == ["weight", "bias"]
    assert list(parts_of(nn.Linear(2, 2, bias=False))) == ["weight"]
    assert parts_of(nn.ReLU()) == {}


def _norms_on(rank: int, directory: str) -> list[tuple[str, float]]:
    from pathlib import Path

    class Collector(Callback):
        def __init__(self):
            self.seen = []

        def on_metrics(self, training, metrics, step):
            self.seen += [(name, value) for name, value in metrics.items() if name.startswith(NORMS)]

    config = experiment(task=ToyConfig(dropout=0.0, norm=False))
    task = ToyTask(config.task)
    collector = Collector()
    stream = ToyStream(20, 4, task, rank=rank, n=2)
    callbacks = [WeightNorms(Every.parse("4 steps")), collector]
    fit(config, task, stream, None, run_dir=Path(directory), workers=WorkerGroup(rank, 2), callbacks=callbacks)
    return collector.seen


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux")
def test_two_workers_report_equal_norms(tmp_path):
    first, second = run_on_two_workers(_norms_on, tmp_path, str(tmp_path / "run"))
    assert len(first) == 3 * 4  # steps 4, 8, 12; two modules, two norms
    assert first == second
