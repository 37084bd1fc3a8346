"""The runs of a sweep in the store: one parent, one child per trial, every one of them ended properly.

The driver owns this. Everything is idempotent by sweep id and trial id, so a driver that died and was started again
finds its runs instead of making new ones.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sensorlab.errors import UserError
from sensorlab.runs.client import open_client
from sensorlab.runs.lineage import descent, lineage_lines
from sensorlab.runs.names import metric_name, param_values
from sensorlab.runs.outbox import stored_images
from sensorlab.runs.overview import describe
from sensorlab.runs.recorder import RunRecorder, RunStatus, spooled
from sensorlab.runs.store import Store
from sensorlab.runs.table import number
from sensorlab.runs.tags import FIDELITY_TAG, PARENT_TAG, PROTOCOL_TAG, ROLE_TAG, SWEEP_TAG, TRIAL_TAG
from sensorlab.runs.views import common_images, publish_sweep_view

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

_LEFTOVERS_S = 30.0  # for what all trials have left
BEFORE_FIRST_STEP = -1
"""Step of the placeholder point (NaN) that every run of a sweep starts with."""

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class TrialRun:
    """One trial as the store has it.

    Attributes:
        objective: best value of the sweep's objective over the trial's steps; NaN if it never reported one.
        objective_step: global step of that value; -1 without one.
        metrics: last value of every metric, by stored name.
        duration_s: from its creation to its end, or to its last metric while it runs.
    """

    run_id: str
    trial_id: str
    name: str
    status: str
    objective: float
    objective_step: int
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    duration_s: float
    protocol: str = field(default="")

    @property
    def level(self) -> int:
        """Of fidelity; 0 where a sweep has no levels."""
        return int(self.tags.get(FIDELITY_TAG, 0))


class SweepRuns:
    """The parent run of a sweep and its children.

    Args:
        store: from :func:`sensorlab.runs.store.open_store`.
        sweep_id: stable identity of the sweep; the same id finds the same parent again.
        name: name of the parent run.
        objective: metric that ranks the trials, as recorded.
        mode: "max" or "min".
        spool_dir: where the parent's points wait while the store is away; in the sweep's directory.
        params, tags: of the parent.
    """

    def __init__(
        self,
        store: Store,
        sweep_id: str,
        name: str,
        objective: str,
        mode: Mode,
        spool_dir: str | Path,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.store = store
        self.sweep_id = sweep_id
        self.objective = objective
        self.mode: Mode = mode
        self._client: MlflowClient = open_client(store.uri)
        self.parent_run_id = _find_or_create(
            *(self._client, store, {SWEEP_TAG: sweep_id, ROLE_TAG: "sweep"}, name),
            {**(tags or {}), "sensorlab.objective": metric_name(objective), "sensorlab.mode": mode},
            objective,
        )
        self._directory = Path(spool_dir).parent  # of the sweep; those of its trials lie below
        self.recorder = RunRecorder(store.uri, self.parent_run_id, spool_dir)
        self.recorder.log_params(params or {})

    def child(
        self,
        trial_id: str,
        name: str | None = None,
        params: Mapping[str, Any] | None = None,
        log_scaled: Collection[str] = (),
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Run id of a trial; created on the first call, set to RUNNING again on a later one.

        Args:
            params: the searched values only; constants belong to the configuration artifact.
            log_scaled: names in ``params`` that are searched on a log scale.
        """
        identity = {PARENT_TAG: self.parent_run_id, TRIAL_TAG: trial_id, ROLE_TAG: "trial"}
        run_id = _find_or_create(self._client, self.store, identity, name or trial_id, tags or {}, self.objective)
        run = self._client.get_run(run_id)
        from mlflow.entities import Param

        missing = {
            key: text for key, text in param_values(params or {}, log_scaled).items() if key not in run.data.params
        }
        if missing:
            self._client.log_batch(run_id, params=[Param(*item) for item in missing.items()], synchronous=True)
        if run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        return run_id

    def mirror_best(self, trial_id: str, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Put the best trial's metrics on the parent, so that the sweep's own row shows how far it is.

        Args:
            step: progress of the sweep, for example the number of results so far; must increase.
        """
        self.recorder.log(metrics, step)
        self.recorder.set_tags({"sensorlab.best_trial": trial_id, "sensorlab.best_run_id": run_id})

    def close_children(self, statuses: Mapping[str, RunStatus], default: RunStatus = "KILLED") -> dict[str, str]:
        """End every child that has not ended.

        Args:
            statuses: trial id to how it ended.
            default: for children that are not in ``statuses``.

        Returns:
            Trial id to the status set, for the children that had to be ended.
        """
        ended: dict[str, str] = {}
        for run in self._children():
            if run.info.status in ("RUNNING", "SCHEDULED"):
                trial_id = run.data.tags.get(TRIAL_TAG, "")
                ended[trial_id] = statuses.get(trial_id, default)
                self._client.set_terminated(run.info.run_id, status=ended[trial_id])
        return ended

    def deliver_leftovers(self, deadline_s: float = _LEFTOVERS_S) -> int:
        """Send what trials have left in the spools of the sweep's directory: the store was away when they ended, or a
        stopped one was ended before it had sent everything. Call it when no trial runs any more.

        Returns:
            Number of runs of which something still waits (``sensorlab runs deliver`` sends it later).
        """
        deadline, waiting = time.monotonic() + deadline_s, 0
        for spool_dir, run_id in spooled(self._directory):
            if run_id == self.parent_run_id:  # has a recorder
                continue
            left_s = deadline - time.monotonic()
            try:
                if left_s > 0 and RunRecorder(self.store.uri, run_id, spool_dir, reopen=False).close(deadline_s=left_s):
                    continue
            except UserError:  # its process lives, and sends it itself
                pass
            waiting += 1
        return waiting

    def trials(self) -> list[TrialRun]:
        """Every child, best first (see :func:`rank`)."""
        return rank([self._trial(run) for run in self._children()], self.mode)

    def publish_view(self) -> str:
        """Prepare the page that compares the trials so far and return its address; call again as the sweep goes on.

        The description of the sweep's own run then lists them, best first.
        """
        self.deliver_leftovers()
        trials = self.trials()
        listed = [(trial.name, trial.run_id, f"{number(trial.objective)}, {trial.status.lower()}") for trial in trials]
        line = descent(self._client, self._client.get_run(trials[0].run_id)) if trials else []
        lineage = {"lineage of the best": lineage_lines(line)} if len(line) > 1 else {}
        describe(self._client, self.parent_run_id, {"trials": listed, **lineage})
        with_images = [trial for trial in trials if "mlflow.loggedImages" in trial.tags][:20]
        images = common_images([stored_images(self._client, trial.run_id) for trial in with_images])
        params = [trial.params for trial in trials]
        return publish_sweep_view(self.store, self.parent_run_id, self.objective, self.mode, params, images)

    def close(self, status: RunStatus, deadline_s: float = 30.0) -> bool:
        """End the parent run; False if its last points are still in the spool."""
        return self.recorder.close(status, deadline_s)

    def _children(self) -> list[Run]:
        return _search(self._client, self.store, {PARENT_TAG: self.parent_run_id})

    def _trial(self, run: Run) -> TrialRun:
        history = self._client.get_metric_history(run.info.run_id, metric_name(self.objective))
        points = [point for point in history if math.isfinite(point.value)]
        pick = max if self.mode == "max" else min
        best = pick(points, key=lambda point: point.value) if points else None
        end = run.info.end_time or max((m.timestamp for m in run.data.to_proto().metrics), default=run.info.start_time)
        return TrialRun(
            run_id=run.info.run_id,
            trial_id=run.data.tags.get(TRIAL_TAG, ""),
            name=run.info.run_name or "",
            status=run.info.status,
            objective=best.value if best else math.nan,
            objective_step=best.step if best else -1,
            metrics=dict(run.data.metrics),
            params=dict(run.data.params),
            tags=dict(run.data.tags),
            duration_s=max(0.0, (end - run.info.start_time) / 1000),
            protocol=run.data.tags.get(PROTOCOL_TAG, ""),
        )


def rank(trials: Collection[TrialRun], mode: Mode) -> list[TrialRun]:
    """Best objective first, then trials without one, each by trial id.

    Levels of fidelity do not compare: :func:`leading_level` comes first, then the others, highest first. Trials whose
    metrics follow another protocol than most of their level come last and a warning names them: their numbers do not
    compare (see :mod:`sensorlab.metrics.base`).
    """
    measured = [trial for trial in trials if not math.isnan(trial.objective)]
    odd: list[str] = []
    for level in {trial.level for trial in measured}:
        own = [trial for trial in measured if trial.level == level]
        protocols = [trial.protocol for trial in own]
        common = max(dict.fromkeys(protocols), key=protocols.count)
        odd += [trial.trial_id for trial in own if trial.protocol != common]
    if odd:
        named = ", ".join(sorted(odd))
        logger.warning("trials %s measured with another protocol than the rest; they are listed last", named)
    first = leading_level((trial.level, trial.status) for trial in measured)
    sign = -1.0 if mode == "max" else 1.0

    def key(trial: TrialRun) -> tuple[bool, bool, bool, int, float, str]:
        missing, is_odd = math.isnan(trial.objective), trial.trial_id in odd
        value = 0.0 if missing else sign * trial.objective
        return missing, is_odd, trial.level != first, -trial.level, value, trial.trial_id

    return sorted(trials, key=key)


def leading_level(levels: Iterable[tuple[int, str]]) -> int:
    """The highest level of (level, status) at which a trial has finished; without one the highest."""
    known = list(levels)
    finished = [level for level, status in known if status == "FINISHED"]
    return max(finished or [level for level, _ in known], default=0)


def _find_or_create(
    client: MlflowClient, store: Store, identity: Mapping[str, str], name: str, tags: Mapping[str, str], objective: str
) -> str:
    found = _search(client, store, identity)
    if found:
        return str(found[0].info.run_id)
    from mlflow.entities import Metric

    run = client.create_run(store.experiment_id, tags={**tags, **identity}, run_name=name)
    # MLflow's comparison page opens on the metric that was stored first. A point "not measured yet", before any step,
    # makes that the objective; charts leave NaN out, tables sort it last.
    placeholder = Metric(metric_name(objective), math.nan, run.info.start_time, BEFORE_FIRST_STEP)
    client.log_batch(run.info.run_id, metrics=[placeholder], synchronous=True)
    return str(run.info.run_id)


def _search(client: MlflowClient, store: Store, tags: Mapping[str, str]) -> list[Run]:
    """All active runs of the experiment with these tags, oldest first."""
    clauses = []
    for name, value in tags.items():
        if "'" in value:
            raise ValueError(f"tag {name}: quotes are not allowed in {value!r}")
        clauses.append(f"tags.`{name}` = '{value}'")
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            *([store.experiment_id], " and ".join(clauses)),
            order_by=["attributes.start_time ASC"],
            max_results=500,
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return runs
