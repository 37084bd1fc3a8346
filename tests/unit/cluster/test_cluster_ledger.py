"""The ledger on disk, and the table and summary made from it."""

import json

import pytest

from sensorlab.cluster.files import read_json
from sensorlab.cluster.ledger import Ledger
from sensorlab.cluster.table import failures, ranked_table, short_keys, summary
from sensorlab.runs.table import duration, number


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json", "max")
    for index, (state, curve) in enumerate(
        [("done", [0.2, 0.6, 0.5]), ("stopped", [0.1]), ("failed", [0.9]), ("done", [0.7, 0.8, 0.75])]
    ):
        name = f"t{index}"
        ledger.start(
            name, {"optim.lr": 0.001 * (index + 1), "task.lidar.enabled": index % 2 == 0}, "d", tmp_path / name
        )
        for epoch, value in enumerate(curve, start=1):
            metrics = {"val/iou": value, "val/loss": 1 - value, "val/iou_sample_mean": value / 2, "train/loss": 3.0}
            ledger.report(
                name, {"epoch": epoch, "objective": value, "metrics": metrics, "best_checkpoint": f"c{index}"}
            )
        ledger.end(name, state, "ValueError: boom" if state == "failed" else "")
    return ledger


def test_ranking_is_by_the_best_epoch_and_leaves_failures_out(ledger):
    assert [r.number for r in ledger.ranked()] == [3, 0, 1, 2]
    best = ledger.best()
    assert best is not None
    assert (best.number, best.objective, best.best_epoch) == (3, 0.8, 2)
    assert best.metrics["val/loss"] == pytest.approx(0.2)


def test_min_mode_ranks_the_other_way(tmp_path):
    ledger = Ledger(tmp_path / "l.json", "min")
    for name, value in (("a", 2.0), ("b", 1.0)):
        ledger.start(name, {}, "", tmp_path)
        ledger.report(name, {"epoch": 1, "objective": value})
    assert [r.trial_id for r in ledger.ranked()] == ["b", "a"]


def test_everything_survives_the_driver(ledger):
    copy = Ledger(ledger.path, "max")
    assert copy.trials == ledger.trials


def test_a_running_trial_of_a_dead_driver_is_interrupted_and_goes_on(ledger, tmp_path):
    ledger.start("t9", {}, "d", tmp_path)
    copy = Ledger(ledger.path, "max")
    assert copy.trials["t9"].state == "interrupted"
    number_before = copy.trials["t9"].number
    copy.start("t9", {}, "d", tmp_path)
    assert copy.trials["t9"].state == "running"
    assert copy.trials["t9"].number == number_before


def test_trials_that_a_restored_search_forgot_are_dropped(ledger, tmp_path):
    ledger.start("t9", {}, "d", tmp_path)
    assert [record.trial_id for record in ledger.forget_unknown({"t0", "t1"})] == ["t9"]
    assert Ledger(ledger.path, "max").trials.keys() == {"t0", "t1", "t2", "t3"}  # what has ended stays
    assert ledger.start("t10", {}, "d", tmp_path).number == 4


def test_table(ledger):
    lines = ranked_table(ledger, "val/iou").splitlines()
    header = "rank trial val/iou val/iou_sample_mean val/loss lr lidar.enabled epochs time status"
    assert lines[0].split() == header.split()
    assert lines[2].split()[:7] == ["1", "#3", "0.8", "0.4", "0.2", "0.004", "false"]
    assert lines[-1].split()[:2] == ["-", "#2"]
    assert lines[-1].split()[-1] == "failed"
    assert len({len(line) for line in lines if line.endswith("done")}) == 1


def test_summary_is_one_json_line_with_the_best(ledger):
    outcome = summary(ledger, sweep="s")
    assert json.loads(json.dumps(outcome)) == outcome
    assert (outcome["done"], outcome["stopped"], outcome["failed"]) == (2, 1, 1)
    assert outcome["best"]["checkpoint"] == "c3"
    assert failures(ledger) == ["#2 failed: ValueError: boom"]


def test_number_and_duration():
    assert [number(v) for v in (0.123456, True, None, float("nan"), [96, 176], "res18", 3)] == (
        ["0.1235", "true", "-", "nan", "[96, 176]", "res18", "3"]
    )
    assert [duration(s) for s in (7.4, 61, 7260)] == ["7s", "1m01s", "2h01m"]
    assert short_keys(["optim.lr", "schedule.lr", "task.a.b", "seed"]) == {
        "optim.lr": "optim.lr",
        "schedule.lr": "schedule.lr",
        "task.a.b": "a.b",
        "seed": "seed",
    }


def test_half_written_json_is_nothing(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    assert read_json(tmp_path / "x.json") is None
    assert read_json(tmp_path / "missing.json") is None


def test_a_trial_with_another_protocol_is_not_ranked(ledger, tmp_path):
    ledger.start("odd", {}, "d", tmp_path)
    ledger.report("odd", {"epoch": 1, "objective": 0.99, "protocol": "another grid"})
    ledger.end("odd", "done")
    assert ledger.best().trial_id == "t3"
    assert ledger.ranked()[-1].trial_id == "odd"
    assert "another protocol" in "\n".join(failures(ledger))
    assert [line.split()[0] for line in ranked_table(ledger, "val/iou").splitlines()[-2:]] == ["-", "-"]
