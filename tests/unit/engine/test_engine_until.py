"""A training in slices (``train.until``), against one that goes straight to its end: everything is on, bit for bit."""

from __future__ import annotations

import pytest
from callback_runs import Interrupted, StopAfter
from exact_runs import Witness, experiment, global_batches, train
from run_states import assert_equal, final_state

from sensorlab.engine.callbacks.early_stop import EarlyStopConfig
from sensorlab.engine.checkpoint import CheckpointStore
from sensorlab.engine.compare import read_series
from sensorlab.engine.duration import Every
from sensorlab.experiment import ExperimentConfig, TrainConfig
from toy_images import write_splits

# What decides on the steps to come. The rest knows of the evaluations and intervals that the ends of slices add.
TRAINED = ("model", "optimizer", "scaler", "ema", "cursor", "finite", "stop_reason", "class_scores", "order_scores")
EVERY = Every.parse(["5 steps", "3 epochs"])  # due at none of the ends of slices below, which are in epochs


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("dataset")
    write_splits(path)
    return path


def planned(dataset, until=None, **changes) -> ExperimentConfig:
    config = experiment(dataset, **({"early_stop": None, "until": until} | changes))
    return config.model_copy(update={"eval": config.eval.model_copy(update={"every": EVERY})})


def parts(run_dir, *more):
    state, _ = final_state(run_dir)
    return {name: state[name] for name in (*TRAINED, *more)}


@pytest.mark.parametrize(
    ("duration", "slices"),
    [
        ("5 epochs", ["1 epoch", "2 epochs", "4 epochs", None]),
        ("5 epochs", ["1 epoch", "5 epochs"]),
        ("13 steps", ["3 steps", "7 steps", "8 steps", None]),
        ("90 samples", ["1 sample", "30 samples", None]),
    ],
)
def test_slices_equal_the_whole_in_weights_order_and_rates(dataset, tmp_path, duration, slices):
    ends = [train(planned(dataset, until, duration=duration), tmp_path / "sliced", Witness()) for until in slices]
    assert [end.steps for end in ends] == sorted({end.steps for end in ends})
    whole = train(planned(dataset, duration=duration), tmp_path / "whole", Witness())
    assert ends[-1].steps == whole.steps
    assert_equal(parts(tmp_path / "sliced"), parts(tmp_path / "whole"))
    assert global_batches(tmp_path / "sliced") == global_batches(tmp_path / "whole")


def test_a_slice_ends_as_a_run_does(dataset, tmp_path):
    whole = train(planned(dataset), tmp_path / "whole")
    end = train(planned(dataset, "1 epoch"), tmp_path / "sliced")
    assert (end.steps, end.epochs) == (6, 1)
    series, reference = read_series(tmp_path / "sliced"), read_series(tmp_path / "whole")
    assert (6, "val/accuracy") in series  # of the last weights, though not due
    assert (6, "val/accuracy") not in reference
    latest = CheckpointStore(tmp_path / "sliced" / "checkpoints").latest()
    assert latest is not None
    assert (end.last_checkpoint, latest.step) == (latest.path, 6)
    # The rates are those of the whole schedule.
    assert series[6, "train/lr"] == reference[6, "train/lr"]
    again = train(planned(dataset, "1 epoch"), tmp_path / "sliced")  # nothing is left to do
    assert (again.steps, read_series(tmp_path / "sliced")) == (6, series)
    assert whole.steps > 6


def test_early_stopping_judges_only_the_evaluations_that_the_whole_run_has(dataset, tmp_path):
    """The sliced run evaluates after step 6, too, where the patience is used up: judged, it would be the end."""
    stop = EarlyStopConfig(patience="4 samples", min_delta=10.0)
    whole = train(planned(dataset, early_stop=stop), tmp_path / "whole")
    for until in ("1 epoch", None):
        sliced = train(planned(dataset, until, early_stop=stop), tmp_path / "sliced")
    assert (sliced.steps, whole.steps) == (10, 10)
    state = final_state(tmp_path / "whole")[0]
    assert state["stop_reason"]
    assert_equal(parts(tmp_path / "sliced"), parts(tmp_path / "whole"))
    assert_equal(final_state(tmp_path / "sliced")[0]["callbacks"]["EarlyStop"], state["callbacks"]["EarlyStop"])


def test_a_slice_that_is_killed_goes_on(dataset, tmp_path):
    train(planned(dataset, "1 epoch"), tmp_path / "sliced")
    with pytest.raises(Interrupted):
        train(planned(dataset, "3 epochs"), tmp_path / "sliced", StopAfter(9))
    for until in ("3 epochs", None):
        train(planned(dataset, until), tmp_path / "sliced")
    train(planned(dataset), tmp_path / "whole")
    assert_equal(parts(tmp_path / "sliced"), parts(tmp_path / "whole"))


def test_a_killed_run_that_is_to_end_where_it_was_is_evaluated_there(dataset, tmp_path):
    with pytest.raises(Interrupted):
        train(planned(dataset, duration="13 steps"), tmp_path, StopAfter(9))
    end = train(planned(dataset, "8 steps", duration="13 steps"), tmp_path)
    assert end.steps == 8
    assert (8, "val/accuracy") in read_series(tmp_path)
    assert end.best_checkpoint is not None


def test_an_extension_can_be_sliced(dataset, tmp_path):
    more = {"duration": "2 epochs", "extend": {"duration": "2 epochs"}}
    for until in ("1 epoch", "3 epochs", None):
        train(planned(dataset, until, **more), tmp_path / "sliced")
    train(planned(dataset, **more), tmp_path / "whole")
    assert_equal(parts(tmp_path / "sliced"), parts(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"duration": "3 epochs", "until": "20 steps"}, "until must be in epochs, as duration is"),
        ({"duration": "3 epochs", "until": "4 epochs"}, "until=4 epochs is behind the end of the training, 3 epochs"),
        (
            {"duration": "30 steps", "extend": {"duration": "5 steps"}, "until": "36 steps"},
            "until=36 steps is behind the end of the training, 35 steps",
        ),
    ],
)
def test_where_a_slice_may_not_end(keys, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate(keys)
