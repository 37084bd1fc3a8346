"""A sweep outlives its driver, its workers, and a second Ray cluster on the same machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sensorlab.runs.client import open_client

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).resolve().parent
TOYS = HERE.parent / "unit" / "cluster"


def start(root: Path, mode: str, **options) -> subprocess.Popen:
    command = [sys.executable, str(HERE / "toy_sweep_main.py"), str(root), "s", mode, json.dumps(options)]
    environment = {**os.environ, "PYTHONPATH": str(TOYS)}
    with (root / f"{mode}.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def trials(root: Path) -> list[dict]:
    try:
        return json.loads((root / "sweeps" / "s" / "ledger.json").read_text())["trials"]
    except (OSError, ValueError):
        return []


def wait_until(condition, process: subprocess.Popen, log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def statuses(root: Path) -> list[str]:
    client = open_client(f"sqlite:///{root}/mlruns.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return sorted(run.info.status for run in client.search_runs(experiments))


@pytest.mark.parametrize(
    ("sent", "codes", "sweep"),
    [
        (signal.SIGINT, {130}, {}),
        (signal.SIGTERM, {143, 1}, {}),
        (signal.SIGKILL, {-9}, {}),
        (signal.SIGKILL, {-9}, {"algorithm": "optuna", "num_trials": 2, "seeds": 2}),
        (signal.SIGKILL, {-9}, {"algorithm": "evolution", "evolution": {"initial": 1}}),
        (signal.SIGKILL, {-9}, {"scheduler": "hyperband"}),
    ],
)
def test_an_ended_driver_goes_on_where_it_was(tmp_path, sent, codes, sweep):
    options = {"sweep": sweep, "program": {"epoch_s": 1.0}}
    process = start(tmp_path, "new", **options)

    def second_is_at_epoch_one() -> bool:
        seen = trials(tmp_path)
        return len(seen) >= 2 and seen[1]["state"] == "running" and seen[1]["epoch"] == 1

    wait_until(second_is_at_epoch_one, process, tmp_path / "new.log")
    process.send_signal(sent)
    assert process.wait(timeout=60) in codes
    before = trials(tmp_path)
    log = (tmp_path / "new.log").read_text()
    if sent != signal.SIGKILL:
        assert f"Continue with: python experiments/tune_bev.py --resume {tmp_path / 'sweeps' / 's'}" in log
        assert "RUNNING" not in statuses(tmp_path)

    resumed = start(tmp_path, "resume", **options)
    assert resumed.wait(timeout=300) == 0, (tmp_path / "resume.log").read_text()[-3000:]
    after = trials(tmp_path)
    assert len(after) == 4
    assert {trial["state"] for trial in after} <= {"done", "stopped"}
    assert after[0]["trial_id"] == before[0]["trial_id"]
    attempts = [(Path(trial["run_dir"]) / "attempts.txt").read_text().split() for trial in after]
    assert attempts[0] == ["0"], "a finished trial was repeated"
    if after[1]["trial_id"] != before[1]["trial_id"]:
        assert sent == signal.SIGKILL  # started within the last half second that Tune had not saved; proposed again
    elif after[1]["state"] == "done":
        assert attempts[1] in (["0", "1"], ["0", "2"]), "the interrupted trial did not go on from its checkpoint"
    else:  # its last report, which the driver had not seen any more, was enough to stop it
        assert attempts[1] in (["0"], ["0", "1"])
    if "seeds" in sweep:
        assert [trial["values"]["seed"] for trial in after] == [0, 1, 0, 1]
        assert len({trial["values"]["optim.lr"] for trial in after}) == 2
    assert "RUNNING" not in statuses(tmp_path)
    started = len(list((tmp_path / "sweeps" / "s" / "trials").iterdir()))
    assert len(statuses(tmp_path)) == 1 + started, "the resumed sweep made new runs for old trials"


def test_a_sweep_with_levels_killed_at_each_of_them(tmp_path):
    """Two drivers are killed, one at each level; the third promotes what an uninterrupted one would have promoted."""
    fidelity = {"key": "data.train_fraction", "values": [0.5, 1.0]}
    sweep = {"fidelity": fidelity, "asha": {"reduction": 2}, "num_trials": 4, "max_concurrent": 2}
    options = {"sweep": sweep, "program": {"epoch_s": 0.5}}

    def has_begun(number: int, level: int) -> bool:
        found = [trial for trial in trials(tmp_path) if trial["fidelity"] == level]
        return len(found) > number and found[number]["epoch"] >= 1

    def killed_when(mode: str, number: int, level: int) -> dict[str, str]:
        """Attempts of the trials that had ended."""
        process = start(tmp_path, mode, **options)
        wait_until(lambda: has_begun(number, level), process, tmp_path / f"{mode}.log")
        process.kill()
        process.wait(timeout=60)
        return {t["trial_id"]: attempts(t["trial_id"]) for t in trials(tmp_path) if t["state"] == "done"}

    def attempts(trial_id: str) -> str:
        return (tmp_path / "sweeps" / "s" / "trials" / trial_id / "attempts.txt").read_text()

    done = killed_when("new", 2, 0) | killed_when("resume", 1, 1)
    resumed = start(tmp_path, "resume", **options)
    assert resumed.wait(timeout=300) == 0, (tmp_path / "resume.log").read_text()[-3000:]

    after = trials(tmp_path)
    assert [trial["state"] for trial in after] == ["done"] * 6
    assert [trial["fidelity"] for trial in after] == [0] * 4 + [1] * 2
    assert {trial["values"]["data.train_fraction"] for trial in after[:4]} == {0.5}
    by_objective = sorted(after[:4], key=lambda trial: -trial["objective"])
    rates = [trial["values"]["optim.lr"] for trial in after]
    assert rates[4:] == [trial["values"]["optim.lr"] for trial in by_objective[:2]]
    assert len(set(rates)) == 4
    assert len(done) >= 4
    assert {trial_id: attempts(trial_id) for trial_id in done} == done, "a finished trial was repeated"
    assert done.keys() <= {trial["trial_id"] for trial in after}, "a finished trial was lost"
    assert "RUNNING" not in statuses(tmp_path)
    outcome = json.loads((tmp_path / "sweeps" / "s" / "outcome.json").read_text())
    assert outcome["best"]["trial"] == 4
    assert ", promoted" in (tmp_path / "resume.log").read_text()


def test_worker_groups_stopped_and_killed_beside_another_cluster(tmp_path):
    # The other cluster is what makes Ray's own cleaning-up fail when it is not told where it belongs.
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import ray, time; ray.init(num_cpus=1, address='local'); print('up', flush=True); time.sleep(900)",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "up"
        process = start(tmp_path, "new", workers=2, program={"epoch_s": 0.3, "kill_at_epoch": 3})
        assert process.wait(timeout=800) == 0, (tmp_path / "new.log").read_text()[-3000:]
    finally:
        other.terminate()
        other.wait(timeout=30)
    states = [trial["state"] for trial in trials(tmp_path)]
    assert sorted(set(states)) == ["done", "stopped"]
    for trial in trials(tmp_path):
        assert trial["verified"]
        attempts = (Path(trial["run_dir"]) / "attempts.txt").read_text().split()
        assert attempts == (["0", "3"] if trial["state"] == "done" else ["0"])
    assert "RUNNING" not in statuses(tmp_path)
