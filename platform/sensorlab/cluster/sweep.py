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

import sensorlab
from sensorlab.cluster.files import write_json
from sensorlab.cluster.lease import DRIVER, hold
from sensorlab.cluster.ledger import Ledger, share_ledger
from sensorlab.cluster.lineage import lineage_data, population_table
from sensorlab.cluster.plans import SWEEP, load_plan
from sensorlab.cluster.preflight import Capacity, Share, capacity, open_tracking
from sensorlab.cluster.progress import SweepLine, Ticker
from sensorlab.cluster.start import Cluster, disconnect
from sensorlab.cluster.sweep_budget import SweepBudget, epochs_trained, reopen
from sensorlab.cluster.sweep_config import SweepConfig, load_sweep, log_scaled
from sensorlab.cluster.table import failures, ranked_table, summary
from sensorlab.cluster.trainer import demand, trains_in_process
from sensorlab.cluster.trial import TrialPlan
from sensorlab.cluster.worker import Program
from sensorlab.config import as_dict, merge
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig, experiment_from
from sensorlab.runs.environment import changed_sources, source_digests
from sensorlab.runs.links import sweep_link, ui_command
from sensorlab.runs.store import Store
from sensorlab.runs.sweep_runs import SweepRuns

if TYPE_CHECKING:
    from sensorlab.cluster.monitor import SweepDriver


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
        return self.sweep.total_trials(self.max_epochs)

    @property
    def max_epochs(self) -> int | None:
        """Epochs that every trial may train for; ``None`` if nobody asks. Raises ``UserError`` if that is not known."""
        sweep = self.sweep
        if not sweep.stops_early and not sweep.is_population:
            return None
        duration = self.experiment.train.duration
        if duration.unit != "epochs":
            asking = f"algorithm {sweep.algorithm}" if sweep.is_population else f"scheduler {sweep.scheduler}"
            raise UserError(
                f"{asking} compares trials by epochs: give train.duration in epochs instead of {duration}, or choose "
                "another algorithm or sweep.scheduler=none"
            )
        return duration.count

    def save(self) -> None:
        content = {
            "name": self.name,
            "directory": str(self.directory.absolute()),
            "experiment": as_dict(self.experiment),
            "sweep": as_dict(self.sweep),
            "dataset": self.dataset,
            "tracking_uri": self.tracking_uri,
            "code_root": self.code_root,
        }
        write_json(self.directory / SWEEP.file, content)

    @classmethod
    def load(cls, root: Path, name: str) -> SweepPlan:
        """The sweep ``name`` (or ``latest``) under ``root``.

        Raises:
            UserError: there is none (the message lists those that there are), or its directory was moved.
        """
        directory, saved = load_plan(SWEEP, root, name)
        directory = _home(directory, saved.get("directory"))
        return cls(
            name=directory.name,
            root=directory.parent.parent,
            experiment=experiment_from(saved["experiment"], where=str(directory / SWEEP.file)),
            sweep=load_sweep(saved["sweep"]),
            dataset=saved["dataset"],
            tracking_uri=saved["tracking_uri"],
            code_root=saved["code_root"],
        )


def _home(found: Path, recorded: str | None) -> Path:
    """The directory of a sweep as all that it has saved names it: Tune's state, the ledger, the tracking store.

    Raises:
        UserError: it is another one than the sweep was ``found`` in.
    """
    home = Path(recorded or found)
    if not home.exists():
        raise UserError(
            f"{found.name} was moved from {home}: all that it has saved names that place. To go on with it, move it "
            f"back, or link it there: ln -s {shlex.quote(str(found))} {shlex.quote(str(home))}"
        )
    if not home.samefile(found):
        raise UserError(
            f"{found} is a copy of the sweep {home}, which all that it has saved names: go on with that one"
        )
    return home


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


def check_sweep(plan: SweepPlan, cluster: Cluster, object_store: int = 0) -> tuple[Capacity, Store | None]:
    """What takes seconds to know: (trials at a time, tracking store). Making a dataset, which may take hours, is next.

    Args:
        object_store: bytes that the streams of a trial need, once there is a dataset that says so.

    Raises:
        UserError: it does not fit on the cluster, the store cannot be used, the scheduler has no epochs to go by, or
            a package that the search needs is not installed.
    """
    from sensorlab.cluster.search.optuna_proposer import check_available

    check_available(plan.sweep)
    _ = plan.max_epochs
    needs = demand(plan.experiment, in_sweep=True, object_store=object_store)
    fitting = capacity(needs, cluster.nodes, plan.sweep.max_concurrent, "sweep.max_concurrent")
    return fitting, open_tracking(plan.tracking_uri, plan.experiment.tracking.experiment, len(cluster.nodes))


def run_sweep(
    plan: SweepPlan, cluster: Cluster, program: Program, resume: bool = False, object_store: int = 0
) -> SweepOutcome:
    """Run (or go on with) a sweep to its end and print its outcome.

    Args:
        object_store: see :func:`check_sweep`.

    Raises:
        UserError: it does not fit on the cluster, the store or the output directory cannot be used, or another process
            works on this sweep.
    """
    fitting, store = check_sweep(plan, cluster, object_store)
    with hold(plan.directory, DRIVER):
        return _run(plan, program, resume, fitting, store)


