"""A new run that goes on from another run's checkpoint, under a configuration of its own.

What a fork takes over is the training: weights, running statistics, moments, average, scale, cursor, class scores, the
losses of the interval that has begun. What it leaves behind is the run: best value, early stopping, times, what was
recorded. docs/resume.md says which keys must stay as they are; everything else may differ as long as the state fits.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorlab.config import StrictModel, as_dict, canonical_json, flatten
from sensorlab.engine.checkpoint import CheckpointError, load, load_plain, read_info, verify
from sensorlab.engine.optim import take_moments
from sensorlab.errors import UserError
from sensorlab.models.weights import tensor_differences

if TYPE_CHECKING:
    from sensorlab.engine.training import Training
    from sensorlab.experiment import ExperimentConfig

logger = logging.getLogger(__name__)

_SHOWN = 4


class ForkConfig(StrictModel):
    """The state that a new run begins with."""

    checkpoint: str  # directory of another run's checkpoint, OTHER_RUN/checkpoints/step-00000120


# Keys in which a fork must agree with its donor: those that say what the cursor and the moments belong to.
# docs/resume.md explains each. Of optim.groups only names and patterns count, and where train.accumulate.ramp is on,
# the warm-up decides on which batches make a step.
FORK_MUST_KEEP = (
    "seed",
    "data.train_split",
    "data.global_batch",
    "data.last_batch",
    "data.max_samples",
    "data.train_fraction",
    "data.sampling",
    "data.max_batches",
    "data.shuffle_window",
    "optim.name",
    "optim.groups",
    "train.accumulate",
    "train.freeze",
)
_RAMPED_BY = "warmup"


def donor_cursor(config: ExperimentConfig, fork: ForkConfig) -> dict[str, int]:
    """The cursor (epoch, batch, step) that a fork begins with; reads no tensor.

    Raises:
        UserError: no valid checkpoint there, or its order of samples is not that of ``config``.
    """
    path = Path(fork.checkpoint)
    try:
        verify(path)
        state = load_plain(path)
    except CheckpointError as error:
        raise _unusable(path, error) from error
    _refuse_changed(state["config"], config, path)
    cursor: dict[str, int] = state["cursor"]
    return cursor


def begin_as_fork(training: Training, fork: ForkConfig) -> None:
    """Give a training that has not begun the state of another run's checkpoint.

    Raises:
        UserError: no valid checkpoint there, it does not fit, or it is where this training ends already.
    """
    path = Path(fork.checkpoint)
    try:
        state, info = load(path, training.workers.device), read_info(path)
    except CheckpointError as error:
        raise _unusable(path, error) from error
    _refuse_changed(state["config"], training.config, path)
    training.check_provenance(state, path)
    if state["cursor"]["step"] >= training.budget.steps:
        raise UserError(
            f"train.fork.checkpoint: {path} is at step {state['cursor']['step']}, and this training ends at step "
            f"{training.budget.steps}: nothing is left to train; lengthen train.duration (or train.until)"
        )
    _check_model(training, state, path)
    try:
        take_moments(training.optimizer, state["optimizer"])
    except ValueError as error:
        raise UserError(f"train.fork.checkpoint: the optimiser in {path} is of other parameters: {error}") from error
    training.take(state)
    training.donor = info
    training.provenance["fork"] = info.seal
    for callback, saved in training.states_of_callbacks(state):
        if callback.goes_on_in_forks:
            callback.load_state_dict(saved)
    if training.workers.is_main:
        cursor = training.cursor
        logger.info("begins at epoch %d, batch %d, step %d of %s", cursor.epoch, cursor.batch, cursor.step, path)


def _unusable(path: Path, error: CheckpointError) -> UserError:
    if not path.is_dir():
        return UserError(f"train.fork.checkpoint: there is no directory {path.absolute()}")
    found = sorted(each.relative_to(path) for pattern in ("step-*", "*/step-*") for each in path.glob(pattern))
    if found:
        return UserError(
            f"train.fork.checkpoint: {path} is not a checkpoint; name one of those in it: "
            f"{', '.join(map(str, found[-_SHOWN:]))}"
        )
    return UserError(f"train.fork.checkpoint: {error}; choose another checkpoint")


def _refuse_changed(saved: Mapping[str, Any], current: ExperimentConfig, path: Path) -> None:
    changed = changed_in_fork(saved, current)
    if changed:
        raise UserError(
            f"train.fork.checkpoint: a fork of {path} may not change which samples a step reads, nor what its "
            "optimiser holds; restore, or begin with train.init:\n  " + "\n  ".join(changed)
        )


def changed_in_fork(saved: Mapping[str, Any], current: ExperimentConfig) -> list[str]:
    """``key: old -> new`` for each key in which ``current`` differs from the configuration ``saved`` of a checkpoint,
    and may not."""
    old, new = _comparable(saved), _comparable(as_dict(current))
    kept = (*FORK_MUST_KEEP, _RAMPED_BY) if current.train.accumulate.ramp else FORK_MUST_KEEP
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if any(key == each or key.startswith(f"{each}.") for each in kept)
        and canonical_json(old.get(key)) != canonical_json(new.get(key))
    ]


def _comparable(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat = flatten(tree)
    flat["optim.groups"] = [{"name": rule["name"], "match": rule["match"]} for rule in flat.get("optim.groups", [])]
    return flat


def _check_model(training: Training, state: Mapping[str, Any], path: Path) -> None:
    differing = tensor_differences(training.model.state_dict(), state["model"])
    if differing:
        shown = "; ".join(differing[:_SHOWN]) + ("; ..." if len(differing) > _SHOWN else "")
        raise UserError(
            f"train.fork.checkpoint: {path} holds another model than task describes: {len(differing)} tensors differ "
            f"({shown}). train.init can take the weights that fit"
        )
    if (state["ema"] is None) != (training.ema is None):
        has, lacks = ("the checkpoint", "train.ema") if state["ema"] else ("train.ema", "the checkpoint")
        raise UserError(
            f"train.fork.checkpoint: an average of the weights goes on or it does not: {has} has one, {lacks} has "
            f"none ({path})"
        )
