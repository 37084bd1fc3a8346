"""A run that begins with another one's state, under the same configuration: as if the other had gone on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from exact_runs import Witness, global_batches, train, witnessed
from fork_runs import STEPS, Look, checkpoint_of, comparable, forked, planned, with_values
from kill_child import KILLED, in_child, in_children
from run_states import assert_equal, final_state

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.checkpoint import CheckpointStore, read_info
from sensorlab.experiment import ExperimentConfig
from toy_images import write_splits

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="forks a server that has imported torch")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ExperimentConfig:
    dataset = tmp_path_factory.mktemp("dataset")
    write_splits(dataset)
    return planned(dataset)


@pytest.fixture(scope="module")
def donor(tmp_path_factory, config) -> Path:
    run_dir = tmp_path_factory.mktemp("donor")
    train(config, run_dir, Witness())
    return run_dir


@pytest.mark.parametrize("step", [1, 4, 6, 7, 10, 11])  # in the middle of epochs and intervals, at ends of epochs
def test_a_fork_equals_its_donor(config, donor, tmp_path, step):
    assert train(forked(config, donor, step), tmp_path, Witness()).steps == STEPS
    assert_equal(comparable(tmp_path, step), comparable(donor, step))
    batches, all_batches = global_batches(tmp_path), global_batches(donor)
    first = min(batches)
    assert batches == {key: rows for key, rows in all_batches.items() if key >= first}
    assert len(batches) < len(all_batches)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    own = {json.loads(line)["step"] for line in lines}
    # Nothing of the donor is in its log. The checkpoint after step 6 was written before the end of the epoch came, so
    # that its evaluation is the fork's own.
    assert min(own) == step if step in (6, 10) else min(own) > step


@LINUX
@pytest.mark.parametrize("killed", [1, 3])  # in that step of its own: without a checkpoint yet, and with some
def test_a_fork_that_is_killed_goes_on(config, donor, tmp_path, killed):
    copy, run_dir = tmp_path / "donor", tmp_path / "fork"
    shutil.copytree(donor, copy)
    other = forked(config, copy, 5)
    assert in_child(other, run_dir, "after a step, before its record", killed) == KILLED
    if killed > 1:  # the donor has done its work
        shutil.rmtree(copy)
        other = with_values(other, train={"fork": None})
    assert in_child(other, run_dir) == 0
    assert [value for what, value in witnessed(run_dir) if what == "started"] == [5, 5 + killed - 1]
    assert_equal(comparable(run_dir, 5), comparable(donor, 5))
    assert final_state(run_dir)[0]["provenance"]["fork"] == seal(donor, 5)


@LINUX
def test_two_workers_fork_as_one_does(config, tmp_path):
    both = with_values(config, train={"duration": "9 steps"})
    assert in_children(both, tmp_path / "donor") == [0, 0]
    assert in_children(forked(both, tmp_path / "donor", 5), tmp_path / "fork") == [0, 0]
    assert_equal(comparable(tmp_path / "fork", 5), comparable(tmp_path / "donor", 5))


def test_the_lineage_is_in_every_checkpoint(config, donor, tmp_path):
    train(forked(config, donor, 4, train={"until": "6 steps"}), tmp_path / "child")
    train(forked(config, tmp_path / "child", 6, train={"until": "8 steps"}), tmp_path / "grandchild")
    train(forked(config, tmp_path / "grandchild", 8), tmp_path / "last")
    for name, parent, step in (("child", donor, 4), ("grandchild", tmp_path / "child", 6)):
        for info in CheckpointStore(tmp_path / name / "checkpoints").all():
            assert json.loads((info.path / "state.json").read_text())["provenance"]["fork"] == seal(parent, step)
    state, reference = (comparable(run_dir, 8)[0] for run_dir in (tmp_path / "last", donor))
    for each in (state, reference):
        each.pop("evaluated"), each.pop("protocols"), each.pop("meters")  # the ends of slices leave their traces there
    assert_equal(state, reference)


def seal(run_dir: Path, step: int) -> str:
    info = read_info(checkpoint_of(run_dir, step))
    assert info.seal == json.loads((info.path / "MANIFEST.json").read_text())["sha256"]
    return info.seal


class Counter(Callback):
    """State that goes on, and state of a run."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, training, record):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state.get("steps", 0)


class RunCounter(Counter):
    goes_on_in_forks = False


def test_what_is_of_the_run_begins_anew(config, tmp_path):
    stopped = with_values(config, train={"early_stop": {"patience": "1 sample", "min_delta": 10.0}})
    train(stopped, tmp_path / "donor", Counter(), RunCounter())
    state = final_state(tmp_path / "donor")[0]
    end = state["cursor"]["step"]
    assert state["stop_reason"]
    assert end < STEPS
    look, all_steps, own_steps = Look(), Counter(), RunCounter()
    result = train(forked(stopped, tmp_path / "donor", end), tmp_path / "fork", look, all_steps, own_steps)
    assert (look.step, look.best, look.stop_reason, look.metrics) == (end, None, None, {})
    assert look.seconds["lost"] == look.seconds["step"] == look.seconds["evaluation"] == 0.0
    # Its patience is whole: the first evaluation is judged as the first.
    assert result.steps > end
    assert (own_steps.steps, all_steps.steps) == (result.steps - end, result.steps)
    assert result.best_checkpoint.parent == tmp_path / "fork" / "checkpoints"
    best = read_info(result.best_checkpoint)
    own = [info for info in CheckpointStore(tmp_path / "fork" / "checkpoints").all() if "val/accuracy" in info.metrics]
    assert best.metrics["val/accuracy"] == max(info.metrics["val/accuracy"] for info in own)


def test_a_fork_of_a_better_donor_has_a_best_of_its_own(config, donor, tmp_path):
    """The donor is made the best of all; the fork does worse and still keeps its best."""

    class Best(Callback):
        def on_metrics(self, training, metrics, step):
            training.best_objective = 2.0  # no accuracy reaches it

    train(config, tmp_path / "donor", Best())
    result = train(forked(config, tmp_path / "donor", 9), tmp_path / "fork")
    assert result.best_checkpoint is not None
    assert (
        final_state(tmp_path / "fork")[0]["best_objective"] == read_info(result.best_checkpoint).metrics["val/accuracy"]
    )