def _run(plan: SweepPlan, program: Program, resume: bool, fitting: Capacity, store: Store | None) -> SweepOutcome:
    from sensorlab.cluster.closing import close_open_trials, close_runs, deliver
    from sensorlab.cluster.monitor import SweepDriver, share_driver
    from sensorlab.cluster.tuning import fit

    sweep = plan.sweep
    needs = demand(plan.experiment, in_sweep=True)
    print(f"sweep {plan.name}: {sweep.describe(plan.max_epochs)}, each with {needs.describe()}")
    print(fitting.describe())
    if fitting.warning:
        print(f"warning: {fitting.warning}", flush=True)
    plan.save()
    _note_code(plan, resume)
    ledger = Ledger(plan.directory / "ledger.json", sweep.mode)
    share_ledger(plan.directory, ledger)
    budget = SweepBudget(sweep, ledger)
    runs = _open_runs(plan, store)
    trials = _trial_plan(plan, program, store, fitting.share)
    driver = SweepDriver(trials, ledger, runs, sweep.objective, budget, sweep.members, sweep.fidelity)
    share_driver(driver)
    levels = [sweep.seeds * size for size in sweep.level_sizes] if sweep.fidelity else []
    line = SweepLine(ledger, sweep.objective, plan.total_trials, fitting.runs, levels)
    interrupted = True
    try:
        with Ticker(line):
            reopen(ledger)
            if budget.spent and _unfinished(ledger, plan):
                ledger.ended = budget.spent
            else:
                ledger.is_exhausted = False  # the plan may have got more trials
                fit(plan, driver.plan, fitting.runs, resume)
        interrupted = not ledger.ended and _unfinished(ledger, plan)
    finally:  # also on SIGTERM, which Ray turns into SystemExit: a stopped job has 3 s for this
        budget.tick(save=True)
        close_open_trials(ledger, interrupted)
        if not interrupted:  # a stopped job has no time for it; `sensorlab report` makes it afterwards
            deliver(runs, driver)
            _report(plan, runs)
        if interrupted:  # said first: a second interrupt ends what follows
            print(f"interrupted; what is done is kept. Continue with: {resume_command(plan)}", flush=True)
            disconnect()  # ends the trials: one that has just begun would open its run again
        if runs is not None:
            close_runs(runs, driver, interrupted)
        if ledger.ended:
            print(f"the sweep was ended: {ledger.ended}", flush=True)
    if budget.spent:
        print(f"budget: {budget.describe()}. To go on, raise it: {resume_command(plan)} KEY=VALUE", flush=True)
    return _conclude(plan, driver, store, interrupted)


def _note_code(plan: SweepPlan, resume: bool) -> None:
    """Leave word of the code that the sweep starts with; say so if it goes on with other code."""
    recorded, package = plan.directory / "source.txt", Path(sensorlab.__file__).parent
    present = source_digests(package)
    if not resume:
        recorded.write_text(present, encoding="utf-8")
    elif recorded.is_file() and (changed := changed_sources(recorded.read_text(encoding="utf-8"), present)):
        shown = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if changed[6:] else "")
        print(
            f"warning: the sweep was started with other code, and what it trains from now on may not compare with the "
            f"trials before: {shown} changed",
            flush=True,
        )


def _report(plan: SweepPlan, runs: SweepRuns | None) -> None:
    from sensorlab.report.attach import attach_report

    path = attach_report(plan.directory, runs.recorder if runs else None)
    if path is not None:
        print(f"report: {path}", flush=True)


def _trials_train_in_process(plan: SweepPlan) -> bool:
    return trains_in_process(plan.experiment.resources, in_sweep=True, local=False)


def _trial_plan(plan: SweepPlan, program: Program, store: Store | None, share: Share) -> TrialPlan:
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
        share=share,
    )


def _open_runs(plan: SweepPlan, store: Store | None) -> SweepRuns | None:
    if store is None:
        return None
    sweep = plan.sweep
    described: dict[str, Any] = {
        "algorithm": sweep.algorithm,
        "scheduler": sweep.scheduler,
    }
    if sweep.seeds > 1:
        described["seeds"] = sweep.seeds
    if sweep.fidelity is not None:
        described["fidelity"] = sweep.fidelity.key
    runs = SweepRuns(
        store,
        sweep_id=plan.name,
        name=plan.name,
        objective=sweep.objective,
        mode=sweep.mode,
        spool_dir=plan.directory / "recording",
        params=described,
        # What a resumed sweep may change is no parameter: the store refuses another value.
        tags={"sensorlab.sweep_dir": str(plan.directory), "sensorlab.num_trials": str(plan.total_trials)},
    )
    runs.recorder.log_dict({"experiment": as_dict(plan.experiment), "sweep": as_dict(sweep)}, "config/sweep.json")
    return runs


def _unfinished(ledger: Ledger, plan: SweepPlan) -> bool:
    all_begun = ledger.is_exhausted or len(ledger.trials) >= plan.total_trials
    return not all_begun or not all(record.ended for record in ledger.trials.values())


def _comparison_link(runs: SweepRuns, interrupted: bool) -> str:
    """Address of the page that compares the trials: prepared, unless there is no time for it or the store is away."""
    if not interrupted:
        try:
            return runs.publish_view()
        except Exception as error:
            print(f"warning: the comparison page could not be prepared: {error}", flush=True)
    return sweep_link(runs.store, runs.parent_run_id, runs.objective, runs.mode)


def _conclude(plan: SweepPlan, driver: SweepDriver, store: Store | None, interrupted: bool) -> SweepOutcome:
    ledger, runs = driver.ledger, driver.runs
    objective = plan.sweep.objective
    print()
    members = plan.sweep.members
    print(
        population_table(ledger, objective, members)
        if members
        else ranked_table(ledger, objective, plan.sweep.fidelity)
    )
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
        seconds=round(ledger.seconds, 1),
        epochs=epochs_trained(ledger),
        interrupted=interrupted,
        ended=ledger.ended or None,
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
