"""A sweep in Ray Tune's terms."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ray import tune

from sensorlab.cluster.halving import HyperBand, SuccessiveHalving
from sensorlab.cluster.monitor import SweepCallback, SweepEnded, SweepGenerator, SweepScheduler, SweepStopper
from sensorlab.cluster.search.searcher import SweepSearch
from sensorlab.cluster.search.stopping import EarlyStopping, MedianStopping
from sensorlab.cluster.trainer import trial_resources
from sensorlab.cluster.trial import TrialPlan, run_trial
from sensorlab.cluster.tune_state import bring_back

if TYPE_CHECKING:
    from sensorlab.cluster.sweep import SweepPlan

_FOLDER = "tune"


def fit(plan: SweepPlan, trial_plan: TrialPlan, concurrent: int, resume: bool) -> None:
    """Run (or go on with) all trials; returns when the sweep has come to its end, was ended, or interrupted.

    An interrupt leaves the trials running, until this driver leaves the cluster.
    """

    def trial(values: dict[str, Any]) -> None:
        run_trial(trial_plan, values)

    trainable = tune.with_resources(trial, trial_resources(plan.experiment.resources, trial_plan.share))
    tuner = _tuner(plan, trainable, concurrent)
    state = plan.directory / _FOLDER
    if resume and bring_back(plan.directory, state):
        # The new tuner has left its parts in the directory: they are of the plan as it is now. The trials and what
        # was proposed come from Tune's state.
        tuner = tune.Tuner.restore(str(state), trainable, resume_unfinished=True, resume_errored=True)
    with contextlib.suppress(SweepEnded, KeyboardInterrupt):  # the ledger says why it ended
        tuner.fit()


def _tuner(plan: SweepPlan, trainable: Any, concurrent: int) -> tune.Tuner:
    sweep, directory, max_epochs = plan.sweep, str(plan.directory), plan.max_epochs
    search = SweepSearch(directory, sweep, plan.experiment.seed, max_epochs)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode=sweep.mode,
            search_alg=SweepGenerator(directory, search, plan.total_trials, concurrent),
            scheduler=SweepScheduler(directory, _early_stopping(plan)),
            num_samples=plan.total_trials,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=_FOLDER,
            storage_path=directory,
            stop=SweepStopper(directory),
            callbacks=[SweepCallback(directory)],
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            verbose=0,
        ),
    )


def _early_stopping(plan: SweepPlan) -> EarlyStopping | None:
    sweep, directory, max_epochs = plan.sweep, str(plan.directory), plan.max_epochs
    if max_epochs is None or not sweep.stops_early:
        return None
    repeats = sweep.seeds > 1
    if sweep.scheduler == "hyperband":
        return HyperBand(directory, sweep.hyperband, max_epochs, sweep.mode, repeats)
    if sweep.scheduler == "median":
        return MedianStopping(directory, sweep.median, max_epochs, sweep.mode, repeats)
    return SuccessiveHalving(directory, sweep.asha, max_epochs, sweep.mode, repeats)


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)
