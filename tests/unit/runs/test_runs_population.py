"""A population in the store: whom its runs descend from, and where one reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sensorlab.cluster.ledger import Ledger
from sensorlab.cluster.monitor import SweepDriver
from sensorlab.cluster.trial import TrialPlan
from sensorlab.config import as_dict
from sensorlab.experiment import experiment_from
from sensorlab.runs.attempts import Attempts
from sensorlab.runs.client import open_client
from sensorlab.runs.diff import run_diff
from sensorlab.runs.lineage import descent
from sensorlab.runs.overview import NOTE_TAG, describe
from sensorlab.runs.query import StoredRun
from sensorlab.runs.recorder import RunRecorder
from sensorlab.runs.show import run_details
from sensorlab.runs.store import Store, open_store
from sensorlab.runs.sweep_runs import SweepRuns
from sensorlab.runs.tags import FORKED_TAG, GENERATION_TAG, MEMBER_TAG

BASE = {"name": "x", "task": {"name": "bev_segmentation"}, "data": {"path": "d"}, "train": {"duration": "3 epochs"}}
# (donor's position, learning rate, objective) by position: two members, three generations
STORY = [(None, 0.1, 0.2), (None, 0.2, 0.1), (0, 0.1, 0.4), (0, 0.12, 0.3), (2, 0.1, 0.5), (2, 0.08, 0.6)]


@pytest.fixture
def own(store_file: Path) -> Store:
    """The runs here would be among those that other tests list."""
    return open_store(f"sqlite:///{store_file}", "population")


@pytest.fixture
def population(own: Store, tmp_path: Path) -> tuple[SweepRuns, Ledger]:
    """The sweep's runs and its ledger, made by the driver as Tune's events make it do."""
    runs = SweepRuns(own, tmp_path.name, tmp_path.name, "val/iou", "max", tmp_path / "spool")
    ledger = Ledger(tmp_path / "ledger.json", "max")
    plan = TrialPlan(as_dict(experiment_from(BASE)), str(tmp_path), "d", True, 0, "max", None, own.uri)
    driver = SweepDriver(plan, ledger, runs, "val/iou", budget=None, members=2)
    for position, (donor, lr, value) in enumerate(STORY):
        ledger.note_proposed(f"t{position}", position)
        values = {"optim.lr": lr, "train.until": f"{position // 2 + 1} epochs"}
        if donor is not None:
            checkpoint = plan.run_dir(f"t{donor}") / "checkpoints" / "step-00000010"
            values |= {"train.fork.checkpoint": str(checkpoint), "train.init": None}
        driver.order(f"t{position}", values)
        record = RunRecorder(own.uri, ledger.trials[f"t{position}"].run_id or "", tmp_path / "spool", interval_s=0.02)
        record.log({"val/iou": value}, 10)
        record.set_tags({"sensorlab.objective": "val/iou"})
        assert record.close("FINISHED", 20)
    return runs, ledger


def run_of(own: Store, ledger: Ledger, position: int) -> StoredRun:
    client = open_client(own.uri)
    return StoredRun(client, own, client.get_run(ledger.trials[f"t{position}"].run_id or ""))


def test_runs_name_their_place_and_their_donor(own: Store, population: tuple[SweepRuns, Ledger]) -> None:
    _, ledger = population
    for position, (donor, lr, _) in enumerate(STORY):
        run = run_of(own, ledger, position)
        assert run.name == f"trial {position:03d} g{position // 2} m{position % 2}"
        assert run.tags.get(FORKED_TAG) == (None if donor is None else ledger.trials[f"t{donor}"].run_id)
        assert (run.tags[GENERATION_TAG], run.tags[MEMBER_TAG]) == (str(position // 2), str(position % 2))
        assert run.params == {"optim.lr": str(lr)}
        assert ledger.trials[f"t{position}"].forked_from == (None if donor is None else f"t{donor}")
    line = descent(run.client, run.run)
    assert [each.info.run_id for each in line] == [ledger.trials[f"t{p}"].run_id for p in (5, 2, 0)]


def test_show_prints_the_lineage(own: Store, population: tuple[SweepRuns, Ledger]) -> None:
    _, ledger = population
    text = run_details(run_of(own, ledger, 5))
    rows = [line.split() for line in text.partition("lineage\n")[2].splitlines()[:5]]
    assert rows[0] == ["generation", "member", "run", "name", "from", "val/iou", "optim.lr"]
    assert [[*row[:2], *row[-3:]] for row in rows[2:]] == [
        ["0", "0", "-", "0.2", "0.1"],
        ["1", "0", "own", "0.4", "0.1"],
        ["2", "1", "exploited", "0.6", "0.08"],
    ]
    assert "place       generation 2 of member 1" in text
    assert "lineage\n" not in run_details(run_of(own, ledger, 1))


def test_a_diff_names_the_donors(own: Store, population: tuple[SweepRuns, Ledger]) -> None:
    _, ledger = population
    text = run_diff(run_of(own, ledger, 2), run_of(own, ledger, 5))
    donors = [ledger.trials[name].run_id for name in ("t0", "t2")]
    row = next(line for line in text.splitlines() if line.startswith("went on from run"))
    assert row.split()[4:] == donors


def test_a_run_that_was_deleted_ends_the_line(own: Store, population: tuple[SweepRuns, Ledger]) -> None:
    _, ledger = population
    run = run_of(own, ledger, 5)
    run.client.set_tag(ledger.trials["t2"].run_id, FORKED_TAG, "0" * 32)
    assert len(descent(run.client, run_of(own, ledger, 5).run)) == 2
    run.client.set_tag(ledger.trials["t2"].run_id, FORKED_TAG, run.run_id)  # nobody descends from itself
    assert len(descent(run.client, run_of(own, ledger, 5).run)) == 2


def test_pages_link_the_line_of_descent(own: Store, population: tuple[SweepRuns, Ledger], tmp_path: Path) -> None:
    runs, ledger = population
    run = run_of(own, ledger, 5)
    attempts = Attempts(tmp_path / "run")
    attempts.begin(20, "host-a")
    describe(run.client, run.run_id, attempts.as_dict())
    note = run.client.get_run(run.run_id).data.tags[NOTE_TAG]
    ids = [ledger.trials[f"t{position}"].run_id or "" for position in (0, 2, 5)]
    assert f"→ went on from [{ids[1][:12]}](#/experiments/{own.experiment_id}/runs/{ids[1]}?" in note
    lineage = next(line for line in note.splitlines() if line.startswith("| **lineage**"))
    assert [lineage.index(run_id) for run_id in ids] == sorted(lineage.index(run_id) for run_id in ids)
    assert "generation 2 of member 1, exploited, val/iou 0.6, optim.lr 0.08" in lineage
    assert "start from another run's checkpoint" in note

    runs.publish_view()
    page = run.client.get_run(runs.parent_run_id).data.tags[NOTE_TAG]
    best = next(line for line in page.splitlines() if line.startswith("| **lineage of the best**"))
    assert all(run_id in best for run_id in ids)


def test_of_many_trials_a_page_lists_the_best(own: Store, tmp_path: Path) -> None:
    sweep = SweepRuns(own, "id-many", "many", "val/iou", "max", tmp_path / "spool")
    listed = [(f"trial {index}", f"{index:032x}", "") for index in range(14)]
    describe(open_client(own.uri), sweep.parent_run_id, {"trials": listed})
    note = open_client(own.uri).get_run(sweep.parent_run_id).data.tags[NOTE_TAG]
    assert "[trial 0]" in note
    assert "[trial 9]" in note
    assert "[trial 10]" not in note
    assert "(4 more)" in note
