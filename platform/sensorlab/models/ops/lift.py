"""Lifting image features into a voxel grid as a sparse operation.

Dense formulations sample every camera's feature map at every voxel and mask what is not visible: for six cameras and
200x8x200 voxels that materialises gigabytes, of which the mask keeps a fifth. Here a precomputed :class:`LiftPlan`
says which feature pixels make up which voxel, and lifting is one weighted gather, written straight into the result.
The backward pass gathers over the transposed plan: no atomics, so nothing depends on the order of threads.

``F.embedding_bag`` is the gather: measured against CSR matrix products and gather + index_add on CPU it was the fastest
(2.5x and 7x for the forward pass, 128 channels, one thread), needs no temporary and exists on CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sensorlab.models.ops.lift_batch import BatchPlan, SharedVoxels
from sensorlab.models.ops.lift_plan import (
    CellRows,
    LiftPlan,
    LiftPlanCache,
    Mean,
    SparseRows,
    build_lift_plan,
    build_lift_plans,
)
from sensorlab.models.ops.lift_projection import Sampling

__all__ = ["LiftPlan", "LiftPlanCache", "Mean", "Sampling", "build_lift_plan", "build_lift_plans", "lift"]

# Channels handled at a time where a copy of a whole volume would otherwise be needed. Measured on CPU: the time is flat
# from 16 channels on, the memory is not.
_CHANNELS_AT_A_TIME = 16


def lift(features: Tensor, plans: Sequence[LiftPlan]) -> Tensor:
    """Mean over the cameras that see a voxel of the features at its projection; zero where none does.

    Args:
        features: (B, S, C, Hf, Wf), float.
        plans: one per sample, all for the same grid, feature size, number of cameras and options, on the device of
            ``features``.

    Returns:
        (B, C, Z, Y, X), dtype of ``features``, differentiable once. In memory it is ordered (B, Z, X, Y, C):
        ``volume.permute(0, 3, 1, 2, 4).flatten(1, 2)`` is the BEV map (B, Y * C, Z, X) in channels_last format
        without a copy.

    Raises:
        ValueError: features and plans do not fit together.
    """
    batch, cameras, channels, rows, columns = features.shape
    if len(plans) != batch:
        raise ValueError(f"{batch} samples need {batch} plans, found {len(plans)}")
    plan = BatchPlan(tuple(plans))
    first = plans[0]
    if (first.num_cameras, first.feature_size) != (cameras, (rows, columns)):
        raise ValueError(
            f"features of {cameras} cameras at {rows}x{columns} do not fit a plan for {first.num_cameras} cameras "
            f"at {first.feature_size[0]}x{first.feature_size[1]}"
        )
    pixels = features.permute(0, 1, 3, 4, 2).reshape(-1, channels)
    rule = _VisibleMean if plan.mean == "visible" else _NonzeroMean
    volume: Tensor = rule.apply(pixels, plan)
    return volume


class _VisibleMean(torch.autograd.Function):
    """Feature pixels (B * S * Hf * Wf, C) to volumes (B, C, Z, Y, X): a linear map, the plan holds its matrix."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, plan: BatchPlan) -> Tensor:
        if ctx.needs_input_grad[0]:
            # Before the volume exists, since sorting needs room of its own; and without holding on to the plan.
            ctx.transposed = plan.voxels_by_cell
        return _as_volume(_weighted_sum(pixels, plan.voxels), plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _visible_gradient(grad, ctx.transposed), None


class _NonzeroMean(torch.autograd.Function):
    """The same with Simple-BEV's mean: each channel averages the cameras whose sample is not exactly zero.

    (``utils/basic.py`` reduce_masked_mean; the 1e-6 that it adds to the denominator is below float32 resolution here.)
    As there, a sample that is exactly zero receives no gradient. Where nothing is exactly zero, which is what trained
    encoders give, this is the mean over visible cameras, and so is its gradient; both are corrected otherwise.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, plan: BatchPlan) -> Tensor:
        shared = plan.shared
        if ctx.needs_input_grad[0]:
            ctx.transposed = plan.voxels_by_cell
        present = _weighted_sum(pixels, shared.samples) != 0
        voxels = _weighted_sum(pixels, plan.voxels)
        any_absent = not bool(present.all())
        if any_absent:
            for c in _slices(pixels.shape[1]):
                voxels[shared.voxel, c] *= _nonzero_scale(present[:, c], shared, pixels.dtype)
        if ctx.needs_input_grad[0]:
            seen = int((plan.voxel_start.diff() > 0).sum()) * pixels.shape[1]
            if any_absent or int(voxels.count_nonzero()) < seen:
                ctx.plan = plan
                ctx.save_for_backward(voxels != 0, present)
        return _as_volume(voxels, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if not ctx.saved_tensors:
            return _visible_gradient(grad, ctx.transposed), None
        nonzero, present = ctx.saved_tensors
        transposed, shared = ctx.plan.sources_by_cell, ctx.plan.shared
        flat, grads = _voxel_view(grad), []
        for c in _slices(grad.shape[1]):
            # By voxel where one camera sees it, then by pair: the order of plan.sources_by_cell.
            by_source = grad.new_empty((len(nonzero) + len(present), c.stop - c.start))
            by_voxel, by_pair = by_source[: len(nonzero)], by_source[len(nonzero) :]
            by_voxel.view(*flat.shape[:4], -1).copy_(flat[..., c])
            scale = _nonzero_scale(present[:, c], shared, grad.dtype)
            torch.mul((by_voxel[shared.voxel] * scale)[shared.group], present[:, c], out=by_pair)
            by_voxel *= nonzero[:, c]
            grads.append(_transposed_sum(by_source, transposed))
        return torch.cat(grads, 1), None


def _visible_gradient(grad: Tensor, transposed: CellRows) -> Tensor:
    """Gradient of the feature pixels (n, C) from that of the volumes; a few channels at a time if it needs a copy."""
    flat = _voxel_view(grad)
    if flat.is_contiguous():
        return _transposed_sum(flat.flatten(0, 3), transposed)
    grads = [_transposed_sum(flat[..., c].reshape(-1, c.stop - c.start), transposed) for c in _slices(grad.shape[1])]
    return torch.cat(grads, 1)


def _nonzero_scale(present: Tensor, shared: SharedVoxels, dtype: torch.dtype) -> Tensor:
    """(V, C): cameras that see a shared voxel over samples (Q, C) that are present there; 0 / 0 never arises.

    Sums of ones are exact, so their order does not matter.
    """
    count = torch.zeros((len(shared.voxel), present.shape[1]), dtype=dtype, device=present.device)
    count.index_add_(0, shared.group, present.to(dtype))
    return shared.cameras[:, None] / count.clamp_(min=1)


def _weighted_sum(rows: Tensor, matrix: SparseRows) -> Tensor:
    """Sparse matrix times dense rows (n, C)."""
    weight = matrix.weight.to(rows.dtype)
    return F.embedding_bag(
        matrix.index, rows, matrix.start, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _transposed_sum(rows: Tensor, transposed: CellRows) -> Tensor:
    """Feature pixels (B * S * Hf * Wf, C) from rows (n, C): sums per cell and tap, each added to the tap's pixel."""
    height, width = transposed.feature_size
    maps = (len(transposed.start) - 1) // ((height + 1) * (width + 1))
    # One more pixel around every map receives the taps beyond its border, whose weights are zero.
    padded = rows.new_zeros((maps, height + 2, width + 2, rows.shape[1]))
    for tap, weight in enumerate(transposed.weights):
        down, right = divmod(tap, 2)
        sums = _weighted_sum(rows, SparseRows(transposed.start, transposed.index, weight))
        window = padded[:, down : down + height + 1, right : right + width + 1]
        window += sums.view(window.shape)
    return padded[:, 1:-1, 1:-1].flatten(0, 2)


def _as_volume(voxels: Tensor, plan: BatchPlan) -> Tensor:
    """(B * Z * X * Y, C) seen as (B, C, Z, Y, X)."""
    cells_z, cells_y, cells_x = plan.plans[0].grid.cells
    return voxels.view(len(plan.plans), cells_z, cells_x, cells_y, -1).permute(0, 4, 1, 3, 2)


def _voxel_view(volume: Tensor) -> Tensor:
    """(B, C, Z, Y, X) seen as (B, Z, X, Y, C)."""
    return volume.permute(0, 2, 4, 3, 1)


def _slices(channels: int) -> Iterator[slice]:
    for first in range(0, channels, _CHANNELS_AT_A_TIME):
        yield slice(first, min(first + _CHANNELS_AT_A_TIME, channels))
