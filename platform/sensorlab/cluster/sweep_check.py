"""Whether a search fits to its experiment: asked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sensorlab.cluster.sweep_config import SweepConfig, needed_for, overlap, resolve
from sensorlab.config import StrictModel, flatten, merge, nested
from sensorlab.errors import UserError

# Keys that a trial cannot have a value of its own for, and why: whoever searched them would compare equal trials.
_COMMON_TO_ALL = {
    "name": "it is the first part of the sweep's name",
    "output_dir": "all trials of a sweep lie in one directory",
    "data.path": "the dataset is found once, before the first trial, and is the same for all",
    "data.prepare": "the dataset is found once, before the first trial, and is the same for all",
    "resources": "what a trial occupies is reserved from the experiment's own values, before its values are drawn",
    "tracking": "all trials of a sweep are recorded in one store, under one experiment",
    "eval.metric": "trials are compared by sweep.objective, which also chooses their best checkpoint",
    "eval.mode": "trials are compared by sweep.objective in the direction of sweep.mode",
    "checkpoint": "what is saved, and how often, does not change what is trained",
    "train.until": "the sweep itself divides trainings into parts",
    "train.fork": "the sweep itself lets trials go on from each other's checkpoints",
}
_BUDGET = ("train.duration", "train.extend")
_COMMON_TO_MEMBERS = {
    **dict.fromkeys((*_BUDGET, "train.early_stop"), "members of a population are compared after the same epochs"),
    "train.init": "members of a population go on from each other's checkpoints",
}


def check_space(
    sweep: SweepConfig,
    base: Mapping[str, Any],
    build: Callable[[Mapping[str, Any]], StrictModel],
    fixed: Iterable[str] = (),
) -> None:
    """Check every searched key and value, and those of the fidelity, against the experiment's schema.

    Args:
        sweep: the search.
        base: complete experiment as plain data (every key present).
        build: makes the typed experiment of a tree, raising ``UserError``.
        fixed: dotted keys that the command line sets.

    Raises:
        UserError: unknown key (the nearest valid one is named), value of a wrong type or out of bounds, a key both
            searched and set, a key that the sweep decides for all trials.
    """
    reason = "compares trials at the same epochs, so they need the same budget (or sweep.scheduler=none)"
    budget = dict.fromkeys(_BUDGET, f"scheduler {sweep.scheduler} {reason}") if sweep.stops_early else {}
    common = _COMMON_TO_ALL | budget | (_COMMON_TO_MEMBERS if sweep.is_population else {})
    for key, dimension in sweep.space.items():
        where, values = f"sweep.space.{key}", dimension.samples()
        remedy = "set it outside of sweep.space, or start one sweep for each value"
        _refuse_common(where, key, values, common, remedy)
        remedy = f"add {where}=null to take it out of the search"
        _refuse_fixed(f"{key} is searched by the sweep", key, fixed, remedy)
        _try_values(where, key, values, resolve(base, needed_for(key, sweep.conditions)), build)
    if sweep.is_population:
        from sensorlab.cluster.search.members import check_members  # loads torch

        check_members(sweep, base, build)
    if sweep.fidelity is not None:
        key, values = sweep.fidelity.key, sweep.fidelity.values
        _refuse_common("sweep.fidelity", key, values, _no_fidelity(), "choose one that makes trials cheaper")
        remedy = "add sweep.fidelity=null to compare trials by their epochs instead"
        _refuse_fixed(f"{key} has the values of sweep.fidelity", key, fixed, remedy)
        _try_values("sweep.fidelity", key, values, base, build)


def _no_fidelity() -> dict[str, str]:
    """Keys that trials of different levels cannot differ in, and why."""
    from sensorlab.experiment import RESUME_MAY_CHANGE  # loads torch, which readers of sweeps do without

    without_effect = set(RESUME_MAY_CHANGE) - {"train.extend", "train.init"}
    return {
        **dict.fromkeys(sorted(without_effect), "it does not change what is trained"),
        **_COMMON_TO_ALL,
        "seed": "it is what repeats of a configuration differ in",
    }


def _refuse_fixed(decided: str, key: str, fixed: Iterable[str], remedy: str) -> None:
    for override in fixed:
        if overlap(key, override):
            raise UserError(f"{decided}, so {override}=... cannot set it; {remedy}")


def _try_values(
    where: str,
    key: str,
    values: Iterable[Any],
    base: Mapping[str, Any],
    build: Callable[[Mapping[str, Any]], StrictModel],
) -> None:
    for value in values:
        try:
            build(merge(base, nested(key, value)))
        except UserError as error:
            raise UserError(f"{where}: the value {value!r} does not fit: {error}") from None


def _refuse_common(where: str, key: str, values: Iterable[Any], common: Mapping[str, str], remedy: str) -> None:
    """Refuse values that set one of the ``common`` keys, themselves or inside of a mapping."""
    for searched in {name: None for value in values for name in flatten(nested(key, value))}:
        for decided, reason in common.items():
            if searched == decided or searched.startswith(f"{decided}."):
                inside = f" (it sets {searched})" if searched != key else ""
                raise UserError(f"{where}{inside}: {decided} has one value for all trials, because {reason}; {remedy}")
