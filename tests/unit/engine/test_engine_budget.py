"""Where a training and its schedule end: against a walk through the batches, and in whole trainings."""

from __future__ import annotations

import itertools

import pytest
from exact_runs import Witness, experiment, global_batches
from exact_runs import train as run
from run_states import assert_equal, final_state

from sensorlab.engine.accumulate import AccumulateConfig, Accumulation
from sensorlab.engine.budget import Budget, ExtendConfig
from sensorlab.engine.duration import Duration, Every
from sensorlab.engine.schedules import LinearSchedule
from sensorlab.engine.warmup import WarmupConfig
from toy_images import write_splits

BATCH, BATCHES = 4, 7


def accumulation(**config) -> Accumulation:
    warmup = WarmupConfig(length=1.5, unit="epochs")
    return Accumulation(AccumulateConfig(**config), global_batch=BATCH, batches_per_epoch=BATCHES, warmup=warmup)


KINDS = {
    "none": {},
    "passes": {"passes": 3},
    "ramp": {"passes": 3, "ramp": True},
    "across epochs": {"passes": 3, "ramp": True, "window": "run"},
    "multiples": {"passes": 3, "window": "multiple"},
}


def steps(accumulation: Accumulation, epochs: int):
    """(epoch, samples read when it ends) of each optimiser step."""
    for epoch in range(epochs):
        batch = 0
        while batch < BATCHES and (passes := accumulation.passes_from(epoch, batch)):
            batch += passes
            yield epoch, (epoch * BATCHES + batch) * BATCH


@pytest.mark.parametrize("kind", KINDS)
def test_ends_against_a_walk_through_the_batches(kind):
    rule = accumulation(**KINDS[kind])
    walk = list(steps(rule, 12))
    for epochs in (1, 2, 3, 5):
        count = sum(epoch < epochs for epoch, _ in walk)
        assert Budget.of(Duration(epochs, "epochs"), None, rule) == Budget(count, epochs, count, epochs)
    for count in (1, 2, 5, 9, 20):
        epochs = walk[count - 1][0] + 1
        assert Budget.of(Duration(count, "steps"), None, rule) == Budget(count, epochs, count, epochs)


@pytest.mark.parametrize("kind", ["none", "passes", "ramp"])
@pytest.mark.parametrize("samples", [1, 4, 5, 12, 27, 28, 29, 56, 100])
def test_a_budget_of_samples_ends_with_the_step_that_reads_the_last_of_them(kind, samples):
    rule = accumulation(**KINDS[kind])
    count = 1 + next(i for i, (_, read) in enumerate(steps(rule, 12)) if read >= samples)
    assert Budget.of(Duration(samples, "samples"), None, rule).steps == count


@pytest.mark.parametrize(("unit", "planned", "more"), [("epochs", 2, 3), ("steps", 9, 4), ("samples", 50, 30)])
@pytest.mark.parametrize("rule", ["hold", "rescale"])
def test_an_extension_adds_length_and_its_rule_says_where_the_schedule_ends(unit, planned, more, rule):
    passes = accumulation(passes=2)
    extended = Budget.of(Duration(planned, unit), ExtendConfig(duration=Duration(more, unit), rule=rule), passes)
    first, whole = (Budget.of(Duration(count, unit), None, passes) for count in (planned, planned + more))
    assert (extended.steps, extended.epochs) == (whole.steps, whole.epochs)
    end = first if rule == "hold" else whole
    assert (extended.schedule_steps, extended.schedule_epochs) == (end.schedule_steps, end.schedule_epochs)


