"""Tables of evaluations as files, of real trainings of the toy task."""

from __future__ import annotations

import json

from callback_runs import EPOCHS, STEPS_PER_EPOCH, run

from sensorlab.engine.callbacks.table_files import TableFiles
from sensorlab.engine.compare import read_series
from toy import ToyTask


class Tables(ToyTask):
    def tables(self, metrics):
        error = metrics["mse"].compute()["mse"]
        return {"a/b": {"part": ["all", "none"], "mse": [error, float("nan")]}, "torn": {"x": [1], "y": [1, 2]}}


def test_every_evaluation_has_its_file_and_a_torn_table_costs_no_run(tmp_path, caplog):
    run(tmp_path, TableFiles(), task_class=Tables)
    errors = {step: value for (step, name), value in read_series(tmp_path).items() if name == "val/mse"}
    assert len(errors) >= EPOCHS
    assert EPOCHS * STEPS_PER_EPOCH in errors
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "tables").iterdir()}
    assert found == {
        f"step-{step:08d}-a~b.json": {
            "columns": ["step", "part", "mse"],
            "data": [[step, "all", error], [step, "none", None]],
        }
        for step, error in errors.items()
    }
    assert "table torn is not written: a table needs columns of one length" in caplog.text


def test_without_tables_there_is_no_folder(tmp_path):
    run(tmp_path, TableFiles())
    assert not (tmp_path / "tables").exists()
