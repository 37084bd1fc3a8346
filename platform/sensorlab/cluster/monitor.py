"""The driver's eyes and hands in Tune's loop: it keeps the ledger, the tracking runs and the proof of configuration."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.search_generator import SearchGenerator

from sensorlab.cluster.files import ERROR, PROGRESS, RESULT, STOPPED, write_json
from sensorlab.cluster.ledger import Ledger, TrialRecord
from sensorlab.cluster.lineage import place_of
from sensorlab.cluster.search.options import FidelityConfig
from sensorlab.cluster.search.stopping import EarlyStopping
from sensorlab.cluster.sweep_budget import SweepBudget
from sensorlab.cluster.sweep_config import decode_values, resolve
from sensorlab.cluster.trial import ALREADY_STOPPED, FAILED, ORDER, TrialPlan
from sensorlab.cluster.tune_state import keep
from sensorlab.config import as_dict, digest, merge, nested
from sensorlab.errors import UserError
from sensorlab.experiment import experiment_from
from sensorlab.report.ranking import searched
from sensorlab.runs.pending import adopt, pending_id
from sensorlab.runs.sweep_runs import SweepRuns
from sensorlab.runs.tags import FIDELITY_TAG, FORKED_TAG, GENERATION_TAG, MEMBER_TAG

logger = logging.getLogger(__name__)

_HOPELESS = 3  # failed trials without a single report of any trial: the cause is not the configuration
_STALL_S = 900.0  # no trial starts, reports or ends although none is running: Tune waits for something that was lost


# Running trials write their progress once a second while they step and evaluate. In between they may start up, compile,
# wait for storage or for their workers; none of that takes hours, a hanging process or a lost node does.
_SILENT_S = 2 * 3600.0
_LOOK_S = 5.0  # between two looks at the files of the running trials


class SweepEnded(Exception):
    """Raised in Tune's loop to leave it as an interruption does: what it has saved can be gone on with."""


