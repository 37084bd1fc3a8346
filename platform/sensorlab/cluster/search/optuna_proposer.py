"""Optuna's samplers, asked anew for every configuration.

A study is built from what was measured, and its sampler seeded with the sweep's seed and the configuration's position.
Nothing of Optuna has to be saved, and a restored sweep is asked the same question as the uninterrupted one.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from sensorlab.cluster.search.propose import Outcome, Proposal
from sensorlab.cluster.search.space import is_active, parents_first
from sensorlab.cluster.sweep_config import Dimension, SweepConfig, decode_values, encode_choice
from sensorlab.errors import UserError

_STATES = {"pending": TrialState.RUNNING, "complete": TrialState.COMPLETE, "failed": TrialState.FAIL}


class OptunaProposer:
    """The tree-structured Parzen estimator (Bergstra et al., NIPS 2011) and CMA-ES.

    CMA-ES (Hansen & Ostermeier, Evolutionary Computation 9, 2001) moves in the ranges that are always searched;
    choices and conditional dimensions are drawn at random beside it. Its state is kept in the notes of the proposals.
    """

    def __init__(self, sweep: SweepConfig) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it warns of choices, which cmaes draws at random
        self._sweep = sweep
        order = parents_first(sweep.space, sweep.conditions)
        self._space = {key: distribution(sweep.space[key]) for key in order}

    def propose(self, history: Sequence[Outcome]) -> Proposal | None:
        direction = "maximize" if self._sweep.mode == "max" else "minimize"
        study = optuna.create_study(direction=direction, sampler=self._sampler(len(history)))
        study.add_trials([self._trial(outcome) for outcome in history])
        trial = study.ask()
        values: dict[str, Any] = {}
        for key, space in self._space.items():
            if is_active(key, decode_values(values), self._sweep.conditions):
                values[key] = _value(_suggest(trial, key, space), self._sweep.space[key])
        return Proposal(values, dict(study.trials[trial.number].system_attrs))

    def _sampler(self, position: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence((self._sweep.seed, position)).generate_state(1)[0])
        if self._sweep.algorithm == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed)
        multivariate = self._sweep.tpe.multivariate
        with warnings.catch_warnings():  # constant_liar, multivariate and group are marked as experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Configurations that are still in training count as bad ones, so their neighbours are not proposed again.
            return optuna.samplers.TPESampler(
                seed=seed,
                constant_liar=True,
                multivariate=multivariate,
                group=multivariate and bool(self._sweep.conditions),  # a model of its own for each set of active keys
            )

    def _trial(self, outcome: Outcome) -> FrozenTrial:
        values = outcome.proposal.values
        return create_trial(
            state=_STATES[outcome.state],
            value=outcome.value,
            params={key: _parameter(value, self._sweep.space[key]) for key, value in values.items()},
            distributions={key: self._space[key] for key in values},
            system_attrs=dict(outcome.proposal.notes),
        )


def check_available(sweep: SweepConfig) -> None:
    """Raise ``UserError`` if what the algorithm needs is not installed."""
    if sweep.algorithm == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise UserError(
            "sweep.algorithm=cmaes needs the package 'cmaes', which is not installed: pip install 'sensorlab[cmaes]'"
        )


def _suggest(trial: optuna.Trial, key: str, space: BaseDistribution) -> Any:
    if isinstance(space, CategoricalDistribution):
        return trial.suggest_categorical(key, space.choices)
    if isinstance(space, IntDistribution):
        return trial.suggest_int(key, space.low, space.high, log=space.log)
    return trial.suggest_float(key, space.low, space.high, log=space.log)


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension in Optuna's terms; of a quantised range, its indices: Optuna has no steps on logarithmic scales."""
    if dimension.choice is not None:
        return CategoricalDistribution([encode_choice(value) for value in dimension.choice])
    if dimension.quantum is not None:
        return IntDistribution(dimension.indices[0], dimension.indices[-1], log=dimension.is_log)
    if dimension.is_integer:
        return IntDistribution(*dimension.bounds, log=dimension.is_log)
    return FloatDistribution(*dimension.bounds, log=dimension.is_log)


def _value(parameter: Any, dimension: Dimension) -> Any:
    """The value that a parameter of Optuna's stands for."""
    return parameter if dimension.quantum is None else dimension.multiple(parameter)


def _parameter(value: Any, dimension: Dimension) -> Any:
    """The inverse of :func:`_value`."""
    return value if dimension.quantum is None else round(value / dimension.quantum)
