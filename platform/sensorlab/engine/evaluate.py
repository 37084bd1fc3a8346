"""Validation: every sample once, on all workers, with a result that does not depend on their number."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sensorlab.config import digest
from sensorlab.data.stream import SampleStream
from sensorlab.engine.meters import read_scalars
from sensorlab.engine.step import autocast, to_device
from sensorlab.engine.training import Training
from sensorlab.errors import UserError
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
            panels += _panels(training, outputs, batch, num_panels - len(panels))
        for callback in training.callbacks:
            callback.on_eval_batch(training, index + 1, total)
    if total < stream.batches_per_epoch:
        stream.close()  # what it reads ahead is not wanted
    if was_training:
        training.train_mode()
    reported = _reported(training, metrics, sums, count)
    check_objective(training, reported)
    return reported, panels


def check_objective(training: Training, reported: Collection[str] = ()) -> None:
    """A misspelt objective must not cost an epoch.

    Args:
        reported: names of an evaluation. Without them only those of the metrics are known, and of the total loss; a
            loss term may be the objective too, so its check waits for the dry run.

    Raises:
        UserError: lists what there is.
    """
    objective = training.config.eval.metric
    metrics = [f"val/{key}" for metric in training.task.metrics().values() for key in metric.compute()]
    known = {*metrics, "val/loss", *reported}
    if objective not in known and (reported or not objective.startswith("val/")):
        raise UserError(f"eval.metric={objective} is not reported; the task reports {', '.join(sorted(known))}")


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
    is_filler = batch["is_filler"].tolist()  # before the copy: reading it from a GPU would wait
    batch = to_device(batch, training.workers.device)
    losses: list[dict[str, Tensor]] = []
    with autocast(training):
        outputs = task.forward(model, batch)
        for filler, (one_outputs, one_batch) in zip(is_filler, task.split_samples(outputs, batch), strict=True):
            if not filler:
                losses.append(_with_total(*task.losses(model, one_outputs, one_batch)))
    for metric in metrics.values():
        metric.update(outputs, batch)
    values = iter(read_scalars([value for one in losses for value in one.values()]))
    return batch, outputs, [{name: next(values) for name in one} for one in losses]


def _panels(training: Training, outputs: Outputs, batch: Batch, count: int) -> list[tuple[str, np.ndarray]]:
    """Pictures of the first ``count`` samples that are no fillers; one by one, as arrays may be ragged."""
    task = training.task
    panels: list[tuple[str, np.ndarray]] = []
    for one_outputs, one_batch in task.split_samples(outputs, batch):
        if len(panels) < count and not one_batch["is_filler"].item():
            panels += task.panels(one_outputs, one_batch)
    return panels


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
