"""Optuna's samplers, asked anew for every configuration.

A study is built from what was measured, and its sampler seeded with the sweep's seed and the configuration's position.
Nothing of Optuna has to be saved, and a restored sweep is asked the same question as the uninterrupted one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from sensorlab.cluster.search.propose import Outcome, Proposal
from sensorlab.cluster.sweep_config import Dimension, SweepConfig, encode_choice

_STATES = {"pending": TrialState.RUNNING, "complete": TrialState.COMPLETE, "failed": TrialState.FAIL}


class OptunaProposer:
    """``algorithm: optuna``, the tree-structured Parzen estimator (Bergstra et al., NIPS 2011)."""

    def __init__(self, sweep: SweepConfig) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep = sweep
        self._space = {key: distribution(dimension) for key, dimension in sweep.space.items()}

    def propose(self, history: Sequence[Outcome]) -> Proposal | None:
        direction = "maximize" if self._sweep.mode == "max" else "minimize"
        study = optuna.create_study(direction=direction, sampler=self._sampler(len(history)))
        study.add_trials([self._trial(outcome) for outcome in history])
        trial = study.ask()
        return Proposal({key: _suggest(trial, key, space) for key, space in self._space.items()})

    def _sampler(self, position: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence((self._sweep.seed, position)).generate_state(1)[0])
        with warnings.catch_warnings():  # constant_liar and multivariate are marked as experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Configurations that are still in training count as bad ones, so their neighbours are not proposed again.
            return optuna.samplers.TPESampler(seed=seed, multivariate=self._sweep.tpe.multivariate, constant_liar=True)

    def _trial(self, outcome: Outcome) -> FrozenTrial:
        values = dict(outcome.proposal.values)
        return create_trial(
            state=_STATES[outcome.state],
            value=outcome.value,
            params=values,
            distributions={key: self._space[key] for key in values},
        )


def _suggest(trial: optuna.Trial, key: str, space: BaseDistribution) -> Any:
    if isinstance(space, CategoricalDistribution):
        return trial.suggest_categorical(key, space.choices)
    if isinstance(space, IntDistribution):
        return trial.suggest_int(key, space.low, space.high, log=space.log)
    return trial.suggest_float(key, space.low, space.high, step=space.step, log=space.log)


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension in Optuna's terms."""
    if dimension.choice is not None:
        return CategoricalDistribution([encode_choice(value) for value in dimension.choice])
    if dimension.quniform is not None:
        low, high, quantum = dimension.quniform
        first, last = math.ceil(low / quantum), math.floor(high / quantum)  # Optuna counts quanta from the lower bound
        return FloatDistribution(first * quantum, last * quantum, step=quantum)
    integers = dimension.integer or dimension.loginteger
    if integers is not None:
        return IntDistribution(*integers, log=dimension.is_log)
    floats: Any = dimension.uniform or dimension.loguniform
    return FloatDistribution(*floats, log=dimension.is_log)
