"""Object instances from the three BEV maps: peaks of the centre map, and cells that point at them.

The original trains the centre and offset heads but never reads them. The decoding is that of Panoptic-DeepLab (Cheng et
al., 2020, section 3.3): local maxima by max pooling, then every foreground cell joins the centre nearest to where its
offset points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorlab.geometry.bev_grid import BEVGrid


@dataclass(frozen=True)
class Instances:
    """The instances of one sample."""

    ids: Tensor  # (Z, X) int64: 0 background, otherwise 1 + index into the arrays below
    cells: Tensor  # (K, 2) int64: column, row of the centre
    centers: Tensor  # (K, 2) float32: x, z of the centre in the ref frame, metres
    scores: Tensor  # (K,) float32: the centre map's value


def find_centers(heat: Tensor, threshold: float, window: int, limit: int) -> tuple[Tensor, Tensor]:
    """Peaks of a heat map (Z, X): cells (K, 2) as (column, row) and scores (K,), strongest first.

    A peak is at least ``threshold`` and the largest value of the ``window`` x ``window`` cells around it.
    """
    largest = F.max_pool2d(heat[None, None], window, stride=1, padding=window // 2)[0, 0]
    rows, columns = torch.nonzero((heat == largest) & (heat >= threshold), as_tuple=True)
    scores = heat[rows, columns]
    order = torch.argsort(scores, descending=True, stable=True)[:limit]
    return torch.stack([columns, rows], 1)[order], scores[order]


def decode_instances(
    seg: Tensor,
    center: Tensor,
    offset: Tensor,
    grid: BEVGrid,
    seg_threshold: float = 0.5,
    center_threshold: float = 0.1,
    window: int = 3,
    limit: int = 200,
    offset_scale: float = 1.0,
) -> Instances:
    """Instances of one sample.

    Args:
        seg: (1, Z, X) logits.
        center: (1, Z, X) in [0, 1].
        offset: (2, Z, X) cell minus centre along x and z, in cells times ``offset_scale`` (2 for legacy targets).
        window: side of the neighbourhood of a peak in cells, odd.
        limit: at most so many instances.
    """
    mask = torch.sigmoid(seg[0].float()) > seg_threshold
    cells, scores = find_centers(center[0].float(), center_threshold, window, limit)
    ids = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device)
    rows, columns = torch.nonzero(mask, as_tuple=True)
    if len(cells) and len(rows):
        here = torch.stack([columns, rows], 1).float()  # (M, 2)
        votes = here - offset[:, rows, columns].T.float() / offset_scale
        ids[rows, columns] = torch.cdist(votes, cells.float()).argmin(1) + 1
    x, _, z = grid.axis_centers()
    metres = [torch.as_tensor(axis, dtype=torch.float32, device=cells.device) for axis in (x, z)]
    centers = torch.stack([metres[0][cells[:, 0]], metres[1][cells[:, 1]]], 1)
    return Instances(ids, cells, centers, scores)
