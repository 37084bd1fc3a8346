"""Validation: every sample once, on all workers, with a result that does not depend on their number."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sensorlab.config import digest
from sensorlab.data.stream import SampleStream
from sensorlab.engine.step import autocast, to_device
from sensorlab.engine.training import Training
from sensorlab.metrics.base import Metric
from sensorlab.tasks.base import Batch, Outputs


@torch.no_grad()
def evaluate(
    training: Training, stream: SampleStream, num_panels: int = 0
) -> tuple[dict[str, float], list[tuple[str, np.ndarray]]]:
    """Losses and metrics of the validation split, named ``val/*``, and pictures of its first ``num_panels`` samples.

    Losses are means of per-sample losses: unlike means of batch losses they do not depend on how samples are batched.
    Collective: every worker calls it and gets the same numbers; pictures come on the main worker only.
    """
    task, model = training.task, training.evaluated_model
    was_training = model.training
    # Each worker's batch statistics saw its own samples; all must judge the same model, the one that is saved.
    training.workers.share_buffers(model)
    model.eval()
    metrics = task.metrics()
    sums: dict[str, float] = {}
    count = 0
    panels: list[tuple[str, np.ndarray]] = []
    total = evaluated_batches(training, stream)
    for index, batch in enumerate(itertools.islice(stream.batches(0), total)):
        batch, outputs, losses = evaluate_batch(training, model, metrics, batch)
        count += len(losses)
        for name, value in (item for one in losses for item in one.items()):
            sums[name] = sums.get(name, 0.0) + value
        if training.workers.is_main and len(panels) < num_panels:
            few = num_panels - len(panels)
            panels += task.panels(_first(outputs, few), _first(batch, few))
        for callback in training.callbacks:
            callback.on_eval_batch(training, index + 1, total)
    if was_training:
        training.train_mode()
    return _reported(training, metrics, sums, count), panels


def evaluated_batches(training: Training, stream: SampleStream) -> int:
    """Global batches of one evaluation."""
    cap = training.config.eval.max_batches
    return stream.batches_per_epoch if cap is None else min(cap, stream.batches_per_epoch)


@torch.no_grad()
def evaluate_batch(
    training: Training, model: nn.Module, metrics: Mapping[str, Metric], batch: Batch
) -> tuple[Batch, Outputs, list[dict[str, float]]]:
    """Update ``metrics`` with one batch; returns it on the device, the outputs, and the losses of each real sample."""
    task = training.task
    batch = to_device(batch, training.workers.device)
    losses = []
    with autocast(training):
        outputs = task.forward(model, batch)
        for one_outputs, one_batch in task.split_samples(outputs, batch):
            if not one_batch["is_filler"].item():
                terms, extras = task.losses(model, one_outputs, one_batch)
                losses.append({name: float(value) for name, value in _with_total(terms, extras).items()})
    for metric in metrics.values():
        metric.update(outputs, batch)
    return batch, outputs, losses


def _first(arrays: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: value[:count] for name, value in arrays.items()}


def _with_total(terms: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": torch.stack(list(terms.values())).sum(), **terms, **extras}


def _evaluated_on(training: Training) -> dict[str, Any]:
    """The part of a protocol that says which samples were measured."""
    return {
        "dataset": training.provenance.get("dataset"),
        "split": training.config.data.val_split,
        "max_samples": training.config.data.max_samples,
        "max_batches": training.config.eval.max_batches,
    }


def _reported(
    training: Training, metrics: Mapping[str, Metric], sums: Mapping[str, float], count: int
) -> dict[str, float]:
    """Merge over the workers, then name the numbers: the objective first, then the other metrics, then losses."""
    gathered = training.workers.gather(
        {"states": {name: m.state() for name, m in metrics.items()}, "sums": dict(sums), "count": count}
    )
    reported: dict[str, float] = {}
    for name, metric in metrics.items():
        metric.reset()
        for part in gathered:
            metric.merge(part["states"][name])
        for key, value in metric.compute().items():
            reported[f"val/{key}"] = value
            training.protocols[f"val/{key}"] = {**metric.protocol.model_dump(mode="json"), **_evaluated_on(training)}
    training.class_scores = training.task.class_scores(metrics)
    training.tables = training.task.tables(metrics)
    total = sum(part["count"] for part in gathered)
    for name in sorted({name for part in gathered for name in part["sums"]}):
        reported[f"val/{name}"] = sum(part["sums"].get(name, 0.0) for part in gathered) / max(total, 1)
        # A loss is defined by the whole task: its weights, labels, grid and sensors.
        task = digest(training.config.task)
        training.protocols[f"val/{name}"] = {"metric": name, "task": task, **_evaluated_on(training)}
    objective = training.config.eval.metric
    first = {objective: reported[objective]} if objective in reported else {}
    return {**first, **reported, "val/num_samples": float(total)}
