"""What a repetition is refused for, and what it takes from the record."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tracked_runs import experiment

from sensorlab.engine.checkpoint import read_info
from sensorlab.engine.compare import read_series
from sensorlab.engine.fork import ForkConfig
from sensorlab.errors import UserError
from sensorlab.replay import checks
from sensorlab.replay.checks import differences, present_environment
from sensorlab.replay.record import RecordedRun
from sensorlab.replay.repeat import steps_to_repeat
from sensorlab.runs.client import open_client
from sensorlab.runs.environment import Environment
from sensorlab.runs.query import RunIndex, StoredRun
from sensorlab.runs.store import Store


@pytest.fixture
def recorded(stored: StoredRun) -> RecordedRun:
    return RecordedRun.of(stored)


@pytest.fixture(scope="module")
def present() -> Environment:
    return present_environment()


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for a prepared dataset: its digest is all that is asked for."""
    found = SimpleNamespace(digest="d" * 64)
    monkeypatch.setattr(checks.PreparedDataset, "open", lambda path: found)
    return found


def changed(present: Environment, file: str, old: str, new: str) -> Environment:
    assert old in present.files[file]
    return dataclasses.replace(present, files={**present.files, file: present.files[file].replace(old, new)})


def test_the_record_has_all_that_a_repetition_needs(recorded: RecordedRun, finished: tuple[str, Path]) -> None:
    assert recorded.experiment == experiment()
    assert recorded.run_dir == finished[1]
    assert recorded.output_root == finished[1].parent.parent
    assert recorded.series() == read_series(finished[1])


def test_numbers_come_from_the_store_where_the_file_is_gone(recorded: RecordedRun, finished: tuple[str, Path]) -> None:
    expected = read_series(finished[1])
    file = finished[1] / "metrics.jsonl"
    file.rename(file.with_suffix(".away"))
    try:
        assert recorded.series() == recorded.spelled(expected) == expected  # to the bit
        assert recorded.spelled({(3, "val/mAP@0.5"): 0.25}) == {(3, "val/mAP_0.5"): 0.25}  # as the store spells it
    finally:
        file.with_suffix(".away").rename(file)
    assert recorded.spelled({(3, "val/mAP@0.5"): 0.25}) == {(3, "val/mAP@0.5"): 0.25}


def test_nothing_speaks_against_the_same_machine(
    recorded: RecordedRun, present: Environment, dataset: SimpleNamespace
) -> None:
    assert differences(recorded, "data", present) == []


def test_each_reason_is_named(recorded: RecordedRun, present: Environment, dataset: SimpleNamespace) -> None:
    dataset.digest = "e" * 64
    assert differences(recorded, "/data/x", present) == [
        f"data: /data/x has digest {'e' * 16}, the run was trained on {'d' * 16}"
    ]
    dataset.digest = "d" * 64
    code = changed(present, "source.txt", "  engine/step.py", "  engine/steps.py")
    (reason,) = differences(recorded, "", code)
    assert reason.startswith(
        "code: 2 files differ from those of the run, revision c0de: engine/step.py, engine/steps.py (its code: `git "
    )
    aside = changed(present, "source.txt", "  runs/show.py", "  runs/shown.py")
    assert differences(recorded, "", aside) == []  # no number depends on it
    import torch

    torch_line = f"torch=={torch.__version__.partition('+')[0]}"
    other = changed(present, "packages.txt", torch_line, "torch==0.0.1")
    assert differences(recorded, "", other)[0].startswith("environment: torch ")
    processor = changed(present, "system.txt", "processor: ", "processor: Other ")
    assert differences(recorded, "", processor)[0].startswith("environment: processor ")
    python = dataclasses.replace(present, tags={**present.tags, "sensorlab.python": "3.0.1"})
    assert differences(recorded, "", python)[0].endswith(", here 3.0.1")


def test_without_file_digests_the_revision_and_the_diff_decide(
    recorded: RecordedRun, present: Environment, dataset: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {name: recorded.run.text(f"environment/{name}") for name in ("packages.txt", "system.txt")}
    monkeypatch.setattr(StoredRun, "text", lambda self, name: texts.get(name.removeprefix("environment/")))
    clean = {name: text for name, text in present.files.items() if name != "git.diff"}
    here = dataclasses.replace(present, files=clean)
    assert differences(recorded, "", here) == []
    there = dataclasses.replace(here, tags={**here.tags, "mlflow.source.git.commit": "feed"})
    assert differences(recorded, "", there)[0].endswith("this is feed")
    dirty = dataclasses.replace(here, files={**clean, "git.diff": "+ a line"})
    assert "other uncommitted changes" in differences(recorded, "", dirty)[0]


def test_the_donor_of_a_fork_must_be_the_same(
    recorded: RecordedRun, present: Environment, dataset: SimpleNamespace, tmp_path: Path
) -> None:
    assert recorded.run_dir is not None
    donor, other = tmp_path / "step-00000008", recorded.run_dir / "checkpoints" / "step-00000004"
    shutil.copytree(recorded.run_dir / "checkpoints" / donor.name, donor)
    train = experiment().train.model_copy(update={"fork": ForkConfig(checkpoint=str(donor))})
    forked = dataclasses.replace(recorded, experiment=experiment(train=train))
    tags = {**recorded.run.tags, "sensorlab.fork": read_info(donor).seal}
    forked.run.run.data._tags = tags
    assert differences(forked, "data", present) == []
    (reason,) = differences(recorded, "data", present)  # resumed without the key
    assert reason == "fork: the run began with the state of another run, and no longer says which"
    tags["sensorlab.fork"] = read_info(other).seal
    (reason,) = differences(forked, "data", present)
    assert (
        reason
        == f"fork: {donor} has seal {read_info(donor).seal[:16]}, the run began with {read_info(other).seal[:16]}"
    )
    shutil.rmtree(donor)
    (reason,) = differences(forked, "data", present)
    assert reason.startswith(f"fork: checkpoint {donor}: no readable MANIFEST.json")


def test_a_dataset_that_moved_can_be_named(recorded: RecordedRun, present: Environment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a prepared dataset.*--data PATH"):
        differences(recorded, str(tmp_path), present)


def test_what_is_no_training_is_refused(store: Store, stored: StoredRun) -> None:
    client = open_client(store.uri)
    for role, message in (("sweep", "is a sweep, not a training"), ("run", "recorded no config/experiment.yaml")):
        run_id = client.create_run(store.experiment_id, tags={"sensorlab.role": role}).info.run_id
        with pytest.raises(UserError, match=message):
            RecordedRun.of(RunIndex(store.uri).find(run_id))


def test_a_configuration_that_means_something_else_now_is_refused(
    stored: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = stored.text("config/experiment.yaml")
    monkeypatch.setattr(StoredRun, "text", lambda self, name: text.replace("seed: 0", "seed: 5"))
    with pytest.raises(UserError, match=r"means something else .* repeat it with the code .* c0de"):
        RecordedRun.of(stored)


def test_a_stopped_run_is_repeated_as_far_as_it_came(recorded: RecordedRun) -> None:
    series = {(step, "train/loss"): 1.0 for step in (10, 20, 30)}
    assert steps_to_repeat(None, series, recorded) is None
    assert steps_to_repeat(12, series, recorded) == 12
    assert steps_to_repeat(99, series, recorded) == 30
    with pytest.raises(UserError, match="first numbers of the run are those of step 10"):
        steps_to_repeat(9, series, recorded)
    recorded.run.run.info._status = "KILLED"
    assert steps_to_repeat(None, series, recorded) == 30
