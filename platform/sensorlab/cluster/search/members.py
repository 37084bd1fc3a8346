"""Whether the members of a population can go on from each other's checkpoints: asked before any of them trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sensorlab.cluster.sweep_config import SweepConfig, needed_for, resolve
from sensorlab.config import StrictModel, as_dict, merge, nested
from sensorlab.errors import UserError

_SHOWN = 3  # tensors that a message names
_NOT_IN_MEMBERS = {
    "extend": "the population divides train.duration: make that as long as it is to be",
    "until": "the population itself sets it for every trial",
    "early_stop": "the population itself replaces members that fall behind",
}


def check_members(
    sweep: SweepConfig, base: Mapping[str, Any], build: Callable[[Mapping[str, Any]], StrictModel]
) -> None:
    """Check that every searched value fits to a checkpoint of every other one.

    Args:
        base: complete experiment as plain data.
        build: makes the typed experiment of a tree.

    Raises:
        UserError: what is searched decides on the samples of a step, on the optimiser's state or on the model, or
            ``base`` has a setting that a population cannot have.
    """
    for name, reason in _NOT_IN_MEMBERS.items():
        if base["train"].get(name) is not None:
            raise UserError(f"train.{name}: leave it out (null) with a population: {reason}")
    for key, dimension in sweep.space.items():
        around = resolve(base, needed_for(key, sweep.conditions))
        values = [build(merge(around, nested(key, value))) for value in dimension.samples()]
        without = [build(base)] if sweep.conditions.get(key) else []
        for other in (*values[1:], *without):
            if reason := obstacle(values[0], other):
                raise UserError(
                    f"sweep.space.{key}: members of a population go on from each other's checkpoints, and {reason}; "
                    f"set {key} outside of sweep.space, or search it with another algorithm"
                )


def obstacle(donor: Any, heir: Any) -> str:
    """Why ``heir`` cannot go on from a checkpoint of ``donor``, the dataset being the same; empty if it can."""
    from sensorlab.cluster.program import build_task
    from sensorlab.engine.fork import changed_in_fork
    from sensorlab.models.weights import tensor_differences

    if changed := changed_in_fork(as_dict(donor), heir):
        return f"a checkpoint is not of use after a change of {', '.join(changed)}"
    if (donor.train.ema is None) != (heir.train.ema is None):
        return "an average of the weights (train.ema) goes on or it does not"
    if as_dict(donor.task) == as_dict(heir.task):
        return ""
    differing = tensor_differences(*(build_task(each).build_model().state_dict() for each in (heir, donor)))
    if not differing:
        return ""
    shown = "; ".join(differing[:_SHOWN])
    return (
        f"this changes the model: {len(differing)} of its tensors differ ({shown}{'; ...' * (len(differing) > _SHOWN)})"
    )
