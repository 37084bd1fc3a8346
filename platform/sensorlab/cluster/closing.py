"""How a sweep leaves its records: no trial open in the ledger, nothing undelivered, no run open in the store."""

from __future__ import annotations

from pathlib import Path

from sensorlab.cluster.files import RESULT
from sensorlab.cluster.ledger import Ledger, State
from sensorlab.cluster.monitor import SweepDriver
from sensorlab.runs.client import open_client
from sensorlab.runs.recorder import RunStatus
from sensorlab.runs.sweep_runs import SweepRuns

_STATUS: dict[str, RunStatus] = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "interrupted": "KILLED"}


def close_open_trials(ledger: Ledger, interrupted: bool) -> None:
    """Every trial that has not ended by itself: interrupted, or stopped with the sweep."""
    for record in list(ledger.trials.values()):
        if not record.ended:
            if (Path(record.run_dir) / RESULT).exists():  # it came to its end, and its last report was on the way
                ledger.end(record.trial_id, "done")
                continue
            state: State = "interrupted" if interrupted else "stopped"
            ledger.end(record.trial_id, state, record.reason or ledger.ended or "the sweep ended")


def deliver(runs: SweepRuns | None, driver: SweepDriver) -> None:
    """What trials have recorded is in the store before a report is made of it."""
    if runs is None:
        return
    try:
        driver.make_pending_runs()
        waiting = runs.deliver_leftovers()
    except Exception as error:
        print(f"warning: not all that was recorded could be sent to the tracking store: {error}", flush=True)
        return
    if waiting:
        later = f"sensorlab runs deliver {driver.plan.sweep_dir}"
        print(f"warning: what {waiting} runs have recorded waits for the tracking store: {later}", flush=True)


def close_runs(runs: SweepRuns, driver: SweepDriver, interrupted: bool) -> None:
    """No run stays open: not those of stopped trials, whose processes were ended, and not the sweep's own."""
    ledger = driver.ledger
    try:
        runs.close_children({record.trial_id: _STATUS[record.state] for record in ledger.trials.values()})
        for record in ledger.trials.values():
            if record.state == "failed" and record.run_id:  # may have ended itself under another status
                _mark_failed(runs, record.run_id, record.reason)
    except Exception as error:
        print(f"warning: not all runs could be closed in the tracking store: {error}", flush=True)
    runs.close("KILLED" if interrupted else "FINISHED", deadline_s=1.5 if interrupted else 30.0)


def _mark_failed(runs: SweepRuns, run_id: str, reason: str) -> None:
    client = open_client(runs.store.uri)
    client.set_tag(run_id, "sensorlab.error", reason[:500])
    client.set_terminated(run_id, status="FAILED")
