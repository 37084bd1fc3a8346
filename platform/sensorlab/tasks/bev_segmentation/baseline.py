"""What predicting the same mask for every sample scores: the bar that a trained model has to pass.

Labels alone are read, no image is decoded. With few scenes, or a vehicle that hardly moves, such masks score high.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from sensorlab.data.sample import Sample
from sensorlab.metrics.bev_iou import CellCounts
from sensorlab.tasks.bev_segmentation.task import BEVSegmentation


def count_cells(task: BEVSegmentation, samples: Iterable[Sample]) -> CellCounts:
    """How often each cell is foreground in the evaluation labels of ``samples``."""
    counts = CellCounts(task.protocol, (task.grid.cells[0], task.grid.cells[2]))
    for sample in samples:
        labels = task.label_arrays(sample)
        counts.update({}, {name: torch.from_numpy(labels[name])[None] for name in ("seg", "valid")})
    return counts


def constant_baseline(
    task: BEVSegmentation, evaluated: Iterable[Sample], fitted: Iterable[Sample] | None = None
) -> dict[str, float]:
    """Global IoU of constant predictions on the samples ``evaluated``, under the protocol of the task.

    Returns:
        ``all_foreground``: every cell; ``best_constant``: the best mask of all, chosen on the evaluated samples
        themselves, so no constant prediction scores higher; with ``fitted`` (the training samples) also
        ``train_prior``: the best mask on those, evaluated here, as a model without input could learn it.
        NaN without foreground.
    """
    counts = count_cells(task, evaluated)
    scores = {
        "all_foreground": counts.iou_of(np.ones_like(counts.best_mask())),
        "best_constant": counts.iou_of(counts.best_mask()),
    }
    if fitted is not None:
        scores["train_prior"] = counts.iou_of(count_cells(task, fitted).best_mask())
    return scores
