"""The plans of a batch side by side, as one sparse map from all its feature pixels to all its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sensorlab.models.ops.lift_plan import CellRows, LiftPlan, Mean, SparseRows


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Plans joined along the batch: pixels, voxels and pairs are numbered through. One plan is used as it is."""

    plans: tuple[LiftPlan, ...]

    def __post_init__(self) -> None:
        first = self.plans[0]
        for plan in self.plans[1:]:
            same = ("grid", "num_cameras", "feature_size", "sampling", "mean")
            if any(getattr(plan, name) != getattr(first, name) for name in same):
                raise ValueError(f"the plans of a batch must agree on {', '.join(same)}")

    @property
    def mean(self) -> Mean:
        return self.plans[0].mean

    @cached_property
    def taps(self) -> Tensor:
        """(P, 4) int32 feature pixels."""
        return _shifted([plan.taps for plan in self.plans], [plan.num_pixels for plan in self.plans])

    @cached_property
    def weights(self) -> Tensor:
        """(P, 4) float32."""
        return _joined([plan.weights for plan in self.plans])

    @cached_property
    def pair_voxel(self) -> Tensor:
        """(P,) int32."""
        return _shifted([plan.pair_voxel for plan in self.plans], [plan.grid.num_voxels for plan in self.plans])

    @cached_property
    def voxel_start(self) -> Tensor:
        """(B * voxels + 1,) int32, over pairs."""
        return _joined_starts([plan.voxel_start for plan in self.plans])

    @cached_property
    def voxels(self) -> SparseRows:
        """The map: one row per voxel, over feature pixels."""
        return SparseRows(self.voxel_start * 4, self.taps.flatten(), self.weights.flatten())

    @cached_property
    def pairs_by_cell(self) -> CellRows:
        """The transpose by pairs: see :class:`CellRows`."""
        parts = [plan.pairs_by_cell for plan in self.plans]
        return CellRows(
            _joined_starts([part.start for part in parts]),
            _shifted([part.index for part in parts], [plan.num_pairs for plan in self.plans]),
            parts[0].weights if len(parts) == 1 else torch.cat([part.weights for part in parts], 1),
            parts[0].feature_size,
        )

    @cached_property
    def voxels_by_cell(self) -> CellRows:
        """The transpose over voxels."""
        return replace(self.pairs_by_cell, index=self.pair_voxel.index_select(0, self.pairs_by_cell.index))

    @cached_property
    def sources_by_cell(self) -> CellRows:
        """The transpose for gradients that differ between the pairs of a voxel.

        Its index is below the number of voxels for the only pair of that voxel; beyond follow the pairs of shared
        voxels in the order of ``shared.samples``.
        """
        is_shared = self.voxel_start.diff()[self.pair_voxel] > 1
        first_shared = len(self.voxel_start) - 1
        source = torch.where(is_shared, first_shared - 1 + torch.cumsum(is_shared, 0), self.pair_voxel).int()
        return replace(self.pairs_by_cell, index=source.index_select(0, self.pairs_by_cell.index))

    @cached_property
    def shared(self) -> SharedVoxels:
        """The voxels that several cameras see."""
        return SharedVoxels.of(self)


@dataclass(frozen=True, eq=False)
class SharedVoxels:
    """The voxels seen by several cameras: only there do the samples of single cameras matter for the mean.

    Attributes:
        voxel: (V,) int64, ascending.
        cameras: (V,) int64, how many see it.
        group: (Q,) int64 in 0..V-1: the shared voxel of each of the Q pairs that see one.
        samples: one row per such pair, over feature pixels.
    """

    voxel: Tensor
    cameras: Tensor
    group: Tensor
    samples: SparseRows

    @staticmethod
    def of(plan: BatchPlan) -> SharedVoxels:
        pairs = (plan.voxel_start.diff()[plan.pair_voxel] > 1).nonzero()[:, 0]
        voxel, group, cameras = torch.unique_consecutive(
            plan.pair_voxel[pairs].long(), return_inverse=True, return_counts=True
        )
        start = torch.arange(0, 4 * len(pairs) + 1, 4, dtype=torch.int32, device=pairs.device)
        samples = SparseRows(start, plan.taps[pairs].flatten(), plan.weights[pairs].flatten())
        return SharedVoxels(voxel, cameras, group, samples)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _shifted(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Concatenate indices, each part shifted by the sizes of those before it."""
    shift, moved = 0, []
    for part, size in zip(parts, sizes, strict=True):
        moved.append(part + shift if shift else part)
        shift += size
    return _joined(moved)


def _joined_starts(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate CSR row starts: each part continues where the one before it ended."""
    total, moved = parts[0][-1], [parts[0]]
    for part in parts[1:]:
        moved.append(part[1:] + total)
        total = moved[-1][-1]
    return _joined(moved)
