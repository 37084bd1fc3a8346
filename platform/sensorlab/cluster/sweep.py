"""A sweep: Ray Tune proposes configurations, starts trials and stops those that fall behind.

What the user gets does not hang on what Tune keeps. Trials continue from the engine's checkpoints; the ledger
(``ledger.json``) holds every trial's outcome and the scheduler's state; Tune's own state only says which
configurations were proposed. A sweep whose driver was killed therefore goes on where it was, by its name.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorlab.cluster.files import write_json
from sensorlab.cluster.lease import DRIVER, hold
from sensorlab.cluster.ledger import Ledger, share_ledger
from sensorlab.cluster.lineage import lineage_data, population_table
from sensorlab.cluster.plans import SWEEP, load_plan
from sensorlab.cluster.preflight import concurrent_runs, open_tracking
from sensorlab.cluster.progress import SweepLine, Ticker
from sensorlab.cluster.start import Cluster
from sensorlab.cluster.sweep_config import SweepConfig, load_sweep, log_scaled
from sensorlab.cluster.table import failures, ranked_table, summary
from sensorlab.cluster.trainer import demand, trains_in_process
from sensorlab.cluster.trial import TrialPlan, run_trial
from sensorlab.cluster.worker import Program
from sensorlab.config import as_dict, merge
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig, experiment_from
from sensorlab.runs.client import open_client
from sensorlab.runs.links import sweep_link, ui_command
from sensorlab.runs.recorder import RunStatus
from sensorlab.runs.store import Store
from sensorlab.runs.sweep_runs import SweepRuns

if TYPE_CHECKING:
    from sensorlab.cluster.monitor import SweepDriver
    from sensorlab.cluster.search.stopping import EarlyStopping

_TUNE = "tune"
_STATUS: dict[str, RunStatus] = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "interrupted": "KILLED"}


@dataclass(frozen=True)
class SweepPlan:
    """A sweep as it is written down in its directory: enough to start it, and to go on with it."""

    name: str
    root: Path  # output root; the sweep lives in root/sweeps/name
    experiment: ExperimentConfig
    sweep: SweepConfig
    dataset: str
    tracking_uri: str | None  # None: nothing is recorded
    code_root: str | None = None
    command: str = "python experiments/tune_bev.py"  # what the user starts; not saved

    @property
    def directory(self) -> Path:
        return self.root / SWEEP.folder / self.name

    @property
    def total_trials(self) -> int:
        return self.sweep.total_trials(_max_epochs(self))

    def save(self) -> None:
        content = {
            "name": self.name,
            "experiment": as_dict(self.experiment),
            "sweep": as_dict(self.sweep),
            "dataset": self.dataset,
            "tracking_uri": self.tracking_uri,
            "code_root": self.code_root,
        }
        write_json(self.directory / SWEEP.file, content)

    @classmethod
    def load(cls, root: Path, name: str) -> SweepPlan:
        """The sweep ``name`` (or ``latest``) under ``root``. Raises ``UserError`` that lists the ones there are."""
        directory, saved = load_plan(SWEEP, root, name)
        return cls(
            name=directory.name,
            root=directory.parent.parent,
            experiment=experiment_from(saved["experiment"], where=str(directory / SWEEP.file)),
            sweep=load_sweep(saved["sweep"]),
            dataset=saved["dataset"],
            tracking_uri=saved["tracking_uri"],
            code_root=saved["code_root"],
        )


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended. ``exit_code``: 0 well, 1 a trial failed, 130 it was interrupted."""

    ledger: Ledger
    summary: dict[str, Any]
    exit_code: int


def with_objective(experiment: ExperimentConfig, sweep: SweepConfig) -> ExperimentConfig:
    """The experiment whose best checkpoint is the best by the sweep's objective."""
    tree = merge(as_dict(experiment), {"eval": {"metric": sweep.objective, "mode": sweep.mode}})
    return experiment_from(tree)


def check_sweep(plan: SweepPlan, cluster: Cluster) -> tuple[int, Store | None]:
    """What takes seconds to know: (trials at a time, tracking store). Making a dataset, which may take hours, is next.

    Raises:
        UserError: it does not fit on the cluster, the store cannot be used, the scheduler has no epochs to go by, or
            a package that the search needs is not installed.
    """
    from sensorlab.cluster.search.optuna_proposer import check_available

    check_available(plan.sweep)
    _max_epochs(plan)
    concurrent = concurrent_runs(demand(plan.experiment, in_sweep=True), cluster.nodes, plan.sweep.max_concurrent)
    return concurrent, open_tracking(plan.tracking_uri, plan.experiment.tracking.experiment, len(cluster.nodes))


def run_sweep(plan: SweepPlan, cluster: Cluster, program: Program, resume: bool = False) -> SweepOutcome:
    """Run (or go on with) a sweep to its end and print its outcome.

    Raises:
        UserError: it does not fit on the cluster, the store or the output directory cannot be used, or another process
            works on this sweep.
    """
    concurrent, store = check_sweep(plan, cluster)
    with hold(plan.directory, DRIVER):
        return _run(plan, program, resume, concurrent, store)


