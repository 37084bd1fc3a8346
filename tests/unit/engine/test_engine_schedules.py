"""Shapes, warm-up, accumulation and presets: exact values, the trainer's use of them, and what is refused."""

from __future__ import annotations

import json
import math
import time
from itertools import pairwise

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from sensorlab.config import as_dict, digest
from sensorlab.engine.accumulate import AccumulateConfig, Accumulation
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.fit import fit
from sensorlab.engine.optim import ClipConfig, GroupRule, OptimConfig
from sensorlab.engine.presets import PRESETS
from sensorlab.engine.schedules import ConstantSchedule, CosineSchedule, OneCycleSchedule, ScheduleConfig, SchedulePoint
from sensorlab.engine.warmup import WarmupConfig, rates
from sensorlab.errors import UserError
from sensorlab.experiment import CheckpointConfig, EvalConfig, ExperimentConfig, TrainConfig, experiment_from
from toy import ToyStream, ToyTask, toy_experiment

SCHEDULE = TypeAdapter(ScheduleConfig)


def schedule(**tree):
    return SCHEDULE.validate_json(json.dumps(tree))


def point(step: int, *, per_epoch: int = 10, epochs: int = 10) -> SchedulePoint:
    """Step ``step`` of a training with one pass per step."""
    return SchedulePoint(step, step, step // per_epoch, per_epoch * epochs, epochs, per_epoch, per_epoch)


@pytest.mark.parametrize(
    ("tree", "values"),
    [
        ({"name": "constant", "multiple": 0.5}, {0: 0.5, 99: 0.5}),
        ({"name": "step", "size": 30, "gamma": 0.5}, {0: 1, 29: 1, 30: 0.5, 59: 0.5, 60: 0.25, 99: 0.125}),
        ({"name": "step", "by": "epoch", "size": 3, "gamma": 0.5}, {29: 1, 30: 0.5, 59: 0.5, 60: 0.25}),
        ({"name": "multi_step", "milestones": [20, 50]}, {0: 1, 19: 1, 20: 0.1, 49: 0.1, 50: 0.01, 99: 0.01}),
        ({"name": "multi_step", "by": "epoch", "milestones": [2, 5], "gamma": 0.5}, {19: 1, 20: 0.5, 50: 0.25}),
        ({"name": "exponential", "gamma": 0.9}, {0: 1, 1: 0.9, 10: 0.9**10}),
        ({"name": "exponential", "start_factor": 1.0, "end_factor": 0.01}, {0: 1, 50: 0.1, 25: 0.01**0.25}),
        ({"name": "polynomial", "power": 2.0, "end_factor": 0.2}, {0: 1, 50: 0.2 + 0.8 * 0.25, 90: 0.2 + 0.8 * 0.01}),
        ({"name": "polynomial", "extra": -1}, {0: 1, 33: 1 - 33 / 99, 99: 0}),
        ({"name": "inverse", "gamma": 0.5, "power": 2.0}, {0: 1, 2: 0.25, 6: 1 / 16}),
        ({"name": "cosine"}, {0: 1, 50: 0.5, 75: 0.5 - 0.25 * math.sqrt(2), 99: 0.5 + 0.5 * math.cos(0.99 * math.pi)}),
        ({"name": "cosine", "by": "epoch", "end_factor": 0.2}, {0: 1, 9: 1, 50: 0.6, 59: 0.6}),
        ({"name": "linear", "end_factor": 0.1}, {0: 1, 50: 0.55, 99: 1 - 0.9 * 0.99}),
        ({"name": "linear", "by": "epoch", "lag": 1}, {0: 1, 9: 1, 10: 1, 19: 1, 20: 0.9, 99: 0.2}),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if "name" in value else "",
)
def test_shapes(tree, values):
    shape = schedule(**tree)
    assert {step: shape.at(point(step)) for step in values} == pytest.approx(values, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
def test_one_cycle_equals_torch(anneal):
    shape = OneCycleSchedule(anneal=anneal, rise_fraction=0.3, extra_steps=0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    strategy = {"linear": "linear", "cosine": "cos"}[anneal]
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2.0, total_steps=50, pct_start=0.3, anneal_strategy=strategy, cycle_momentum=False
    )
    for step in range(49):
        assert 2.0 * shape.factor(step, 50) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        oracle.step()


@pytest.mark.parametrize("total", [1, 2, 4, 5, 20])
def test_one_cycle_is_finite_for_the_shortest_trainings(total):
    shape = OneCycleSchedule(rise_fraction=0.5, extra_steps=0)
    factors = [shape.factor(step, total) for step in range(total + 1)]
    assert all(0.0 < factor <= 1.0 for factor in factors)


@pytest.mark.parametrize("unit", ["steps", "epochs"])
def test_pieces_follow_each_other(unit):
    size = {"steps": 10, "epochs": 1}[unit]
    shape = schedule(
        name="piecewise",
        unit=unit,
        pieces=[
            {"length": 2 * size, "shape": {"name": "linear", "start_factor": 0.0, "end_factor": 1.0}},
            {"length": size, "shape": {"name": "constant"}},
            {"shape": {"name": "cosine"}},
        ],
    )
    expected = [step / 20 for step in range(20)] + [1.0] * 10
    expected += [0.5 * (1 + math.cos(math.pi * step / 70)) for step in range(70)]
    assert [shape.at(point(step)) for step in range(100)] == pytest.approx(expected)


def test_pieces_by_epoch_count_epochs_from_their_begin():
    shape = schedule(
        name="piecewise",
        pieces=[
            {"length": 4, "shape": {"name": "constant"}},
            {"length": 4, "shape": {"name": "linear", "by": "epoch"}},
        ],
    )
    assert [shape.at(point(10 * epoch + 9)) for epoch in range(10)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]


@pytest.mark.parametrize(
    ("warmup", "values"),
    [
        (WarmupConfig(length=10), {0: 0, 5: 0.5, 9: 0.9, 10: 1, 20: 0.5}),
        (WarmupConfig(length=10, start_factor=0.2), {0: 0.2, 5: 0.6, 10: 1, 20: 0.5}),
        (WarmupConfig(length=40, start_factor=0.2), {0: 0.2, 20: 0.6 * 0.5, 30: 0.8 * 0.25, 40: 0.125}),
        (WarmupConfig(length=2, unit="epochs", start_factor=0.5), {0: 0.5, 10: 0.75, 19: 0.975, 20: 0.5}),
        (WarmupConfig(length=1, unit="epochs", at_least=15), {0: 0, 3: 0.2, 15: 1, 16: 1, 20: 0.5}),
        (WarmupConfig(kind="constant", length=10, start_factor=0.2), {0: 0.2, 9: 0.2, 10: 1}),
        (WarmupConfig(kind="exponential", length=10, start_factor=0.01), {0: 0.01, 5: 0.1, 10: 1}),
    ],
)
def test_warm_up_over_a_rate_that_halves_beneath(warmup, values):
    halving = schedule(name="multi_step", milestones=[20, 30, 40], gamma=0.5)
    actual = {step: rates(halving, warmup, point(step), 0.9) for step in values}
    assert {step: rate.factor for step, rate in actual.items()} == pytest.approx(values)
    assert all(rate.momentum is None and not rate.group_factors for rate in actual.values())


def test_groups_with_their_own_start_and_the_momentum_ramp():
    warmup = WarmupConfig(length=10, group_start={"bias": 10.0}, momentum_start=0.8)
    half, end, after = (rates(ConstantSchedule(), warmup, point(step), 0.9) for step in (5, 10, 11))
    assert (half.factor, half.group_factors, half.momentum) == (0.5, {"bias": 5.5}, pytest.approx(0.85))
    assert (end.factor, end.group_factors, end.momentum) == (1.0, {"bias": 1.0}, pytest.approx(0.9))
    assert after == (1.0, {}, 0.9)


def windows(accumulation: Accumulation, epochs: int) -> list[list[int]]:
    """Passes of each step, by epoch."""
    result: list[list[int]] = []
    for epoch in range(epochs):
        result.append([])
        while (done := sum(result[-1])) < accumulation.batches_per_epoch:
            passes = accumulation.passes_from(epoch, done)
            if passes == 0:
                break
            result[-1].append(passes)
        assert len(result[-1]) == accumulation.steps_of_epoch(epoch)
    assert accumulation.steps_of(epochs) == sum(map(len, result))
    return result


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ("epoch", [[4, 4, 3], [4, 4, 3], [4, 4, 3]]),
        ("run", [[4, 4], [1, 4, 4], [2, 4, 4]]),
        ("multiple", [[1, 4, 4], [2, 4, 4], [3, 4, 4], [4, 4]]),
    ],
)
def test_windows_of_four_passes_in_epochs_of_eleven_batches(window, expected):
    accumulation = Accumulation(AccumulateConfig(passes=4, window=window), global_batch=2, batches_per_epoch=11)
    assert windows(accumulation, len(expected)) == expected


@pytest.mark.parametrize("window", ["epoch", "run", "multiple"])
def test_a_ramp_goes_from_one_pass_to_all(window):
    config = AccumulateConfig(nominal_batch=64, ramp=True, window=window)
    warmup = WarmupConfig(length=2, unit="epochs")
    accumulation = Accumulation(config, global_batch=16, batches_per_epoch=20, warmup=warmup)
    held = [accumulation.passes_at(batch) for batch in range(50)]
    assert held == [max(1, round(1 + 3 * min(batch, 40) / 40)) for batch in range(50)]
    steps = windows(accumulation, 4)
    assert steps[0][0] == 1
    assert steps[3][1:-1] == [4] * len(steps[3][1:-1])
    assert all(later >= earlier for earlier, later in pairwise(steps[0][:-1])) or window == "multiple"
    total = accumulation.steps_of(3)
    assert [accumulation.epochs_for(total + extra) for extra in (-1, 0, 1)] == [3, 3, 4]


def test_passes_from_a_nominal_batch():
    config = AccumulateConfig(nominal_batch=64)
    assert [config.passes_of(batch) for batch in (1, 6, 24, 64, 128)] == [64, 11, 3, 1, 1]


# --- in the training loop ---------------------------------------------------------------------------------------------


class Recorder(Callback):
    def __init__(self, stop: int = -1) -> None:
        self.stop = stop
        self.steps: list[tuple] = []

    def on_step_end(self, training, record):
        groups = {group["name"]: group for group in training.optimizer.param_groups}
        bias = groups["bias"]
        self.steps.append((record.step, record.num_samples, record.lr, bias["lr"], bias["momentum"]))
        if record.step == self.stop:
            raise InterruptedError


def ramped(**changes) -> ExperimentConfig:
    sections = {
        "optim": OptimConfig(
            name="sgd", lr=0.02, momentum=0.9, nesterov=True, groups=(GroupRule(name="bias", match=("@bias",)),)
        ),
        "schedule": CosineSchedule(by="epoch", lag=1, end_factor=0.1),
        "warmup": WarmupConfig(length=1.5, unit="epochs", group_start={"bias": 5.0}, momentum_start=0.5),
        "train": TrainConfig(duration="4 epochs", accumulate=AccumulateConfig(passes=3, ramp=True, window="run")),
        "eval": EvalConfig(metric="val/mse", mode="min"),
        "checkpoint": CheckpointConfig(every=["1 epoch", "1 step"]),
    }
    return toy_experiment(**(sections | changes))


def train(config: ExperimentConfig, run_dir, recorder: Recorder):
    task = ToyTask(config.task)
    stream = ToyStream(34, 4, task, seed=config.seed)  # 8 batches
    return fit(config, task, stream, ToyStream(8, 4, task, training=False), run_dir=run_dir, callbacks=[recorder])


def weights(result) -> bytes:
    return (result.last_checkpoint / "model.safetensors").read_bytes()


@pytest.mark.parametrize("stop", [2, 5, 6, 7, 9, 13])
def test_a_resumed_run_takes_the_same_steps(tmp_path, stop):
    straight, first, rest = Recorder(), Recorder(stop), Recorder()
    expected = train(ramped(), tmp_path / "straight", straight)
    assert [samples // 4 for _, samples, *_ in straight.steps] == [1, 1, 1, 2, 2, 1, 3, 3, 2, 3, 3, 3, 3]
    with pytest.raises(InterruptedError):
        train(ramped(), tmp_path / "resumed", first)
    result = train(ramped(), tmp_path / "resumed", rest)
    assert rest.steps == straight.steps[stop - 1 :]
    assert (result.steps, result.epochs) == (expected.steps, expected.epochs) == (len(straight.steps), 4)
    assert weights(result) == weights(expected)


def test_rates_of_a_step_are_those_of_its_last_pass(tmp_path):
    recorder = Recorder()
    train(ramped(), tmp_path, recorder)
    _, samples, lr, bias_lr, momentum = recorder.steps[3]  # batches 3 and 4; the warm-up ends at batch 12
    assert samples == 8
    assert lr == pytest.approx(0.02 * 4 / 12)
    assert bias_lr == pytest.approx(0.02 * (5.0 + (1.0 - 5.0) * 4 / 12))
    assert momentum == pytest.approx(0.5 + 0.4 * 4 / 12)
    cosine = ramped().schedule.factor
    last = recorder.steps[-1]  # epoch 3 runs at the rate of epoch 2
    assert last[2:] == (pytest.approx(0.02 * cosine(2, 4)), pytest.approx(0.02 * cosine(2, 4)), 0.9)


def test_an_epoch_must_hold_a_step(tmp_path):
    config = ramped(train=TrainConfig(duration="1 epoch", accumulate=AccumulateConfig(passes=9, window="run")))
    with pytest.raises(UserError, match="9 passes and an epoch has 8 batches"):
        train(config, tmp_path, Recorder())


class Weights(Callback):
    """Weights after each step, the initial ones first."""

    def on_fit_start(self, training):
        self.optimizer, self.seen = training.optimizer, [self.flat(training)]

    def on_step_end(self, training, record):
        self.seen.append(self.flat(training))

    def flat(self, training):
        return torch.cat([parameter.detach().flatten().clone() for parameter in training.model.parameters()])


def plain(tmp_path, **train) -> list[torch.Tensor]:
    """Weights of three SGD steps at rate 1 without momentum."""
    config = toy_experiment(
        optim=OptimConfig(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0),
        schedule=ConstantSchedule(),
        train=TrainConfig(duration="3 steps", **train),
    )
    callback, task = Weights(), ToyTask(config.task)
    fit(config, task, ToyStream(34, 4, task), None, run_dir=tmp_path, callbacks=[callback])
    return callback.seen


def test_the_loop_clips_by_what_is_configured(tmp_path):
    small = {"value": 1e-3}
    for number, (clip, p) in enumerate(
        [({"kind": "value"}, math.inf), ({"p": "inf"}, math.inf), ({}, 2), ({"p": 1.0}, 1)]
    ):
        seen = plain(tmp_path / str(number), clip=ClipConfig(**small, **clip))
        for before, after in pairwise(seen):
            assert float((after - before).norm(p)) == pytest.approx(1e-3, rel=1e-3)
    free = plain(tmp_path / "free", clip=None)
    assert float((free[1] - free[0]).norm()) > 0.1


def test_the_loop_adds_up_or_averages_the_passes(tmp_path):
    mean, total = (
        plain(tmp_path / reduction, clip=None, accumulate=AccumulateConfig(passes=2, reduction=reduction))
        for reduction in ("mean", "sum")
    )
    torch.testing.assert_close(total[1] - total[0], 2 * (mean[1] - mean[0]), rtol=1e-4, atol=1e-6)


def test_the_loop_scales_decay_with_the_samples_of_a_step(tmp_path):
    config = toy_experiment(
        optim=OptimConfig(weight_decay=0.01, weight_decay_batch=64),
        train=TrainConfig(duration="1 step", accumulate=AccumulateConfig(passes=8)),
    )
    callback, task = Weights(), ToyTask(config.task)
    fit(config, task, ToyStream(34, 4, task), None, run_dir=tmp_path, callbacks=[callback])
    assert callback.optimizer.param_groups[0]["weight_decay"] == 0.01 * 4 * 8 / 64


def test_rates_cost_little():
    """The schedule's share of a step: 10 microseconds on a quiet machine, with room here for a busy one."""
    tree = PRESETS["yolov5_v7"]
    shape, warmup = schedule(**tree["schedule"]), WarmupConfig.model_validate_json(json.dumps(tree["warmup"]))
    best = math.inf
    for _ in range(20):
        started = time.perf_counter()
        for step in range(100):
            rates(shape, warmup, point(step), 0.937)
        best = min(best, (time.perf_counter() - started) / 100)
    assert best < 30e-6


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"name": "exponential"}, "exactly one of gamma and end_factor"),
        ({"name": "cosine", "lag": 1}, "set by: epoch"),
        ({"name": "piecewise", "pieces": [{"shape": {"name": "constant"}}] * 2}, "only the last piece"),
        (
            {"name": "piecewise", "unit": "steps", "pieces": [{"shape": {"name": "linear", "by": "epoch"}}]},
            "unit: epochs",
        ),
    ],
)
def test_contradicting_shapes_are_refused(tree, message):
    with pytest.raises(ValidationError, match=message):
        schedule(**tree)


