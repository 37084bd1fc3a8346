"""One batch of each kind before the first step: what does not fit is found in seconds, not at the first epoch's end.

A dry run leaves no trace: the weights have not moved, the running statistics are put back, the batch is trained on
afterwards, and a step seeds all that it draws from anyway.
"""

from __future__ import annotations

import functools
import itertools
import logging
import operator
import re
from collections.abc import Iterator

import torch

from sensorlab.data.stream import SampleStream
from sensorlab.engine.evaluate import check_objective, evaluate_batch
from sensorlab.engine.no_trace import no_trace
from sensorlab.engine.patterns import some
from sensorlab.engine.seeds import StepSeeds
from sensorlab.engine.step import autocast, no_exchange, prepared, to_device
from sensorlab.engine.training import Training
from sensorlab.errors import UserError
from sensorlab.tasks.base import Batch

logger = logging.getLogger(__name__)

# torch's batch norm, and our synchronised one.
_TOO_FEW_VALUES = re.compile(r"more than (1|one) value per channel")


def rehearse(training: Training, batches: Iterator[Batch], val_stream: SampleStream | None) -> Iterator[Batch]:
    """Before the first step of an attempt: compile the network, if asked for, and make the dry run.

    A new training tries the first of ``batches`` at its largest size, forward and backward, and the first of the
    validation. An attempt of several workers that goes on tries the first of its batches: the training may have begun
    on one, which forgives what several cannot. Collective: all workers take part.

    Returns:
        Iterator over all of ``batches``, the tried one included.

    Raises:
        UserError: the GPU has not enough memory, batch norm has a single value, parameters are not used by all
            workers, or the objective is not reported; says what to do.
    """
    first = next(batches)
    training.rehearse(lambda: _try_sizes(training, first))
    is_new = training.cursor.step == 0
    if not training.config.train.dry_run:
        return itertools.chain([first], batches)
    if is_new or training.workers.world_size > 1:
        try:
            _check_training(training, first)
        except torch.cuda.OutOfMemoryError as error:
            key = f"data.global_batch={training.config.data.global_batch}"
            raise UserError(_too_big("training", key, error)) from error
    if is_new and val_stream is not None:
        try:
            _try_validation(training, val_stream)
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(_too_big("validation", f"data.val_batch={val_stream.global_batch}", error)) from error
    return itertools.chain([first], batches)


def _try_sizes(training: Training, batch: Batch) -> None:
    """The size of the batch's turn and the largest: what compiles for one may fail for another."""
    _try_training(training, batch)
    if training.config.train.multi_scale is not None:
        _try_training(training, batch, largest=True)


def _check_training(training: Training, batch: Batch) -> None:
    """Try the largest size; what is found on one worker is raised on all, so that none waits for another."""
    fault: str | None = None
    unused: list[str] = []
    try:
        unused = _try_training(training, batch, largest=True)
    except ValueError as error:
        if not _TOO_FEW_VALUES.search(str(error)):
            raise
        fault = str(error).partition("\n")[0]
    found = training.workers.gather((fault, unused))
    faults = [fault for fault, _ in found if fault]
    if faults:
        raise UserError(_too_few_samples(training, faults[0]))
    everywhere = {name: None for _, names in found for name in names}
    if everywhere:
        _report_unused(training, list(everywhere))


def _try_training(training: Training, batch: Batch, largest: bool = False) -> list[str]:
    """One pass forward and backward; returns the trained parameters that got no gradient."""
    device = training.workers.device
    # A pass of this worker alone: one that fails, or has no gradient for a parameter, keeps no other waiting.
    with no_trace(training.model, device), no_exchange(training.network):
        StepSeeds(device, training.config.seed, "dry run", training.workers.rank).seed(0)
        batch = prepared(training, to_device(batch, device), largest)
        with autocast(training):
            _, terms, _ = training.network(batch)
            loss = functools.reduce(operator.add, terms.values())
        training.scaler.scale(loss).backward()
        parameters = training.model.named_parameters()
        return [name for name, parameter in parameters if parameter.requires_grad and parameter.grad is None]


def _report_unused(training: Training, names: list[str]) -> None:
    """Several workers wait for the gradient of every trained parameter; to one alone it does not matter."""
    count = training.workers.world_size
    found = f"trained parameters get no gradient from the first batch: {some(names)}"
    if count > 1:
        raise UserError(
            f"{found}; {count} workers would wait for them in vain: use them in every forward pass, keep their values "
            f"with train.freeze (match: [{names[0]}]), remove them from the model, or train with one worker"
        )
    logger.warning("%s; they stay as they are, and several workers could not train this model", found)


@torch.no_grad()
def _try_validation(training: Training, stream: SampleStream) -> None:
    batches = stream.batches(0)
    batch = next(batches)
    model = training.evaluated_model
    was_training = model.training
    model.eval()
    _, _, losses = evaluate_batch(training, model, training.task.metrics(), batch)
    if was_training:
        training.train_mode()
    stream.close()
    reported = training.workers.gather([f"val/{name}" for one in losses for name in one])
    check_objective(training, {name for names in reported for name in names})


def _too_few_samples(training: Training, fault: str) -> str:
    size, count = training.config.data.global_batch, training.workers.world_size
    remedies = "raise data.global_batch"
    if count > 1:
        remedies += " or use fewer workers"
    if count > 1 and not training.config.train.sync_batchnorm:
        remedies += ", or set train.sync_batchnorm=true"
    return f"data.global_batch={size} is too small for batch norm with {count} worker(s): {remedies} ({fault})"


def _too_big(what: str, key: str, error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    return (
        f"a {what} batch does not fit into the GPU's memory ({reason}): lower {key} (train.accumulate keeps the "
        "samples per step), set train.precision=bf16, or use a larger GPU"
    )
