"""A single run from the driver: start or resume, watch, conclude."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorlab.cluster.files import REPORT, read_json, write_json
from sensorlab.cluster.lease import DRIVER, hold
from sensorlab.cluster.plans import RUN, load_plan
from sensorlab.cluster.preflight import Capacity, capacity, open_tracking
from sensorlab.cluster.progress import RunLine, Ticker
from sensorlab.cluster.start import Cluster, disconnect
from sensorlab.cluster.trainer import demand, fit_run, trains_in_process
from sensorlab.cluster.worker import Program, RunSpec, TrackingTarget, keep_report
from sensorlab.config import as_dict, digest, flatten
from sensorlab.experiment import ExperimentConfig, experiment_from
from sensorlab.runs.client import open_client
from sensorlab.runs.links import run_link, ui_command
from sensorlab.runs.store import Store
from sensorlab.runs.table import duration, number

MAX_FAILURES = 3  # restarts of the worker group
_PARAMS = (
    "optim",
    "schedule",
    "warmup",
    "train.accumulate",
    "train.clip",
    "seed",
    "data.global_batch",
    "train.duration",
    "train.precision",
)


@dataclass(frozen=True)
class RunPlan:
    """A run as it is written down in its directory."""

    run_dir: Path
    experiment: ExperimentConfig
    dataset: str
    tracking_uri: str | None
    run_id: str | None = None
    code_root: str | None = None
    command: str = "python experiments/train_bev.py"  # what the user starts; not saved

    def save(self, run_id: str | None) -> None:
        content = {
            "experiment": as_dict(self.experiment),
            "config_digest": digest(self.experiment),
            "dataset": self.dataset,
            "tracking_uri": self.tracking_uri,
            "run_id": run_id,
            "code_root": self.code_root,
        }
        write_json(self.run_dir / RUN.file, content)

    @classmethod
    def load(cls, root: Path, name: str) -> RunPlan:
        """The run ``name`` (or ``latest``, or a run's directory) under ``root``. Raises ``UserError``."""
        directory, saved = load_plan(RUN, root, name)
        return cls(
            run_dir=directory,
            experiment=experiment_from(saved["experiment"], where=str(directory / RUN.file)),
            dataset=saved["dataset"],
            tracking_uri=saved["tracking_uri"],
            run_id=saved["run_id"],
            code_root=saved["code_root"],
        )


def check_single(plan: RunPlan, cluster: Cluster) -> tuple[Capacity, Store | None]:
    """What takes seconds to know: (share of the cluster, tracking store). Making a dataset, which may take hours, is
    next.

    Raises:
        UserError: the run does not fit on the cluster, or the store cannot be used.
    """
    fitting = capacity(demand(plan.experiment, in_sweep=False), cluster.nodes, limit=1)
    return fitting, open_tracking(plan.tracking_uri, plan.experiment.tracking.experiment, len(cluster.nodes))


def run_single(plan: RunPlan, cluster: Cluster, program: Program) -> dict[str, Any]:
    """Train to the end, from the latest checkpoint if there is one, and print what came of it.

    Raises:
        UserError: it does not fit on the cluster, the run cannot start or go on as configured, or another process
            works on it.
    """
    fitting, store = check_single(plan, cluster)
    with hold(plan.run_dir, DRIVER):
        return _run(plan, cluster, program, fitting, store)


def _run(plan: RunPlan, cluster: Cluster, program: Program, fitting: Capacity, store: Store | None) -> dict[str, Any]:
    config = plan.experiment
    needs = demand(config, in_sweep=False)
    run_id = plan.run_id or (_create_run(store, plan) if store else None)
    plan.save(run_id)
    print(f"run {plan.run_dir.name}: {needs.describe()}; files in {plan.run_dir}", flush=True)
    if fitting.warning:
        print(f"warning: {fitting.warning}", flush=True)
    spec = RunSpec(
        experiment=as_dict(config),
        run_dir=str(plan.run_dir),
        dataset=plan.dataset,
        program=program,
        in_process=trains_in_process(config.resources, in_sweep=False, local=cluster.local),
        tracking=_target(store, run_id, plan),
        share=fitting.share,
    )
    started = time.monotonic()
    status = "KILLED"
    try:
        with Ticker(RunLine(plan.run_dir)):
            result = fit_run(spec, name=plan.run_dir.name, send=keep_report, max_failures=MAX_FAILURES)
        _check_digest(plan)
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:  # also on SIGTERM, which Ray turns into SystemExit
        if status != "FINISHED":  # said first: a second interrupt ends what follows
            print(f"not finished; continue with: {resume_command(plan)}", flush=True)
        if status == "KILLED":
            disconnect()  # ends a worker group: one that has just begun would open the run again
        if store is not None and run_id is not None:
            end_run(store, run_id, status)
    return _conclude(plan, result, store, run_id, time.monotonic() - started)


def resume_command(plan: RunPlan) -> str:
    return f"{plan.command} --resume {shlex.quote(str(plan.run_dir.absolute()))}"


def _check_digest(plan: RunPlan) -> None:
    """What was trained is what was asked for."""
    report = read_json(plan.run_dir / REPORT)
    if report is not None and report["config_digest"] != digest(plan.experiment):
        raise RuntimeError(
            f"the workers trained another configuration (digest {report['config_digest']}) than the one they were "
            f"given ({digest(plan.experiment)})"
        )


def _create_run(store: Store, plan: RunPlan) -> str:
    tags = {"sensorlab.role": "run", "sensorlab.run_dir": str(plan.run_dir)}
    run = open_client(store.uri).create_run(store.experiment_id, tags=tags, run_name=plan.run_dir.name)
    return str(run.info.run_id)


def _target(store: Store | None, run_id: str | None, plan: RunPlan) -> TrackingTarget | None:
    if store is None or run_id is None:
        return None
    flat = flatten(as_dict(plan.experiment))
    params = {key: value for key, value in flat.items() if any(key == p or key.startswith(f"{p}.") for p in _PARAMS)}
    return TrackingTarget(store.uri, run_id, params, code_root=plan.code_root)


def end_run(store: Store, run_id: str, status: str) -> None:
    """End the run if its worker could not."""
    try:
        client = open_client(store.uri)
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, status=status)
    except Exception as error:
        print(f"warning: run {run_id} could not be closed in the tracking store: {error}", flush=True)