def _run(plan: SweepPlan, program: Program, resume: bool, concurrent: int, store: Store | None) -> SweepOutcome:
    from sensorlab.cluster.monitor import SweepDriver, share_driver

    sweep = plan.sweep
    needs = demand(plan.experiment, in_sweep=True)
    trials = f"{plan.total_trials} trials"
    if sweep.seeds > 1:
        trials = f"{sweep.total_configurations} configurations with {sweep.seeds} seeds each, {trials}"
    if sweep.is_population:
        trials = f"{sweep.num_trials} members, {trials}, one for each generation of a member"
    print(f"sweep {plan.name}: {trials}, {concurrent} at a time, each with {needs.describe()}")
    plan.save()
    ledger = Ledger(plan.directory / "ledger.json", sweep.mode)
    share_ledger(plan.directory, ledger)
    runs = _open_runs(plan, store)
    driver = SweepDriver(_trial_plan(plan, program, store), ledger, runs, sweep.objective, sweep.members)
    share_driver(driver)
    started = time.monotonic()
    line = SweepLine(ledger, sweep.objective, plan.total_trials, concurrent)
    interrupted = True
    try:
        with Ticker(line):
            _fit(plan, driver.plan, concurrent, resume)
        timed_out = sweep.time_budget_s is not None and time.monotonic() - started >= sweep.time_budget_s
        interrupted = not timed_out and not driver.given_up and _unfinished(ledger, plan)
    finally:  # also on SIGTERM, which Ray turns into SystemExit: a stopped job has 3 s for this
        _close_open_trials(ledger, interrupted)
        if not interrupted:  # a stopped job has no time for it; `sensorlab report` makes it afterwards
            _report(plan, runs)
        if runs is not None:
            _close_runs(runs, ledger, interrupted)
        if driver.given_up:
            print(f"the sweep was ended: {driver.given_up}", flush=True)
        if interrupted:
            print(f"interrupted; what is done is kept. Continue with: {resume_command(plan)}", flush=True)
    return _conclude(plan, driver, store, time.monotonic() - started, interrupted)


def _report(plan: SweepPlan, runs: SweepRuns | None) -> None:
    from sensorlab.report.attach import attach_report

    path = attach_report(plan.directory, runs.recorder if runs else None)
    if path is not None:
        print(f"report: {path}", flush=True)


def _fit(plan: SweepPlan, trial_plan: TrialPlan, concurrent: int, resume: bool) -> None:
    from ray import tune

    def trial(values: dict[str, Any]) -> None:
        run_trial(trial_plan, values)

    resources = plan.experiment.resources
    if trial_plan.in_process:
        needs = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    else:
        needs = {"CPU": demand(plan.experiment, in_sweep=True).driver_cpus}
    trainable = tune.with_resources(trial, {name: amount for name, amount in needs.items() if amount})
    state = str(plan.directory / _TUNE)
    if resume and tune.Tuner.can_restore(state):
        tuner = tune.Tuner.restore(state, trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = _new_tuner(plan, trainable, concurrent)
    tuner.fit()


def _new_tuner(plan: SweepPlan, trainable: Any, concurrent: int) -> Any:
    from ray import tune

    from sensorlab.cluster.monitor import SweepCallback, SweepStopper
    from sensorlab.cluster.search.searcher import SweepSearch

    sweep, directory = plan.sweep, str(plan.directory)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode=sweep.mode,
            search_alg=SweepSearch(directory, sweep, plan.experiment.seed, _max_epochs(plan)),
            scheduler=_new_scheduler(plan),
            num_samples=plan.total_trials,
            max_concurrent_trials=concurrent,
            time_budget_s=sweep.time_budget_s,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=_TUNE,
            storage_path=directory,
            stop=SweepStopper(directory),
            callbacks=[SweepCallback(directory)],
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            verbose=0,
        ),
    )


def _new_scheduler(plan: SweepPlan) -> EarlyStopping | None:
    from sensorlab.cluster.halving import HyperBand, SuccessiveHalving
    from sensorlab.cluster.search.stopping import MedianStopping

    sweep, directory, max_epochs = plan.sweep, str(plan.directory), _max_epochs(plan)
    if max_epochs is None or sweep.is_population or sweep.fidelity is not None:
        return None
    repeats = sweep.seeds > 1
    if sweep.scheduler == "hyperband":
        return HyperBand(directory, sweep.hyperband, max_epochs, sweep.mode, repeats)
    if sweep.scheduler == "median":
        return MedianStopping(directory, sweep.median, max_epochs, sweep.mode, repeats)
    return SuccessiveHalving(directory, sweep.asha, max_epochs, sweep.mode, repeats)


