"""How much each searched key matters: functional ANOVA (Hutter et al., ICML 2014), as Optuna computes it.

A random forest learns the objective from the values; the importance of a key is the share of the forest's variance
that the key explains alone, over the whole searched space. What that is not: a causal effect, a direction (the rank
correlation beside it gives that), or anything about keys that were not searched.

With few trials a forest finds structure in noise. Two things show how much: the range of each importance when a
quarter of the trials is left out at random, and a key of random numbers (``CONTROL``) that is added to the values:
whatever is not clearly above it means nothing.

Trials that a scheduler stopped have the objective of a short training. Where there are some, every trial's value after
the same number of epochs is used instead, so that budget is not taken for quality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sensorlab.report.content import Dimension, Sweep, Trial, text_key
from sensorlab.report.ranking import Ranking, varying

CONTROL = "(random numbers)"
MIN_TRIALS = 6
ENOUGH_PER_KEY = 10  # trials per searched key from which the shares are usually stable
_TREES = 16
_MAX_TRIALS = 200  # a forest's cost grows with the square of this


@dataclass(frozen=True)
class Importance:
    """Share of the variance that a key explains, between the smallest and the largest share of the resamples.

    ``direction``: Spearman's rank correlation with the objective; ``None`` for keys without an order.
    """

    key: str
    share: float
    low: float
    high: float
    direction: float | None


@dataclass(frozen=True)
class Importances:
    """``items`` is empty, and ``reason`` says why, where nothing can be said. ``epoch``: of the objective's values."""

    items: tuple[Importance, ...] = ()
    num_trials: int = 0
    epoch: float | None = None
    reason: str = ""


def importances(sweep: Sweep, ranking: Ranking, seed: int = 0) -> Importances:
    """Importance of every searched key for the trials of one ranking, largest first, with ``CONTROL`` among them."""
    keys = [key for key in varying(ranking.trials) if _differs(ranking.trials, key)]
    trials = [trial for trial in ranking.trials if all(key in trial.values for key in keys)][:_MAX_TRIALS]
    if not keys:
        return Importances(reason="no searched key differs between the trials")
    if len(trials) < MIN_TRIALS:
        return Importances(reason=f"{len(trials)} trials with an objective; at least {MIN_TRIALS} are needed")
    epoch = _common_epoch(trials)
    objectives = np.array([_value_at(trial, epoch) for trial in trials])
    if np.ptp(objectives) == 0:
        return Importances(reason="all trials have the same objective")
    columns = {key: [trial.values[key] for trial in trials] for key in keys}
    rng = np.random.default_rng(seed)
    columns[CONTROL] = list(rng.random(len(trials)))
    dimensions = {key: _dimension(sweep, key, column) for key, column in columns.items()}
    whole = _shares(columns, dimensions, objectives, seed)
    resampled = []
    for _ in range(8 if len(trials) <= 60 else 3):
        kept = np.sort(rng.permutation(len(trials))[: max(4, round(len(trials) * 0.75))])
        part = {key: [column[i] for i in kept] for key, column in columns.items()}
        resampled.append(_shares(part, dimensions, objectives[kept], seed))
    items = [
        Importance(
            key,
            whole[key],
            min(shares[key] for shares in (whole, *resampled)),
            max(shares[key] for shares in (whole, *resampled)),
            _direction(columns[key], objectives) if key != CONTROL else None,
        )
        for key in columns
    ]
    return Importances(tuple(sorted(items, key=lambda item: -item.share)), len(trials), epoch)


def _differs(trials: Sequence[Trial], key: str) -> bool:
    return len({text_key(trial.values[key]) for trial in trials if key in trial.values}) > 1


def _common_epoch(trials: Sequence[Trial]) -> float | None:
    """The last epoch at which every trial was evaluated, if they did not all train equally long."""
    if len({trial.epoch for trial in trials}) == 1:
        return None
    common = set.intersection(*({point.epoch for point in trial.curve} for trial in trials))
    return max(common, default=None)


def _value_at(trial: Trial, epoch: float | None) -> float:
    if epoch is None:
        return float(trial.objective or 0.0)
    return next(point.value for point in trial.curve if point.epoch == epoch)


def _dimension(sweep: Sweep, key: str, column: Sequence[Any]) -> Dimension:
    """The searched range, or one that holds the values where the plan does not tell (or no longer fits)."""
    planned = sweep.dimensions.get(key)
    if not all(_is_number(value) for value in column):
        return Dimension(key, choices=_distinct(column))
    low, high = min(column), max(column)
    if planned is not None and planned.choices:
        return Dimension(key, choices=_distinct(column))
    if planned is not None and planned.bounds is not None:
        low, high = min(low, planned.bounds[0]), max(high, planned.bounds[1])
    return Dimension(key, (), (float(low), float(high)), is_log=planned is not None and planned.is_log and low > 0)


def _distinct(column: Sequence[Any]) -> tuple[str, ...]:
    return tuple(sorted({text_key(value) for value in column}))


def _shares(
    columns: Mapping[str, Sequence[Any]], dimensions: Mapping[str, Dimension], objectives: np.ndarray, seed: int
) -> dict[str, float]:
    """One forest's importances; 0 for keys that are constant in this part of the trials."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study()
        distributions = {key: _distribution(dimension) for key, dimension in dimensions.items()}
        for index, objective in enumerate(objectives):
            params = {
                key: text_key(column[index]) if dimensions[key].choices else float(column[index])
                for key, column in columns.items()
            }
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=distributions, value=float(objective))
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=seed)
        found = evaluator.evaluate(study)  # not normalised: shares of the whole variance
    finally:
        optuna.logging.set_verbosity(level)
    shares = {key: float(found.get(key, 0.0)) for key in columns}
    return {key: share if math.isfinite(share) else 0.0 for key, share in shares.items()}


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if dimension.bounds is None:
        return CategoricalDistribution(dimension.choices)
    return FloatDistribution(*dimension.bounds, log=dimension.is_log)


def _direction(column: Sequence[Any], objectives: np.ndarray) -> float | None:
    if not all(_is_number(value) for value in column):
        return None
    correlation = np.corrcoef(_ranks(np.array(column, dtype=float)), _ranks(objectives))[0, 1]
    return float(correlation) if math.isfinite(correlation) else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """(N,) float64: places in ascending order from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
