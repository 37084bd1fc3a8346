"""Options of the algorithms that propose configurations and of the schedulers that stop trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, PositiveFloat, model_validator

from sensorlab.config import StrictModel, canonical_json


class AshaConfig(StrictModel):
    """Asynchronous successive halving: a trial below the top 1/reduction of its rung is stopped."""

    grace_epochs: int = Field(default=1, ge=1)  # no trial is stopped before
    reduction: float = Field(default=3.0, gt=1.0)  # rungs are at grace_epochs * reduction^k

    def survivors(self, count: int) -> int:
        """Of ``count`` (at least one) that are compared with each other at one time, how many go on."""
        return max(1, int(count / self.reduction))


class HyperBandConfig(AshaConfig):
    """Asynchronous successive halving in brackets: each one leaves out one rung more, the last one has none."""


class MedianConfig(StrictModel):
    """A trial is stopped whose best objective is worse than the median of the others' means up to the same epoch."""

    grace_epochs: int = Field(default=1, ge=1)  # no trial is stopped before
    min_trials: int = Field(default=3, ge=1)  # others that got as far; with fewer no trial is stopped


class TpeConfig(StrictModel):
    """Tree-structured Parzen estimator: ``algorithm: optuna``."""

    multivariate: bool = False  # models the searched keys jointly instead of each by itself


class EvolutionConfig(StrictModel):
    """Mutants of the best configurations, as YOLOv5 evolves its hyperparameters: ``algorithm: evolution``."""

    initial: int = Field(default=5, ge=1)  # configurations that are drawn at random first
    parents: int = Field(default=5, ge=1)  # the best so many may have offspring
    mutation_probability: float = Field(default=0.8, gt=0, le=1)  # of each number
    sigma: float = Field(default=0.2, gt=0)  # scale of the mutations, relative to the value
    choice_probability: float = Field(default=0.2, ge=0, le=1)  # that a choice changes into another
    gains: Mapping[str, float] = {}  # searched key -> factor of sigma (1); 0: never mutated


class PopulationConfig(StrictModel):
    """Population based training: ``algorithm: pbt`` or ``pb2``. ``num_trials`` is the size of the population.

    All members train for a generation; then the worst go on from the checkpoints of the best, with other values.
    """

    generation: int = Field(default=1, ge=1)  # epochs between two exchanges
    quantile: float = Field(default=0.25, gt=0, le=0.5)  # share that is replaced, and share of the donors
    resample_probability: float = Field(default=0.25, ge=0, le=1)  # pbt: a value is drawn anew instead of perturbed
    factors: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)  # pbt: of a number; choices move to a neighbour


class BohbConfig(StrictModel):
    """Bayesian optimisation with HyperBand's rungs: ``algorithm: bohb``."""

    random_fraction: float = Field(default=0.33, ge=0, lt=1)  # of the configurations are drawn at random
    top_fraction: float = Field(default=0.15, gt=0, lt=1)  # of a rung counts as good
    min_points: int | None = Field(default=None, ge=2)  # good ones at least; two more make a model; null: keys + 1
    candidates: int = Field(default=64, ge=1)  # drawn from the model of the good; the most promising is proposed
    bandwidth_factor: float = Field(default=3.0, gt=0)  # widens the kernels that candidates are drawn from


class FidelityConfig(StrictModel):
    """What cheap trials have less of: a key of the experiment, other than its epochs.

    Every configuration starts with the first value; of those that ran with one value, the best ``1 / asha.reduction``
    run again with the next one.
    """

    key: str  # data.train_fraction, task.image.size, task.lidar.sweeps, ...
    values: tuple[Any, ...] = Field(min_length=2)  # cheapest first; the last one is what the search is about

    @model_validator(mode="after")
    def _all_different(self) -> FidelityConfig:
        if len({canonical_json(value) for value in self.values}) < len(self.values):
            raise ValueError("values lists a value twice")
        return self

    def level(self, trial: Mapping[str, Any]) -> int:
        """Position of the value that a trial with these values (dotted key to value) has, 0 for the cheapest."""
        return [canonical_json(value) for value in self.values].index(canonical_json(trial[self.key]))
