"""A driver killed while Tune copies its state: files that are torn, and files of two moments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cluster_restore import start, statuses, trials, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def drop_last_trial(file: Path) -> None:
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, "trial_data": state["trial_data"][:-1]}))


@pytest.mark.parametrize(
    ("damaged", "damage"),
    [("experiment_state-*", tear), ("searcher-state-*", tear), ("experiment_state-*", drop_last_trial)],
)
def test_a_driver_killed_while_its_state_was_copied(tmp_path: Path, damaged: str, damage: Callable[[Path], None]):
    options = {"sweep": {"scheduler": "none", "num_trials": 3}, "program": {"epoch_s": 0.5}}
    process = start(tmp_path, "new", **options)

    def second_is_at_epoch_two() -> bool:
        seen = trials(tmp_path)
        return len(seen) == 2 and seen[1]["epoch"] == 2

    wait_until(second_is_at_epoch_two, process, tmp_path / "new.log")
    process.kill()
    process.wait(timeout=60)
    before = trials(tmp_path)
    (file,) = (tmp_path / "sweeps" / "s" / "tune").glob(damaged)
    damage(file)

    resumed = start(tmp_path, "resume", **options)
    assert resumed.wait(timeout=200) == 0, (tmp_path / "resume.log").read_text()[-3000:]
    after = trials(tmp_path)
    assert [trial["state"] for trial in after] == ["done"] * 3
    assert [trial["trial_id"] for trial in after[:2]] == [trial["trial_id"] for trial in before]
    assert len({trial["values"]["optim.lr"] for trial in after}) == 3
    attempts = [(Path(trial["run_dir"]) / "attempts.txt").read_text().split() for trial in after]
    assert attempts[0] == attempts[2] == ["0"]
    assert attempts[1] in (["0", "2"], ["0", "3"])
    assert "RUNNING" not in statuses(tmp_path)
