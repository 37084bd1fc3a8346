"""One optimiser step."""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sensorlab.engine.meters import StepRecord
from sensorlab.engine.multi_scale import largest_size, rescale
from sensorlab.engine.optim import clip_gradients, gradient_norm, set_rates
from sensorlab.engine.training import Training
from sensorlab.engine.warmup import rates
from sensorlab.tasks.base import Batch

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train_step(training: Training, batches: Iterator[Batch], num_passes: int) -> StepRecord:
    """Fetch, forward and backward ``num_passes`` global batches, then update the weights once.

    Raises:
        FloatingPointError: a gradient is not finite and ``train.nonfinite`` is ``stop`` (or the budget of skipped
            steps is used up); see :class:`~sensorlab.engine.finite.FiniteCheck`.
    """
    config, cursor, timer = training.config, training.cursor, training.timer
    started = time.perf_counter()
    training.seeds.seed(cursor.step)
    step_rates = rates(config.schedule, config.warmup, training.schedule_point(num_passes), config.optim.momentum)
    set_rates(training.optimizer, config.optim.lr, step_rates)
    training.finite.begin_step()
    losses, extras, data_wait = _forward_backward(training, batches, num_passes)
    training.scaler.unscale_(training.optimizer)
    norm = gradient_norm(training.parameters)
    updated = training.finite.allows_update(norm, losses, cursor)
    if updated:
        if config.train.clip is not None:
            clip_gradients(training.parameters, config.train.clip, norm)
        training.scaler.step(training.optimizer)
        if training.ema is not None:
            training.ema.update(training.model)
    elif training.scaler.is_enabled():
        training.scaler.step(training.optimizer)  # sees the overflow and does nothing, as ``update`` expects
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    timer.mark("optimizer")
    timer.count_step()
    cursor.step += 1
    return StepRecord(
        step=cursor.step,
        epoch=cursor.epoch,
        num_samples=num_passes * config.data.global_batch,
        losses=losses,
        extras=extras,
        grad_norm=norm,
        lr=config.optim.lr * step_rates.factor,
        data_wait_s=data_wait,
        step_s=time.perf_counter() - started - data_wait,
        updated=updated,
    )


def _forward_backward(
    training: Training, batches: Iterator[Batch], num_passes: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Add up the gradients of ``num_passes`` batches; returns the means of loss terms and extras, and the wait."""
    cursor, timer = training.cursor, training.timer
    pass_weight = 1.0 if training.config.train.accumulate.reduction == "sum" else 1.0 / num_passes
    losses: dict[str, Tensor] = {}
    extras: dict[str, Tensor] = {}
    data_wait = 0.0
    for index in range(num_passes):
        asked = time.perf_counter()
        batch = next(batches)
        data_wait += time.perf_counter() - asked
        timer.start()
        batch = to_device(batch, training.workers.device)
        timer.mark("copy")
        batch = prepared(training, batch)
        for callback in training.batch_callbacks:
            callback.on_batch(training, batch)
        timer.mark("prepare")
        # Workers exchange gradients once per optimiser step: in the last pass.
        exchange = nullcontext() if index == num_passes - 1 else no_exchange(training.network)
        with exchange, autocast(training):
            _, terms, details = training.network(batch)
            loss = functools.reduce(operator.add, terms.values())
        timer.mark("forward")
        training.scaler.scale(loss if pass_weight == 1.0 else loss * pass_weight).backward()
        timer.mark("backward")
        _accumulate(losses, terms | {"loss": loss}, 1.0 / num_passes)
        _accumulate(extras, details, 1.0 / num_passes)
        cursor.batch += 1
    return losses, extras, data_wait


def autocast(training: Training) -> AbstractContextManager:
    """The run's precision, for training and evaluation alike."""
    dtype = _AUTOCAST_DTYPES.get(training.config.train.precision)
    return nullcontext() if dtype is None else torch.autocast(training.workers.device.type, dtype)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy without waiting; a no-op for tensors that are there."""
    if device.type == "cpu":
        return batch
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def prepared(training: Training, batch: Batch, largest: bool = False) -> Batch:
    """The batch as the network gets it: at its size, with what its losses are divided by."""
    batch = resized(training, batch, largest)
    return batch | training.workers.average(training.task.normalizers(batch))


def resized(training: Training, batch: Batch, largest: bool = False) -> Batch:
    """The batch at the size that multi-scale training has for it (or at the ``largest``)."""
    scale, cursor = training.config.train.multi_scale, training.cursor
    if scale is None:
        return batch
    if largest:
        return training.task.resize(batch, largest_size(scale, training.task.image_size(batch)))
    return rescale(training.task, batch, scale, training.config.seed, cursor.epoch, cursor.batch)


def no_exchange(network: nn.Module) -> AbstractContextManager:
    """Gradients of passes in this context stay with their worker, until one outside of it."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def _accumulate(sums: dict[str, Tensor], values: dict[str, Tensor], weight: float) -> None:
    if weight == 1.0:  # a single pass
        for name, value in values.items():
            sums[name] = value.detach()
        return
    for name, value in values.items():
        value = value.detach() * weight
        sums[name] = sums[name] + value if name in sums else value
