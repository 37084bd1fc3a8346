"""One batch of each kind before the first step: what does not fit is found in seconds, not at the first epoch's end.

A dry run leaves no trace: the weights have not moved, the running statistics are put back, the batch is trained on
afterwards, and a step seeds all that it draws from anyway.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator

import torch

from sensorlab.data.stream import SampleStream
from sensorlab.engine.evaluate import evaluate_batch
from sensorlab.engine.seeds import seed_step
from sensorlab.engine.step import autocast, resized, to_device
from sensorlab.engine.training import Training
from sensorlab.errors import UserError
from sensorlab.tasks.base import Batch


def rehearse(training: Training, batches: Iterator[Batch], val_stream: SampleStream | None) -> Iterator[Batch]:
    """Before the first step of an attempt: compile the network, if asked for, and make the dry run of a new training.

    That tries the first of ``batches`` at its largest size, forward and backward, and the first of the validation.
    Collective: all workers take part.

    Returns:
        Iterator over all of ``batches``, the tried one included.

    Raises:
        UserError: the GPU has not enough memory; says for what.
    """
    first = next(batches)
    is_wanted = training.config.train.dry_run and training.cursor.step == 0
    try:
        training.rehearse(lambda: _try_training(training, first))
        if is_wanted:
            _try_training(training, first, largest=True)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            _too_big("training", f"data.global_batch={training.config.data.global_batch}", error)
        ) from error
    if is_wanted and val_stream is not None:
        try:
            _try_validation(training, val_stream)
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(_too_big("validation", f"data.val_batch={val_stream.global_batch}", error)) from error
    return itertools.chain([first], batches)


def _try_training(training: Training, batch: Batch, largest: bool = False) -> None:
    device = training.workers.device
    buffers = [buffer.clone() for buffer in training.model.buffers()]
    seed_step(device, training.config.seed, "dry run", training.workers.rank)
    batch = resized(training, to_device(batch, device), largest)
    with autocast(training):
        _, terms, _ = training.network(batch)
        loss = functools.reduce(operator.add, terms.values())
    training.scaler.scale(loss).backward()
    training.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in zip(training.model.buffers(), buffers, strict=True):
            buffer.copy_(before)


@torch.no_grad()
def _try_validation(training: Training, stream: SampleStream) -> None:
    batches = stream.batches(0)
    batch = next(batches)
    model = training.evaluated_model
    was_training = model.training
    model.eval()
    evaluate_batch(training, model, training.task.metrics(), batch)
    if was_training:
        training.train_mode()
    stream.close()


def _too_big(what: str, key: str, error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    return (
        f"a {what} batch does not fit into the GPU's memory ({reason}): lower {key} (train.accumulate keeps the "
        "samples per step), set train.precision=bf16, or use a larger GPU"
    )
