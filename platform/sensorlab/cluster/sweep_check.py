"""Whether a search fits to its experiment: asked before anything starts."""

from __future__ import annotations

import difflib
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sensorlab.cluster.sweep_config import SweepConfig, needed_for, overlap, resolve
from sensorlab.config import StrictModel, flatten, merge, nested
from sensorlab.engine.duration import Duration
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
# A fidelity may be one of these: its levels are ranked apart.
_PROTOCOL = dict.fromkeys(
    ("data.val_split", "data.max_samples", "eval.max_batches"),
    "it says which samples the objective is measured on, and other samples give numbers that do not compare",
)
_BUDGET = ("train.duration", "train.extend")
_COMMON_TO_MEMBERS = {
    **dict.fromkeys((*_BUDGET, "train.early_stop"), "members of a population are compared after the same epochs"),
    "train.init": "members of a population go on from each other's checkpoints",
}

# Keys that are read only where another key has one of these values. Sections of tasks say it by their switch.
_READ_WITH = {
    "optim.momentum": ("optim.name", ("sgd",)),
    "optim.nesterov": ("optim.name", ("sgd",)),
    "optim.betas": ("optim.name", ("adam", "adamw")),
    "optim.eps": ("optim.name", ("adam", "adamw")),
    "train.clip.p": ("train.clip.kind", ("norm",)),
    "train.nonfinite_budget": ("train.nonfinite", ("skip",)),
}
_LOSS = "val/loss"
_SWITCHES = {"enabled": False, "input": "none"}  # a section with this key is not read where it has this value


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
            searched and set, a key that the sweep decides for all trials, a key that changes nothing in any of them.
    """
    reason = "compares trials at the same epochs, so they need the same budget (or sweep.scheduler=none)"
    budget = dict.fromkeys(_BUDGET, f"scheduler {sweep.scheduler} {reason}") if sweep.stops_early else {}
    common = _COMMON_TO_ALL | _PROTOCOL | budget | (_COMMON_TO_MEMBERS if sweep.is_population else {})
    for key, dimension in sweep.space.items():
        where, values = f"sweep.space.{key}", dimension.samples()
        remedy = "set it outside of sweep.space, or start one sweep for each value"
        _refuse_common(where, key, values, common, remedy)
        remedy = f"add {where}=null to take it out of the search"
        _refuse_fixed(f"{key} is searched by the sweep", key, fixed, remedy)
        _try_values(where, key, values, resolve(base, needed_for(key, sweep.conditions)), build)
        _refuse_without_effect(where, key, sweep, base)
    _refuse_without_rungs(sweep, base)
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


def check_objective(sweep: SweepConfig, experiment: Any) -> None:
    """Refuse an objective that no evaluation reports, as far as that is known before there is a model.

    A term of the loss may be the objective too. What the terms are is known when a first batch has been tried: an
    objective that is none of them ends the sweep then, before the first step.

    Raises:
        UserError: lists what the task reports; or a loss that is to grow, or that trials define differently.
    """
    from sensorlab.cluster.program import build_task  # loads torch

    objective = sweep.objective
    metrics = [f"val/{name}" for metric in build_task(experiment).metrics().values() for name in metric.compute()]
    known = sorted({*metrics, _LOSS})
    near = difflib.get_close_matches(objective, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    if objective not in known and (not objective.startswith("val/") or (near and _is_slip(objective, near[0]))):
        raise UserError(f"sweep.objective={objective}: {hint}evaluations report {', '.join(known)}")
    if objective in metrics:
        return
    if objective == _LOSS and sweep.mode == "max":
        raise UserError(f"{_LOSS} is better where it is smaller: set sweep.mode=min")
    searched = [key for key in sweep.space if overlap(key, "task")]
    if searched:
        raise UserError(
            f"sweep.objective={objective}: a loss is defined by the whole task, so losses of trials that differ in "
            f"{', '.join(searched)} do not compare; choose a metric ({', '.join(sorted(metrics))})"
        )


def _is_slip(given: str, meant: str) -> bool:
    """Whether two neighbouring letters of ``meant`` have changed places, or one letter is missing."""
    swapped = (meant[:i] + meant[i + 1] + meant[i] + meant[i + 2 :] for i in range(len(meant) - 1))
    return given in {*swapped, *(meant[:i] + meant[i + 1 :] for i in range(len(meant)))}


def check_on_dataset(sweep: SweepConfig, base: Mapping[str, Any], dataset: str) -> None:
    """Compare what the searched values ask for with what the prepared dataset at the path ``dataset`` has.

    A value is tried with the searched switch of its section on, if there is one.

    Raises:
        UserError: names the key and the value.
    """
    from sensorlab.cluster.program import build_task  # loads torch
    from sensorlab.data.dataset import PreparedDataset
    from sensorlab.experiment import experiment_from

    manifest = PreparedDataset.open(dataset).manifest
    searched = {key: dimension.samples() for key, dimension in sweep.space.items()}
    if sweep.fidelity is not None:
        searched[sweep.fidelity.key] = sweep.fidelity.values
    for key, values in searched.items():
        if not overlap(key, "task"):
            continue
        together = needed_for(key, sweep.conditions)
        for decider, is_read in _deciders(key):
            read = [value for value in searched.get(decider, ()) if is_read(value)]
            if read and decider not in together:
                together[decider] = read[0]
        for value in values:
            try:
                task = build_task(experiment_from(resolve(base, {**together, key: value})))
            except UserError:  # a combination that is not valid ends its trial alone
                continue
            try:
                task.check_dataset(manifest)
            except UserError as error:
                raise UserError(f"sweep.space.{key}: the value {value!r} does not fit: {error}") from None


def _refuse_without_effect(where: str, key: str, sweep: SweepConfig, base: Mapping[str, Any]) -> None:
    """Refuse a key that is read in none of the trials, because of the value that another key has in all of them."""
    fixed = flatten(resolve(base, needed_for(key, sweep.conditions)))
    for decider, is_read in _deciders(key):
        dimension = sweep.space.get(decider)
        if any(overlap(decider, other) and other != decider for other in sweep.space) or decider not in fixed:
            continue  # searched as part of a section, or there is no such key
        is_free = dimension is not None and decider not in needed_for(key, sweep.conditions)
        found = dimension.samples() if dimension is not None and is_free else (fixed[decider],)
        if not any(is_read(value) for value in found):
            raise UserError(
                f"{where}: it would change nothing, because {decider} is {', '.join(map(str, found))} wherever it is "
                f"searched; set or search {decider}, or take {key} out of the search"
            )


def _deciders(key: str) -> Iterator[tuple[str, Callable[[Any], bool]]]:
    """Keys that decide whether ``key`` is read, and for which of their values it is."""
    for prefix, (decider, values) in _READ_WITH.items():
        if key == prefix or key.startswith(f"{prefix}."):
            yield decider, values.__contains__
    parts = key.split(".")
    for length in range(1, len(parts)):
        for switch, off in _SWITCHES.items():
            if parts[length:] != [switch]:
                yield ".".join([*parts[:length], switch]), functools.partial(operator.ne, off)


def _refuse_without_rungs(sweep: SweepConfig, base: Mapping[str, Any]) -> None:
    """Refuse a scheduler that never compares anything, unless there is but one epoch."""
    duration = Duration.parse(base["train"]["duration"])
    all_options = {"asha": sweep.asha, "hyperband": sweep.hyperband, "median": sweep.median}
    if not sweep.stops_early or duration.unit != "epochs" or duration.count == 1:
        return
    grace = all_options[sweep.scheduler].model_dump()["grace_epochs"]
    if grace >= duration.count:
        raise UserError(
            f"sweep.{sweep.scheduler}.grace_epochs={grace} leaves no epoch of {duration} at which trials are compared "
            "and stopped: lower it, or set sweep.scheduler=none"
        )


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
