"""Tables of the best run: which evaluation's, from where, and how they are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_sweeps import trial_entry, write_sweep, write_trial

from sensorlab.report.gather import gather
from sensorlab.report.page import render
from sensorlab.report.result_tables import MAX_ROWS, ResultTable, drawn, parsed, tables_of
from sensorlab.runs.client import open_client
from sensorlab.runs.recorder import RunRecorder
from sensorlab.runs.store import open_store
from sensorlab.runs.tables import table_content


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two trials; the second is the better one, and best at step 20."""
    directory = tmp_path / "sweeps" / "toy"
    entries = [trial_entry(directory, number, objective=0.1 * (number + 1)) for number in range(2)]
    for entry in entries:
        write_trial(entry, [0.05, entry["objective"], 0.02])
    return write_sweep(directory, entries)


def write_table(run_dir: Path, step: int, iou: float | None) -> None:
    (run_dir / "tables").mkdir(exist_ok=True)
    columns = {"part": ["near", "far <b>"], "iou": [iou, None], "tp": [12345, 0]}
    (run_dir / "tables" / f"step-{step:08d}-iou_by_part.json").write_bytes(table_content(columns, step))


def test_those_of_the_best_evaluation_of_the_best_trial(sweep):
    for number in range(2):
        for step in (10, 20, 30):
            write_table(sweep / "trials" / f"t_{number:05d}", step, 0.01 * step + number)
    report = gather(sweep, use_tracking=False)
    (result,) = report.tables
    assert (result.name, result.step, result.columns) == ("iou_by_part", 20, ("part", "iou", "tp"))
    assert result.rows == (("near", 1.2, 12345), ("far <b>", None, 0))
    page = render(report)
    section = page.partition('id="tables"')[2].partition("</section>")[0]
    assert "Of trial #1, which is nearest to the mean of the best configuration, at step 20." in section
    assert "far &lt;b&gt;" in section
    assert "12,345" in section


def test_without_tables_there_is_no_section(sweep):
    report = gather(sweep, use_tracking=False)
    assert report.tables == ()
    assert 'id="tables"' not in render(report)


def test_the_nearest_evaluation_and_torn_files(sweep):
    run_dir = sweep / "trials" / "t_00001"
    write_table(run_dir, 30, 0.3)
    (run_dir / "tables" / "step-00000030-torn.json").write_text('{"columns": ["step", "a"], "da')
    (run_dir / "tables" / "step-00000030-odd.json").write_text('{"columns": ["step", "a"], "data": [[1]]}')
    (run_dir / "tables" / "step-00000030-list.json").write_text("[1]")
    (trial,) = (trial for trial in gather(sweep, use_tracking=False).sweep.trials if trial.number == 1)
    assert [(found.name, found.step) for found in tables_of(trial)] == [("iou_by_part", 30)]


def test_those_that_only_the_store_has(sweep, tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'mlruns.db'}", "tables")
    run_id = open_client(store.uri).create_run(store.experiment_id).info.run_id
    recorder = RunRecorder(store.uri, run_id, tmp_path / "spool")
    recorder.log_table({"part": ["near"], "iou": [0.5]}, "best/iou_by_part", 20)
    recorder.log_table({"part": ["near"], "iou": [0.4]}, "iou_by_part", 30)
    assert recorder.close("FINISHED", 60)
    plan = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps({**plan, "tracking_uri": store.uri}))
    ledger = json.loads((sweep / "ledger.json").read_text())
    ledger["trials"][1]["run_id"] = run_id
    (sweep / "ledger.json").write_text(json.dumps(ledger))
    assert gather(sweep).tables == (ResultTable("iou_by_part", 20, ("part", "iou"), (("near", 0.5),)),)


def test_a_table_of_another_kind_has_no_step():
    assert parsed("a", json.dumps({"columns": ["x"], "data": [[1], [2]]}).encode()) == ResultTable(
        "a", None, ("x",), ((1,), (2,))
    )
    assert parsed("a", b'{"columns": ["step", "x"], "data": []}') == ResultTable("a", None, ("x",), ())


def test_a_long_table_is_cut():
    rows = tuple((n,) for n in range(3 * MAX_ROWS))
    assert drawn(ResultTable("a", 1, ("x",), rows)).count("<tr>") == 1 + MAX_ROWS
