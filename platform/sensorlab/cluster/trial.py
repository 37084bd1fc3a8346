"""A trial: what Tune runs for each configuration that the search proposes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorlab.cluster.files import REPORT, RESULT, STOPPED, read_json
from sensorlab.cluster.preflight import UNSHARED, Share
from sensorlab.cluster.sweep_config import decode_values, resolve
from sensorlab.cluster.trainer import fit_run
from sensorlab.cluster.worker import Program, Report, RunSpec, TrackingTarget, send_to_tune
from sensorlab.errors import UserError
from sensorlab.report.ranking import searched

ORDER = "trial.json"  # written by the driver before the trial starts: its number, tracking run and expected digest
_ORDER_PATIENCE_S = 60.0  # shared file systems show new files late

FAILED, ALREADY_STOPPED = "failed", "already_stopped"  # keys of reports that end a trial


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep have in common. Plain data: it travels to every trial."""

    base: Mapping[str, Any]  # complete experiment; a trial puts its values into it
    sweep_dir: str
    dataset: str
    in_process: bool
    max_failures: int
    mode: str  # of the objective: "max" or "min"
    program: Program
    tracking_uri: str | None
    log_scaled: tuple[str, ...] = ()
    code_root: str | None = None
    share: Share = UNSHARED  # of the cluster, for each trial

    def run_dir(self, trial_id: str) -> Path:
        return Path(self.sweep_dir) / "trials" / trial_id


class Once:
    """Passes a trial's reports on to Tune: each step's once, whatever was repeated after a restart."""

    def __init__(self, send: Callable[[Report], None] = send_to_tune) -> None:
        self._send = send
        self._step = -1  # of the latest report that was passed on

    def __call__(self, report: Report) -> None:
        if report["step"] > self._step:
            self._step = report["step"]
            self._send(report)


def run_trial(plan: TrialPlan, values: Mapping[str, Any]) -> None:
    """Train one configuration and report every epoch to Tune.

    A trial that starts again (after a crash, or in a restored sweep) continues from its latest checkpoint; one that
    was finished or stopped before only says so. What repeating cannot cure is reported as the trial's failure instead
    of raised, because Tune restarts whatever raises.
    """
    from ray import tune

    trial_id = tune.get_context().get_trial_id()
    run_dir = plan.run_dir(trial_id)
    last = read_json(run_dir / REPORT)
    if last is not None and (run_dir / RESULT).exists():
        send_to_tune(last)
        return
    if last is not None and (run_dir / STOPPED).exists():
        send_to_tune({**last, ALREADY_STOPPED: True})
        return
    send = Once()
    if last is not None:
        send(last)  # the scheduler may not have seen it: it decides with the values of every rung
    order = _await_order(run_dir)
    try:
        if order.get("error"):
            raise UserError(order["error"])
        _train(plan, trial_id, decode_values(values), order, send)
    except UserError as error:
        send_to_tune(_failure(plan, str(error), last))
    except Exception as error:
        if plan.in_process:
            raise  # Tune starts the trial again
        # Ray Train has used up the restarts of the workers.
        send_to_tune(_failure(plan, f"{type(error).__name__}: {_last_line(str(error))}", last))


def _train(plan: TrialPlan, trial_id: str, values: Mapping[str, Any], order: Mapping[str, Any], send: Once) -> None:
    tracking = None
    if plan.tracking_uri is not None and order.get("run_id"):
        params = searched(values)
        tracking = TrackingTarget(plan.tracking_uri, order["run_id"], params, plan.log_scaled, plan.code_root)
    spec = RunSpec(
        experiment=resolve(plan.base, values),
        run_dir=str(plan.run_dir(trial_id)),
        dataset=plan.dataset,
        program=plan.program,
        in_process=plan.in_process,
        tracking=tracking,
        share=plan.share,
    )
    fit_run(spec, name=f"train-{trial_id}", send=send, max_failures=plan.max_failures)


def _await_order(run_dir: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _ORDER_PATIENCE_S
    while (order := read_json(run_dir / ORDER)) is None:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{run_dir / ORDER} did not appear within {_ORDER_PATIENCE_S:.0f} s: the output directory must be on a "
                "file system that all nodes share (SENSORLAB_OUTPUT_ROOT)"
            )
        time.sleep(0.1)
    return order


def _failure(plan: TrialPlan, message: str, last: Mapping[str, Any] | None) -> dict[str, Any]:
    epoch = int(last["epoch"]) if last else 0
    return {"epoch": epoch, "objective": -math.inf if plan.mode == "max" else math.inf, FAILED: message}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
