"""Validation without training: the evaluation of ``fit``, of weights from a checkpoint or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sensorlab.config import digest
from sensorlab.data.stream import SampleStream
from sensorlab.engine.accumulate import AccumulateConfig
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.checkpoint import CheckpointError, load
from sensorlab.engine.evaluate import evaluate, evaluated_batches
from sensorlab.engine.fit import tell_error
from sensorlab.engine.optim import OptimConfig
from sensorlab.engine.training import Cursor, Training
from sensorlab.engine.workers import WorkerGroup
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig
from sensorlab.models.weights import read_state_dict, tensor_differences
from sensorlab.tasks.base import BaseTask


@dataclass(frozen=True)
class Weights:
    """The weights that a validation measures, and when a training had them."""

    tensors: Mapping[str, Tensor]
    origin: str  # for messages and the protocol
    cursor: Cursor


def weights_of(path: Path) -> Weights:
    """The evaluated weights of a checkpoint directory (the running average if the run had one) or of a weights file.

    Raises:
        UserError: missing, torn, altered, or without weights.
    """
    if not path.is_dir():
        return Weights(_without_section(read_state_dict(path)), str(path), Cursor())
    try:
        state = load(path)
    except CheckpointError as error:
        raise UserError(str(error)) from error
    average, saved = state["ema"], state["cursor"]
    tensors = average["model"] if average else state["model"]
    return Weights(tensors, str(path), Cursor(saved["epoch"], saved["batch"], saved["step"]))


def _without_section(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``ema.safetensors`` of a checkpoint holds the weights under ``model.``."""
    section = "model."
    if all(name.startswith(section) for name in tensors):
        return {name.removeprefix(section): tensor for name, tensor in tensors.items()}
    return tensors


def load_exactly(training: Training, weights: Weights) -> None:
    """Put ``weights`` into the evaluated model.

    Raises:
        UserError: a name or a shape differs: the weights are of another model.
    """
    model = training.evaluated_model
    differing = tensor_differences(model.state_dict(), weights.tensors)
    if differing:
        shown = "; ".join(differing[:4]) + ("; ..." if len(differing) > 4 else "")
        raise UserError(
            f"{weights.origin} holds the weights of another model than task describes: {len(differing)} tensors differ "
            f"({shown}). Leave out what changes the model, or name the experiment that the weights belong to"
        )
    model.load_state_dict(dict(weights.tensors))


def _without_steps(config: ExperimentConfig) -> ExperimentConfig:
    """``config`` for a training that makes no step: nothing that must fit to the training split or to what is trained.

    The model and all that an evaluation depends on stay: the precision, the memory format, the average of the weights.
    """
    train = config.train.model_copy(update={"accumulate": AccumulateConfig(), "freeze": (), "multi_scale": None})
    return config.model_copy(update={"train": train, "optim": OptimConfig(name="sgd", momentum=0.0), "warmup": None})


def validate(
    config: ExperimentConfig,
    task: BaseTask,
    val_stream: SampleStream,
    *,
    run_dir: Path,
    weights: Weights,
    workers: WorkerGroup | None = None,
    callbacks: Sequence[Callback] = (),
    provenance: Mapping[str, str] | None = None,
) -> Training:
    """Evaluate ``weights`` once, as ``fit`` does after an epoch. Nothing is trained and no checkpoint is written.

    Every worker calls it with its own stream. Callbacks see a training that stands where the checkpoint was written:
    start, phase "val", batches, metrics, pictures, end.

    Returns:
        The training; ``metrics`` and ``protocols`` hold what was measured.

    Raises:
        UserError: the weights are of another model.
    """
    workers = workers or WorkerGroup.current()
    training = Training(
        _without_steps(config),
        task,
        val_stream,  # stands in for the training stream, of which nothing is asked
        run_dir=run_dir,
        workers=workers,
        callbacks=callbacks,
        provenance={**(provenance or {}), "weights": weights.origin},
    )
    training.config, training.config_digest = config, digest(config)  # what is reported is the experiment's own
    training.cursor = weights.cursor
    try:
        load_exactly(training, weights)
        run_dir.mkdir(parents=True, exist_ok=True)
        for callback in training.callbacks:
            callback.on_fit_start(training)
        for callback in training.callbacks:
            callback.on_phase(training, "val", evaluated_batches(training, val_stream))
        with training.clock.span("evaluation"):
            metrics, panels = evaluate(training, val_stream, config.eval.panels)
        training.publish(metrics)
        for callback in training.callbacks if panels and workers.is_main else []:
            callback.on_panels(training, panels, training.cursor.step)
    except BaseException as error:
        tell_error(training, error)
        raise
    for callback in training.callbacks:
        callback.on_fit_end(training)
    return training