def test_contradicting_warm_ups_are_refused():
    with pytest.raises(ValidationError, match="starts above 0"):
        WarmupConfig(kind="exponential", length=3)
    with pytest.raises(ValidationError, match="must not be negative"):
        WarmupConfig(length=3, group_start={"bias": -1.0})
    with pytest.raises(ValidationError, match="not both"):
        AccumulateConfig(passes=2, nominal_batch=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": None}, "needs a warmup with unit: epochs"),
        ({"warmup": WarmupConfig(length=3)}, "needs a warmup with unit: epochs"),
        ({"optim": OptimConfig()}, "needs optim.name=sgd"),
        ({"optim": OptimConfig(name="sgd")}, r"no groups \['bias'\]"),
        (
            {"schedule": schedule(name="piecewise", pieces=[{"shape": {"name": "constant"}}])},
            "give the pieces in unit: steps",
        ),
        (
            {
                "schedule": schedule(name="piecewise", pieces=[{"shape": {"name": "constant"}}]),
                "warmup": None,
                "train": TrainConfig(duration="1 epoch", accumulate=AccumulateConfig(passes=2, window="multiple")),
            },
            "give the pieces in unit: steps",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        ramped(**changes)


def toy_tree(**changes):
    return {"name": "toy", "task": {"name": "bev_segmentation"}, "data": {"path": "nowhere"}} | changes


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_same_as_its_values_written_out(name):
    own = {} if "duration" in PRESETS[name]["train"] else {"train": {"duration": "3 epochs"}}
    config = experiment_from(toy_tree(preset=name, **own))
    assert config.optim.lr == PRESETS[name]["optim"]["lr"]
    assert config.schedule.name == PRESETS[name]["schedule"]["name"]
    assert digest(experiment_from(as_dict(config))) == digest(config)


def test_own_keys_win_over_the_preset():
    config = experiment_from(
        toy_tree(preset="yolov5_v7", optim={"lr": 0.1}, train={"clip": None}, warmup={"length": 1})
    )
    assert (config.optim.lr, config.optim.momentum, config.train.clip) == (0.1, 0.937, None)
    assert (config.warmup.length, config.warmup.at_least) == (1.0, 100)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="'yolo5_v7' does not exist; did you mean 'yolov5_v7'"):
        experiment_from(toy_tree(preset="yolo5_v7"))


def test_a_number_of_passes_may_be_written_plainly():
    config = experiment_from(toy_tree(train={"duration": "1 epoch", "accumulate": 3, "clip": {"value": 1, "p": "inf"}}))
    assert config.train.accumulate == AccumulateConfig(passes=3)
    assert config.train.clip.p == "inf"
    with pytest.raises(UserError, match=r"train\.accumulate\.passes"):
        experiment_from(toy_tree(train={"duration": "1 epoch", "accumulate": 0}))
