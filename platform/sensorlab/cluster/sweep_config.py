"""The ``sweep`` section of an experiment file: what is searched, how, and for how long.

    sweep:
      objective: val/iou
      num_trials: 12
      space:
        optim.lr: {loguniform: [1.0e-4, 3.0e-3]}
        task.encoder: {choice: [res18, res50]}

The space is checked against the experiment's schema before anything starts.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from sensorlab.cluster.search.dimension import Dimension, Multiples
from sensorlab.cluster.search.options import (
    AshaConfig,
    BohbConfig,
    EvolutionConfig,
    FidelityConfig,
    HyperBandConfig,
    MedianConfig,
    PopulationConfig,
    TpeConfig,
)
from sensorlab.cluster.search.space import combinations, parents_first, same
from sensorlab.config import StrictModel, apply_overrides, canonical_json, merge, nested, parse_yaml, validate
from sensorlab.errors import UserError

_SPACE_PREFIX = "sweep.space."


class SweepConfig(StrictModel):
    """A search over an experiment."""

    space: dict[str, Dimension] = Field(min_length=1)  # dotted key of the experiment -> values
    algorithm: Literal["random", "grid", "optuna", "cmaes", "bohb", "evolution", "pbt", "pb2"] = "random"  # optuna: TPE
    scheduler: Literal["asha", "hyperband", "median", "none"] = "asha"
    asha: AshaConfig = AshaConfig()
    hyperband: HyperBandConfig = HyperBandConfig()
    median: MedianConfig = MedianConfig()
    tpe: TpeConfig = TpeConfig()
    evolution: EvolutionConfig = EvolutionConfig()
    bohb: BohbConfig = BohbConfig()
    population: PopulationConfig = PopulationConfig()
    fidelity: FidelityConfig | None = None  # null: the scheduler compares trials by their epochs
    num_trials: int = Field(default=8, ge=1)  # configurations; pbt: members; ignored by grid, which runs all there are
    seeds: int = Field(default=1, ge=1)  # trials of each configuration: with the experiment's seed, seed + 1, ...
    max_concurrent: int | None = Field(default=None, ge=1)  # None: as many as fit
    objective: str = "val/iou"
    mode: Literal["min", "max"] = "max"
    seed: int = 0
    time_budget_s: float | None = Field(
        default=None, gt=0
    )  # of all drivers of the sweep; no new results after this time, running trials are stopped
    epoch_budget: int | None = Field(default=None, ge=1)  # epochs of all trials together; then as with time_budget_s
    max_failures: int = Field(default=2, ge=0)  # restarts of one trial after a crash; it continues from its checkpoint

    @model_validator(mode="after")
    def _algorithm_fits(self) -> SweepConfig:
        if self.algorithm == "grid":
            for key, dimension in self.space.items():
                if dimension.choice is None:
                    raise ValueError(f"algorithm grid needs 'choice' for every key; {key} has a range")
        if self.algorithm == "cmaes":
            ranges = [key for key, dim in self.space.items() if dim.choice is None and not dim.when]
            if len(ranges) < 2:
                raise ValueError(
                    "algorithm cmaes needs two ranges or more without 'when'; found " + (", ".join(ranges) or "none")
                )
        for key in self.evolution.gains:
            if key not in self.space:
                raise ValueError(f"evolution.gains: {key} is not searched")
        if self.evolution.gains and not any(self.evolution.gains.get(key, 1.0) > 0 for key in self.space):
            raise ValueError(
                "evolution.gains: nothing can mutate; leave out one key at least, or give it a gain above 0"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> SweepConfig:
        if self.mode == "max" and self.objective.rpartition("/")[2] in ("loss", "total_loss"):
            raise ValueError(f"objective {self.objective} is better where it is smaller: set sweep.mode=min")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> SweepConfig:
        if self.is_population:
            for key, value in (("scheduler", "none"), ("seeds", 1), ("fidelity", None)):
                if getattr(self, key) != value:
                    raise ValueError(f"algorithm {self.algorithm} replaces members of its own: set sweep.{key}={value}")
            if self.num_trials < 2:
                raise ValueError(f"algorithm {self.algorithm} needs a population: num_trials of 2 or more")
        if self.algorithm == "pb2":
            if all(dimension.choice is not None for dimension in self.space.values()):
                raise ValueError("algorithm pb2 searches ranges, and every key has 'choice': set sweep.algorithm=pbt")
            for key in self.conditions:
                raise ValueError(f"algorithm pb2 searches all ranges together: take 'when' out of {key}, or choose pbt")
        if self.algorithm == "bohb" and self.scheduler not in ("asha", "hyperband"):
            raise ValueError("algorithm bohb learns from rungs: set sweep.scheduler=hyperband (or asha)")
        if self.fidelity is not None:
            if self.scheduler != "asha" or self.algorithm == "bohb":
                raise ValueError(
                    "fidelity: configurations are promoted along its values, instead of being stopped along their "
                    "epochs: set sweep.scheduler=asha and another algorithm than bohb"
                )
            for key in self.space:
                if overlap(key, self.fidelity.key):
                    raise ValueError(f"fidelity.key: {self.fidelity.key} cannot have levels, since {key} is searched")
        return self

    @model_validator(mode="after")
    def _keys_fit(self) -> SweepConfig:
        if self.seeds > 1 and "seed" in self.space:
            raise ValueError(
                f"seed is searched, and sweep.seeds={self.seeds} repeats every configuration with other seeds; "
                "give one of the two"
            )
        for first, second in itertools.pairwise(sorted(self.space)):
            if second.startswith(f"{first}."):
                raise ValueError(f"{second} lies inside of {first}, which is searched as a whole")
        for key, conditions in self.conditions.items():
            for parent, value in conditions.items():
                choices = self.space[parent].choice if parent in self.space else None
                if choices is None:
                    raise ValueError(f"{key}: when names {parent}, which is not searched with 'choice'")
                if not any(same(value, choice) for choice in choices):
                    raise ValueError(f"{key}: when {parent} is {value!r}, which is none of its choices {list(choices)}")
        parents_first(self.space, self.conditions)
        return self

    @property
    def conditions(self) -> dict[str, Mapping[str, Any]]:
        """Conditional key -> what it depends on."""
        return {key: dimension.when for key, dimension in self.space.items() if dimension.when}

    @property
    def total_configurations(self) -> int:
        if self.algorithm != "grid":
            return self.num_trials
        choices = {key: dimension.choice or () for key, dimension in self.space.items()}
        return len(combinations(choices, self.conditions))

    def total_trials(self, max_epochs: int | None) -> int:
        """Trials of the whole sweep, if none fails; ``max_epochs``: of the experiment, which a population divides."""
        if self.is_population:
            return self.num_trials * math.ceil((max_epochs or 1) / self.population.generation)
        return sum(self.level_sizes) * self.seeds

    @property
    def level_sizes(self) -> list[int]:
        """Configurations at each level of the fidelity, if none fails; without one they are all at one level."""
        sizes = [self.total_configurations]
        for _ in (self.fidelity.values if self.fidelity else ())[1:]:
            sizes.append(self.asha.survivors(sizes[-1]))
        return sizes

    def describe(self, max_epochs: int | None) -> str:
        """The trials of the sweep in words; ``max_epochs``: as above."""
        trials = f"{self.total_trials(max_epochs)} trials"
        if self.is_population:
            return f"{self.num_trials} members, {trials}, one for each generation of a member"
        if self.seeds > 1:
            trials = f"{self.total_configurations} configurations with {self.seeds} seeds each, {trials}"
        if self.fidelity is not None:
            levels = zip(self.level_sizes, self.fidelity.values, strict=True)
            parts = ", ".join(f"{size} at {canonical_json(value)}" for size, value in levels)
            trials = f"{trials} (configurations by {self.fidelity.key}: {parts})"
        return trials

    @property
    def stops_early(self) -> bool:
        """Whether the scheduler compares trials at the same epochs and stops some of them."""
        return self.scheduler != "none" and self.fidelity is None

    @property
    def is_population(self) -> bool:
        """Whether trials are generations of members, which hand their checkpoints on."""
        return self.algorithm in ("pbt", "pb2")

    @property
    def members(self) -> int | None:
        """Size of the population; ``None`` where there is none."""
        return self.num_trials if self.is_population else None


def split_overrides(
    tree: Mapping[str, Any], overrides: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Apply command-line overrides to an experiment file with a ``sweep`` section.

    ``sweep.space.optim.lr={uniform: [0.1, 0.2]}`` replaces the values of one searched key (whose name contains dots),
    ``sweep.space.optim.lr=null`` takes it out of the search; so does ``optim.lr: null`` in a file's own space.

    Returns:
        (experiment tree, sweep tree, dotted keys that the overrides set in the experiment).

    Raises:
        UserError: no ``sweep`` section, or a malformed override.
    """
    plain = [item for item in overrides if not item.startswith(_SPACE_PREFIX)]
    experiment = apply_overrides(tree, plain)
    if not isinstance(experiment.get("sweep"), Mapping):
        raise UserError("the experiment file has no 'sweep' section; train_bev.py runs a single experiment")
    sweep = dict(experiment.pop("sweep"))
    space = sweep.get("space") or {}
    if not isinstance(space, Mapping):
        raise UserError(f"sweep.space: expected a mapping of dotted keys to their values, found {space!r}")
    space = {key: values for key, values in space.items() if values is not None}  # a file takes keys of its base out
    for item in overrides:
        if item.startswith(_SPACE_PREFIX):
            key, equals, text = item[len(_SPACE_PREFIX) :].partition("=")
            if not equals or not key:
                raise UserError(f"override {item!r}: expected {_SPACE_PREFIX}KEY={{choice: [...]}} or =null")
            value = parse_yaml(text)
            if value is None:
                space.pop(key, None)
            else:
                space[key] = value
    sweep["space"] = space
    fixed = [item.partition("=")[0] for item in plain if not item.startswith("sweep.")]
    return experiment, sweep, fixed