def _max_epochs(plan: SweepPlan) -> int | None:
    """Epochs that every trial may train for; ``None`` if nobody asks."""
    sweep = plan.sweep
    if sweep.scheduler == "none" and not sweep.is_population:
        return None
    duration = plan.experiment.train.duration
    if duration.unit != "epochs":
        asking = f"algorithm {sweep.algorithm}" if sweep.is_population else f"scheduler {sweep.scheduler}"
        raise UserError(
            f"{asking} compares trials by epochs: give train.duration in epochs instead of {duration}, or choose "
            "another algorithm or sweep.scheduler=none"
        )
    return duration.count


def _trials_train_in_process(plan: SweepPlan) -> bool:
    return trains_in_process(plan.experiment.resources, in_sweep=True, local=False)


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)


def _trial_plan(plan: SweepPlan, program: Program, store: Store | None) -> TrialPlan:
    return TrialPlan(
        base=as_dict(plan.experiment),
        sweep_dir=str(plan.directory),
        dataset=plan.dataset,
        in_process=_trials_train_in_process(plan),
        max_failures=plan.sweep.max_failures,
        mode=plan.sweep.mode,
        program=program,
        tracking_uri=store.uri if store else None,
        log_scaled=log_scaled(plan.sweep),
        code_root=plan.code_root,
    )


def _open_runs(plan: SweepPlan, store: Store | None) -> SweepRuns | None:
    if store is None:
        return None
    sweep = plan.sweep
    described = {"algorithm": sweep.algorithm, "scheduler": sweep.scheduler, "num_trials": plan.total_trials}
    if sweep.seeds > 1:
        described["seeds"] = sweep.seeds
    runs = SweepRuns(
        store,
        sweep_id=plan.name,
        name=plan.name,
        objective=sweep.objective,
        mode=sweep.mode,
        spool_dir=plan.directory / "recording",
        params=described,
        tags={"sensorlab.sweep_dir": str(plan.directory)},
    )
    runs.recorder.log_dict({"experiment": as_dict(plan.experiment), "sweep": as_dict(sweep)}, "config/sweep.json")
    return runs


def _unfinished(ledger: Ledger, plan: SweepPlan) -> bool:
    all_begun = ledger.is_exhausted or len(ledger.trials) >= plan.total_trials
    return not all_begun or not all(record.ended for record in ledger.trials.values())


def _close_open_trials(ledger: Ledger, interrupted: bool) -> None:
    for record in list(ledger.trials.values()):
        if not record.ended:
            ledger.end(record.trial_id, "interrupted" if interrupted else "stopped", record.reason or "the sweep ended")


def _close_runs(runs: SweepRuns, ledger: Ledger, interrupted: bool) -> None:
    """No run stays open: not those of stopped trials, whose processes were ended, and not the sweep's own."""
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


def _comparison_link(runs: SweepRuns, interrupted: bool) -> str:
    """Address of the page that compares the trials: prepared, unless there is no time for it or the store is away."""
    if not interrupted:
        try:
            return runs.publish_view()
        except Exception as error:
            print(f"warning: the comparison page could not be prepared: {error}", flush=True)
    return sweep_link(runs.store, runs.parent_run_id, runs.objective, runs.mode)


def _conclude(
    plan: SweepPlan, driver: SweepDriver, store: Store | None, seconds: float, interrupted: bool
) -> SweepOutcome:
    ledger, runs = driver.ledger, driver.runs
    objective = plan.sweep.objective
    print()
    members = plan.sweep.members
    print(population_table(ledger, objective, members) if members else ranked_table(ledger, objective))
    print()
    for failure in failures(ledger):
        print(failure)
    best = ledger.best()
    if best is not None:
        print(f"best checkpoint: {best.best_checkpoint}")
    link = None
    if store is not None and runs is not None:
        link = _comparison_link(runs, interrupted)
        print(f"MLflow: sweep run {runs.parent_run_id}" + (f", best run {best.run_id}" if best else ""))
        command = ui_command(store.uri)
        if command:
            print(f"to compare the trials, start the pages: {command}")
        print(f"and open: {link}" if command else f"compare the trials: {link}")
    outcome = summary(
        ledger,
        sweep=plan.name,
        directory=str(plan.directory),
        objective=objective,
        seconds=round(seconds, 1),
        interrupted=interrupted,
        parent_run_id=runs.parent_run_id if runs else None,
        link=link,
        **({"lineage": lineage_data(ledger, best, members)} if members and best else {}),
    )
    write_json(plan.directory / "outcome.json", outcome)
    print(json.dumps(outcome), flush=True)
    exit_code = 130 if interrupted else int(ledger.count("failed") > 0 or bool(driver.given_up))
    return SweepOutcome(ledger, outcome, exit_code)


def resume_command(plan: SweepPlan) -> str:
    return f"{plan.command} --resume {shlex.quote(str(plan.directory.absolute()))}"


def new_name(experiment: ExperimentConfig) -> str:
    """A name that no earlier run has: the experiment's, with date and time (and the process, for two in a second)."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return f"{experiment.name}-{stamp}-{os.getpid() % 10000:04d}"