def _conclude(
    plan: RunPlan, result: Mapping[str, Any], store: Store | None, run_id: str | None, seconds: float
) -> dict[str, Any]:
    metrics = {name: value for name, value in dict(result.get("metrics", {})).items() if math.isfinite(value)}
    shown = {name: value for name, value in metrics.items() if name.startswith("val/") or name == "train/loss"}
    width = max(map(len, shown), default=0)
    print()
    for name in sorted(
        shown, key=lambda name: (name != plan.experiment.eval.metric, not name.startswith("val/"), name)
    ):
        print(f"{name.ljust(width)}  {number(shown[name])}")
    print()
    print(f"finished in {duration(seconds)}; best checkpoint: {result.get('best_checkpoint')}")
    link = None
    if store is not None and run_id is not None:
        link = run_link(store, run_id)
        command = ui_command(store.uri)
        if command:
            print(f"MLflow: start the pages with: {command}")
        print(f"MLflow run {run_id}: {link}")
    outcome = {
        "run": plan.run_dir.name,
        "directory": str(plan.run_dir),
        "seconds": round(seconds, 1),
        **{key: result.get(key) for key in ("steps", "epochs", "best_checkpoint", "last_checkpoint", "config_digest")},
        "metrics": metrics,
        "run_id": run_id,
        "link": link,
    }
    print(json.dumps(outcome), flush=True)
    return outcome