@dataclass
class SweepDriver:
    """What the driver of a sweep holds while it runs."""

    plan: TrialPlan
    ledger: Ledger
    runs: SweepRuns | None
    objective: str
    budget: SweepBudget
    members: int | None = None  # of a population
    fidelity: FidelityConfig | None = None
    given_up: str = ""  # why the sweep was ended before its time
    is_saved: bool = False  # Tune has saved its state since the sweep has to end
    _failed: set[str] = field(default_factory=set)  # ids of trials, in this driver: what failed before may be mended
    _held: set[str] = field(default_factory=set)  # ids of trials that wait with their next epoch for ever
    clock: Callable[[], float] = time.monotonic
    _looked: float = -math.inf
    _last_event: float = -math.inf
    _signs: dict[str, object] | None = None  # of life, of the running trials when they were last looked at
    _mirrored: str = ""  # id of the best trial that the sweep's own run shows

    def order(self, trial_id: str, sampled: Mapping[str, Any]) -> None:
        """Before a trial starts: enter it, open its tracking run, and leave word of both in its directory."""
        values = decode_values(sampled)
        tree = resolve(self.plan.base, values)
        run_dir = self.plan.run_dir(trial_id)
        word: dict[str, Any] = {"trial_id": trial_id, "values": values}
        try:
            word["config_digest"] = _config_digest(tree, values, where=f"configuration of trial {trial_id}")
        except UserError as error:  # each value is valid, this combination is not
            word |= {"config_digest": "", "error": str(error)}
        record = self.ledger.start(trial_id, values, word["config_digest"], run_dir)
        record.fidelity = self.fidelity.level(values) if self.fidelity else None
        self._held.discard(trial_id)
        record.run_id = self._open_run(record)
        pending = pending_id(trial_id) if self.runs is not None else None
        word |= {"number": record.number, "run_id": record.run_id or pending}
        write_json(run_dir / ORDER, word)

    def _open_run(self, record: TrialRecord) -> str | None:
        if self.runs is None:
            return None
        name, tags = f"trial {record.number:03d}", {}
        if self.members is not None:
            generation, member = place_of(record, self.members)
            name = f"{name} g{generation} m{member}"
            tags = {GENERATION_TAG: str(generation), MEMBER_TAG: str(member)}
            donor = self.ledger.trials.get(record.forked_from or "")
            tags |= {FORKED_TAG: donor.run_id} if donor is not None and donor.run_id else {}
        if record.fidelity is not None:
            tags = {FIDELITY_TAG: str(record.fidelity)}
        params = searched(record.values)
        try:
            run_id = self.runs.child(record.trial_id, name, params, log_scaled=self.plan.log_scaled, tags=tags)
        except Exception as error:  # the store is away: what the trial records waits in its directory
            logger.warning("%s has no run in the tracking store yet: %s", name, error)
            return record.run_id
        adopt(self.plan.run_dir(record.trial_id) / "recording", record.trial_id, run_id)
        return run_id

    def make_pending_runs(self) -> None:
        """Make the runs of trials that began while the store was away. Call it when no trial runs any more."""
        for record in list(self.ledger.trials.values()):
            if self.runs is not None and record.run_id is None:
                record.run_id = self._open_run(record)
                if record.run_id is None:  # the store is still away: the next would wait for it too
                    break
        self.ledger.save()
        self._mirror()  # the best may be one of them

    def check(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Take note of failures and compare digests; ``True`` ends the trial."""
        record = self.ledger.trials[trial_id]
        if FAILED in result:
            record.state, record.reason = "failed", str(result[FAILED])
            if record.reason.startswith(f"eval.metric={self.objective} is not reported"):  # nor by any other trial
                self.given_up = record.reason.replace("eval.metric", "sweep.objective", 1)
        elif result["config_digest"] != record.config_digest:
            record.state = "failed"
            record.reason = (
                f"it trained another configuration (digest {result['config_digest']}) than the one it was given "
                f"({record.config_digest})"
            )
        else:
            record.verified = True
        if record.state == "failed":
            self._failed.add(trial_id)
        return record.state == "failed" or ALREADY_STOPPED in result

    def take(self, trial_id: str, result: Mapping[str, Any]) -> None:
        if self.ledger.trials[trial_id].state == "failed":
            return
        self.ledger.report(trial_id, result)
        self._mirror(trial_id)

    def _mirror(self, reported: str = "") -> None:
        """Show the best trial on the sweep's own run, if it is another one now or the one that has just reported.

        The report of one repeat can make another one the best, by the mean of their configuration. So can the end of a
        trial: its level of fidelity counts from then on; or it has failed, and no longer counts itself.
        """
        best = self.ledger.best()
        if best is None or (best.trial_id != reported and best.trial_id == self._mirrored):
            return
        if self.runs is not None and best.run_id:
            self._mirrored = best.trial_id
            progress = sum(record.epoch for record in self.ledger.trials.values())
            self.runs.mirror_best(best.trial_id, best.run_id, best.metrics, progress)

    def ended(self, trial_id: str) -> None:
        """A trial has left Tune without an error."""
        record = self.ledger.trials[trial_id]
        run_dir = self.plan.run_dir(trial_id)
        if (run_dir / RESULT).exists():
            self.ledger.end(trial_id, "done")
        else:
            judged = "stopped" if record.stopped_at is None else f"behind at epoch {record.stopped_at}"
            reason = record.reason or judged  # what started again after the decision has no reason any more
            self.ledger.end(trial_id, "stopped", reason)
            if record.state == "stopped":
                write_json(run_dir / STOPPED, {"reason": reason, "epoch": record.epoch})
        self._mirror()

    def crashed(self, trial_id: str, sampled: Mapping[str, Any], reason: str, restarts: bool) -> None:
        """The process of a trial has died or raised; Tune starts it again if it may."""
        if trial_id not in self.ledger.trials:  # it died before it had started
            self.order(trial_id, sampled)
        if restarts:
            self.ledger.trials[trial_id].restarts += 1
        else:
            self._failed.add(trial_id)
        self.ledger.end(trial_id, "interrupted" if restarts else "failed", reason)
        self._mirror()

    def holds(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether a trial that has reported ``result`` must not begin another epoch, because none is left."""
        more = int(result["epoch"]) - self.ledger.trials[trial_id].epoch  # the ledger gets the report afterwards
        if result.get("finished") or not self.budget.is_out_of_epochs(more):
            return False
        self._held.add(trial_id)
        return True

    def ending(self) -> str:
        """Why the sweep has to end before all of its trials; empty if it goes on. Asked several times a second."""
        self.budget.tick()
        running = {record.trial_id for record in list(self.ledger.trials.values()) if record.state == "running"}
        if self.budget.is_out_of_time or running <= self._held:
            self.ledger.ended = self.budget.spent
        if self.gives_up():
            self.ledger.ended = self.given_up
        return self.ledger.ended

    def gives_up(self) -> bool:
        """Whether going on makes no sense; ``given_up`` then says why."""
        silent = self._silence()
        running = [record for record in list(self.ledger.trials.values()) if record.state == "running"]
        verified = any(record.verified for record in self.ledger.trials.values())
        if len(self._failed) >= _HOPELESS and not verified:
            self.given_up = f"{len(self._failed)} trials failed, none has trained an epoch"
        elif running and silent > _SILENT_S:
            named = ", ".join(f"#{record.number}" for record in running)
            self.given_up = (
                f"{named} did not get on for {_SILENT_S / 3600:.0f} hours: no step, no evaluated batch; what they did "
                f"last is in the log.txt of their directories, {Path(self.plan.sweep_dir) / 'trials'}"
            )
        elif not running and silent > _STALL_S:
            self.given_up = (
                f"no trial could start for {_STALL_S / 60:.0f} minutes; is the cluster busy with other work?"
            )
        return bool(self.given_up)

    def _silence(self) -> float:
        """Seconds since a trial started, ended, or moved on. Changes are what counts, not the times in the files:
        the clocks of two machines differ."""
        now = self.clock()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            running = [record for record in list(self.ledger.trials.values()) if record.state == "running"]
            signs: dict[str, object] = {
                record.trial_id: (record.started, record.epoch, _written(Path(record.run_dir) / PROGRESS))
                for record in running
            }
            if signs != self._signs:
                self._signs, self._last_event = signs, now
        return now - self._last_event


# As for the ledger: copies of the objects below live on in restored drivers and find the one driver by directory.
_DRIVERS: dict[str, SweepDriver] = {}


def share_driver(driver: SweepDriver) -> None:
    """Make ``driver`` the one of its sweep in this process."""
    _DRIVERS[driver.plan.sweep_dir] = driver


class SweepCallback(Callback):
    """Tune's events, passed on to the driver."""

    def __init__(self, sweep_dir: str) -> None:
        self._sweep_dir = sweep_dir
        self._first_step = True

    @property
    def _driver(self) -> SweepDriver:
        return _DRIVERS[self._sweep_dir]

    def setup(
        self, stop: Any = None, num_samples: int | None = None, total_num_samples: int | None = None, **info: Any
    ) -> None:
        self._first_step = True

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._first_step:
            self._first_step = False
            self._driver.ledger.forget_unknown({trial.trial_id for trial in trials})
            self._driver.ledger.reopen({trial.trial_id for trial in trials if trial.status == "PENDING"})

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._driver.order(trial.trial_id, trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._driver.take(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._driver.ended(trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._crashed(trial, restarts=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._crashed(trial, restarts=False)

    def _crashed(self, trial: Any, restarts: bool) -> None:
        reason = _reason(trial, self._driver.plan.run_dir(trial.trial_id))
        self._driver.crashed(trial.trial_id, trial.config, reason, restarts)


class SweepStopper(Stopper):
    """Ends trials that failed or that did not train what they were given, and a sweep that has spent its budget or in
    which nothing works."""

    def __init__(self, sweep_dir: str) -> None:
        self._sweep_dir = sweep_dir

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return _DRIVERS[self._sweep_dir].check(trial_id, result)

    def stop_all(self) -> bool:
        driver = _DRIVERS[self._sweep_dir]
        reason = driver.ending()
        if reason and driver.is_saved:
            # Not True: then Tune would take the open trials for finished, and the search for exhausted, for ever.
            raise SweepEnded(reason)
        return False


class SweepScheduler(FIFOScheduler):
    """The scheduler that the sweep has asked for, if any; and no further epoch for anyone when none is left."""

    def __init__(self, sweep_dir: str, stopping: EarlyStopping | None) -> None:
        super().__init__()
        self._sweep_dir = sweep_dir
        self._stopping = stopping

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        decision: str = TrialScheduler.CONTINUE
        if self._stopping is not None:
            decision = self._stopping.on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.CONTINUE and _DRIVERS[self._sweep_dir].holds(trial.trial_id, result):
            return str(TrialScheduler.NOOP)  # it waits inside of its report
        return decision


class SweepGenerator(SearchGenerator):
    """Asks the search for trials, so many at a time, while there is something left to spend.

    A restored one goes by the sweep as it is now: it may have got more trials, or another cluster.
    """

    def __init__(self, sweep_dir: str, search: Searcher, total: int, concurrent: int) -> None:
        super().__init__(ConcurrencyLimiter(search, max_concurrent=concurrent))
        self._sweep_dir = sweep_dir
        self._total = total
        self._concurrent = concurrent

    def next_trial(self) -> Any:
        driver = _DRIVERS[self._sweep_dir]
        return None if driver.ledger.ended or driver.budget.spent else super().next_trial()

    def is_finished(self) -> bool:
        """Also when the sweep has to end: with no trial open, Tune saves its state then, and leaves its loop. Otherwise
        it would ask for a trial for 600 s, and do nothing else."""
        return bool(_DRIVERS[self._sweep_dir].ledger.ended) or bool(super().is_finished())

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        super().save_to_dir(dirpath, session_str)
        keep(Path(dirpath), session_str, Path(self._sweep_dir))  # the list of trials was written just before
        driver = _DRIVERS[self._sweep_dir]
        driver.is_saved = bool(driver.ledger.ended)  # what it ends with is in it

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state({**state, "finished": False, "total_samples": self._total})
        self.searcher.max_concurrent = self._concurrent


def _written(path: Path) -> int | None:
    """When a file was last written, in ns; ``None`` if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _config_digest(tree: Mapping[str, Any], values: Mapping[str, Any], where: str) -> str:
    """Digest of the configuration ``tree`` of a trial, in which its ``values`` are.

    Raises:
        UserError: it is not valid, or has other values: they would be recorded and ranked, but not trained.
    """
    experiment = experiment_from(tree, where=where)
    for key, value in values.items():
        again = experiment_from(merge(as_dict(experiment), nested(key, value)), where=where)
        if again != experiment:
            raise UserError(f"{where} does not have {key}={value!r}: another searched key replaces the section")
    return digest(experiment)


def _reason(trial: Any, run_dir: Path) -> str:
    """One line for an error that Tune caught; the whole of it goes to ``error.txt`` in the trial's directory."""
    text = str(trial.get_error() or "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "its process died"
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / ERROR).write_text(text, encoding="utf-8")
    return f"{lines[-1][:300]} (details: {run_dir / ERROR})"