def needed_for(key: str, conditions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values that other searched keys have wherever ``key`` is searched."""
    needed: dict[str, Any] = {}
    for parent, value in conditions.get(key, {}).items():
        needed |= needed_for(parent, conditions) | {parent: value}
    return needed


def overlap(key: str, other: str) -> bool:
    """Whether one of two dotted keys is the other one, or lies inside of it."""
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


MAY_CHANGE = ("sweep.time_budget_s", "sweep.epoch_budget", "sweep.num_trials")
"""What a sweep that is resumed may be given anew: how much is tried, not what, nor how it is judged."""


def with_more(sweep: SweepConfig, overrides: Iterable[str]) -> SweepConfig:
    """The sweep with what the command line of ``--resume`` changes.

    Raises:
        UserError: not one of ``MAY_CHANGE``, or a number of trials that this sweep cannot change to.
    """
    overrides = list(overrides)
    for item in overrides:
        if item.partition("=")[0] not in MAY_CHANGE:
            raise UserError(
                f"{item}: --resume goes on with the sweep as it was started, so that all of its trials compare; only "
                f"{', '.join(MAY_CHANGE)} may change. For anything else start a new sweep"
            )
    tree = apply_overrides({"sweep": sweep.model_dump(mode="json")}, overrides)
    changed = load_sweep(tree["sweep"])
    if changed.num_trials != sweep.num_trials:
        _refuse_new_count(sweep, changed.num_trials)
    return changed


def _refuse_new_count(sweep: SweepConfig, count: int) -> None:
    reason = ""
    if sweep.algorithm == "grid":
        reason = "a grid runs every combination whatever it is"
    elif sweep.is_population:
        reason = "it is the size of the population, whose members compete since the first generation"
    elif sweep.fidelity is not None:
        reason = "it decides how many configurations are promoted, and some were by the old number"
    elif count < sweep.num_trials:
        reason = f"it was {sweep.num_trials}: what has been proposed stays. To try less, set sweep.epoch_budget"
    if reason:
        raise UserError(f"sweep.num_trials={count} cannot be given to this sweep: {reason}")


def resolve(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment of a trial: ``base`` with the sampled values put in.

    The values are put together first: the ``name`` of a section among them drops keys of ``base``, and none of theirs.
    """
    together: dict[str, Any] = {}
    for key, value in values.items():
        together = merge(together, nested(key, value))
    return merge(base, together)


def log_scaled(sweep: SweepConfig) -> tuple[str, ...]:
    """Keys that are searched on a logarithmic scale."""
    return tuple(key for key, dimension in sweep.space.items() if dimension.is_log)


def load_sweep(sweep: Mapping[str, Any]) -> SweepConfig:
    """The typed ``sweep`` section. Raises ``UserError``."""
    for key, spec in (sweep.get("space") or {}).items() if isinstance(sweep.get("space"), Mapping) else ():
        _refuse_shape(key, spec)
    return validate(SweepConfig, dict(sweep), "sweep")


def _refuse_shape(key: str, spec: Any) -> None:
    """Explain what is no dimension at all."""
    where = f"sweep.space.{key}"
    if isinstance(spec, list):
        raise UserError(
            f"{where}: found the list {spec!r}; say what it means: {{choice: {spec!r}}}, or bounds as in "
            "{uniform: [0, 1]} or {loguniform: [1e-4, 1e-2]}"
        )
    if not isinstance(spec, Mapping):
        raise UserError(f"{where}: found {spec!r}; a single value belongs outside of sweep.space, as {key}: {spec!r}")
    if spec and all(isinstance(value, Mapping) and name not in Dimension.model_fields for name, value in spec.items()):
        raise UserError(f"{where}: searched keys are written with dots: {', '.join(f'{key}.{name}' for name in spec)}")


# Tune and Optuna handle scalars well; a list or a mapping among the choices travels as JSON text behind this mark.
_JSON_MARK = "json:"


def encode_choice(value: Any) -> Any:
    return f"{_JSON_MARK}{canonical_json(value)}" if isinstance(value, list | tuple | Mapping) else value


def decode_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sampled values as plain Python data, sorted by key; the inverse of :func:`encode_choice`."""
    decoded: dict[str, Any] = {}
    for key in sorted(values):
        value = values[key]
        if isinstance(value, str) and value.startswith(_JSON_MARK):
            value = json.loads(value[len(_JSON_MARK) :])
        elif hasattr(value, "item"):  # numpy scalars of the samplers
            value = value.item()
        decoded[key] = value
    return decoded


def tune_space(sweep: SweepConfig) -> dict[str, Any]:
    """The search space in Tune's terms, whose draws the random search makes."""
    from ray import tune

    space: dict[str, Any] = {}
    for key, dimension in sweep.space.items():
        if dimension.choice is not None:
            values = [encode_choice(value) for value in dimension.choice]
            space[key] = tune.choice(values)
        elif dimension.uniform is not None:
            space[key] = tune.uniform(*dimension.uniform)
        elif dimension.loguniform is not None:
            space[key] = tune.loguniform(*dimension.loguniform)
        elif dimension.integer is not None:
            space[key] = tune.randint(dimension.integer[0], dimension.integer[1] + 1)
        elif dimension.loginteger is not None:
            space[key] = tune.lograndint(dimension.loginteger[0], dimension.loginteger[1] + 1)
        else:
            space[key] = Multiples(dimension)
    return space