@pytest.mark.parametrize(("unit", "planned", "until"), [("epochs", 4, 3), ("steps", 9, 4), ("samples", 80, 30)])
@pytest.mark.parametrize("more", [None, 2])
@pytest.mark.parametrize("rule", ["hold", "rescale"])
def test_a_slice_ends_earlier_under_the_schedule_of_the_whole(unit, planned, until, more, rule):
    passes = accumulation(passes=2)
    extend = more and ExtendConfig(duration=Duration(more, unit), rule=rule)
    sliced = Budget.of(Duration(planned, unit), extend, passes, Duration(until, unit))
    whole, alone = Budget.of(Duration(planned, unit), extend, passes), Budget.of(Duration(until, unit), None, passes)
    assert (sliced.steps, sliced.epochs) == (alone.steps, alone.epochs)
    assert (sliced.schedule_steps, sliced.schedule_epochs) == (whole.schedule_steps, whole.schedule_epochs)
    assert sliced.steps < whole.steps


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Makes experiments of a length; their rate falls in a line, so that it tells how far the schedule is."""
    dataset = tmp_path_factory.mktemp("dataset")
    write_splits(dataset)

    def make(duration, more=None, rule="hold"):
        extend = more and ExtendConfig(duration=Duration.parse(more), rule=rule)
        train = {"duration": duration, "extend": extend, "early_stop": None, "log_every": "1 step", "accumulate": 2}
        return experiment(dataset, **train).model_copy(update={"schedule": LinearSchedule(), "warmup": None})

    return make


@pytest.mark.parametrize(
    ("duration", "more"), [("2 epochs", "1 epoch"), ("6 steps", "5 steps"), ("40 samples", "44 samples")]
)
def test_a_finished_run_that_is_extended_equals_one_that_was_planned_so(planned, tmp_path, duration, more):
    first = run(planned(duration), tmp_path / "extended", Witness())
    last = run(planned(duration, more), tmp_path / "extended", Witness())
    assert first.steps < last.steps
    run(planned(duration, more), tmp_path / "straight", Witness())
    extended, straight = (final_state(tmp_path / name)[0] for name in ("extended", "straight"))
    for part in ("model", "optimizer", "ema", "cursor", "order_scores", "finite"):
        assert_equal(extended[part], straight[part], part)
    assert global_batches(tmp_path / "extended") == global_batches(tmp_path / "straight")


def test_an_evaluation_that_was_not_due_leaves_no_trace_in_the_order(planned, tmp_path):
    """The short run is evaluated at its end, after one epoch; the schedule of evaluations has none there."""

    def rarely(*length):
        config = planned(*length)
        return config.model_copy(update={"eval": config.eval.model_copy(update={"every": Every.parse("3 epochs")})})

    run(rarely("1 epoch"), tmp_path / "extended", Witness())
    assert any("val/accuracy" in line for line in final_state(tmp_path / "extended")[1])
    for name in ("extended", "straight"):
        run(rarely("1 epoch", "3 epochs"), tmp_path / name, Witness())
    extended, straight = (final_state(tmp_path / name)[0] for name in ("extended", "straight"))
    assert extended["order_scores"]  # those of the third epoch's end
    for part in ("model", "optimizer", "ema", "cursor", "order_scores", "class_scores"):
        assert_equal(extended[part], straight[part], part)
    assert global_batches(tmp_path / "extended") == global_batches(tmp_path / "straight")


def rates(run_dir):
    return [line["train/lr"] for line in final_state(run_dir)[1] if "train/lr" in line]


def test_the_rates_of_an_extension(planned, tmp_path):
    for name, rule in (("hold", "hold"), ("rescale", "rescale")):
        run(planned("2 epochs"), tmp_path / name)
        run(planned("2 epochs", "1 epoch", rule), tmp_path / name)
    run(planned("3 epochs"), tmp_path / "whole")
    hold, rescale, whole = (rates(tmp_path / name) for name in ("hold", "rescale", "whole"))
    assert len(hold) == len(rescale) == len(whole) == 12
    assert all(a > b for a, b in itertools.pairwise(hold[:8]))
    assert hold[8:] == [hold[7]] * 4
    assert rescale[:8] == hold[:8]
    assert rescale[8:] == whole[8:]
    assert rescale[8] > rescale[7]  # the jump
