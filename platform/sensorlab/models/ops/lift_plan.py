"""Which feature pixels make up which voxel: the geometry of lifting, computed once per rig and crop.

Every voxel centre is projected into every camera; where it falls onto the image, it samples the feature map
bilinearly. Of the ``cameras x voxels`` pairs only a fraction is visible (18 % for the nuScenes rig on the
default grid), so a plan stores the visible pairs alone, as a sparse matrix from feature pixels to voxels.
:func:`sensorlab.models.ops.lift.lift` applies it.

Where the bilinear sample is taken, in feature pixels with integer centres, for a pixel u of an image of width W and a
feature map of width Wf (the same for v, H, Hf):

``centered``
    (u + 0.5) * Wf / W - 0.5: a feature cell covers a block of pixels; valid where -0.5 < u < W - 0.5.
``index``
    x = u * Wf / W: right for the centres of strided convolutions; valid where -0.5 < x < Wf - 0.5.
``legacy``
    x * Wf / (Wf - 1) - 0.5, with the validity of ``index``: what Simple-BEV computes (``utils/vox.py``
    unproject_image_to_mem normalises for align_corners=True and samples with False). Published weights need it.

Outside the feature map there are zeros.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.models.ops.lift_projection import BilinearTaps, SampleMapping, Sampling, visible_pairs

Mean = Literal["visible", "nonzero"]


@dataclass(frozen=True, eq=False)
class SparseRows:
    """A sparse matrix by rows (CSR). Row r sums ``weight[k] * input[index[k]]`` for k in ``start[r]:start[r + 1]``."""

    start: Tensor  # (rows + 1,) int32
    index: Tensor  # (entries,) int32
    weight: Tensor  # (entries,) float32


@dataclass(frozen=True, eq=False)
class CellRows:
    """The transpose of a lift: for every cell between feature pixels, who samples there, with its four weights.

    All samples of a cell have the same four taps, so grouping by cell sorts a quarter of what grouping by pixel would.
    Cells are numbered (camera, row, column) with (Hf + 1) x (Wf + 1) cells per camera.
    """

    start: Tensor  # (cells + 1,) int32
    index: Tensor  # (P,) int32, what samples there: voxels or other rows
    weights: Tensor  # (4, P) float32, by tap in the order of BilinearTaps
    feature_size: tuple[int, int]  # (Hf, Wf)


_TENSORS = ("taps", "weights", "cell", "pair_voxel", "voxel_start")


@dataclass(frozen=True, eq=False)
class LiftPlan:
    """The visible (voxel, camera) pairs of one sample and the four feature pixels that each of them samples.

    Pairs are sorted by voxel. Voxels are numbered in the order (Z, X, Y): a BEV cell keeps its column together, and
    the lifted volume can be folded to BEV channels without a copy.

    Attributes:
        grid, num_cameras, feature_size (Hf, Wf), sampling, mean: what the plan was built for.
        taps: (P, 4) int32 feature pixels, numbered (camera, row, column).
        weights: (P, 4) float32 bilinear weights, zero outside the feature map, divided by the number of cameras that
            see the voxel.
        cell: (P,) int32, the cell between feature pixels in which the sample lies; see :class:`CellRows`.
        pair_voxel: (P,) int32.
        voxel_start: (voxels + 1,) int32: the pairs of voxel v are ``voxel_start[v]:voxel_start[v + 1]``.
    """

    grid: BEVGrid
    num_cameras: int
    feature_size: tuple[int, int]
    sampling: Sampling
    mean: Mean
    taps: Tensor
    weights: Tensor
    cell: Tensor
    pair_voxel: Tensor
    voxel_start: Tensor

    @property
    def num_pixels(self) -> int:
        """Feature pixels of all cameras together."""
        return self.num_cameras * self.feature_size[0] * self.feature_size[1]

    @property
    def num_pairs(self) -> int:
        return len(self.pair_voxel)

    @property
    def num_cells(self) -> int:
        """Cells between feature pixels of all cameras together."""
        return self.num_cameras * (self.feature_size[0] + 1) * (self.feature_size[1] + 1)

    @cached_property
    def pairs_by_cell(self) -> CellRows:
        """The transpose, needed by the backward pass; its index names pairs.

        Computed on first use, so that evaluation does not pay for it.
        """
        cell, order = torch.sort(self.cell, stable=True)
        weights = self.weights.index_select(0, order).t().contiguous()
        return CellRows(row_starts(cell, self.num_cells), order.int(), weights, self.feature_size)

    def visibility(self) -> Tensor:
        """(S, Z, Y, X) bool: which camera sees which voxel (for ``mean="nonzero"``: with a sample that can count)."""
        cells_z, cells_y, cells_x = self.grid.cells
        camera = self.taps[:, 0] // (self.feature_size[0] * self.feature_size[1])
        visible = self.taps.new_zeros((self.num_cameras, self.grid.num_voxels), dtype=torch.bool)
        visible[camera.long(), self.pair_voxel.long()] = True
        return visible.view(-1, cells_z, cells_x, cells_y).transpose(2, 3)

    def to(self, device: torch.device | str) -> LiftPlan:
        """The same plan on another device."""
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return replace(self, **moved)


def build_lift_plan(
    grid: BEVGrid,
    intrinsics: Tensor,
    ref_from_camera: Tensor,
    image_size: tuple[int, int],
    feature_size: tuple[int, int],
    sampling: Sampling = "centered",
    mean: Mean | None = None,
) -> LiftPlan:
    """Project all voxels of ``grid`` into all cameras of one sample and keep the visible pairs.

    Args:
        grid: voxels in the reference-camera frame.
        intrinsics: (S, 3, 3) pixels of the images that the encoder sees (last row 0, 0, 1).
        ref_from_camera: (S, 4, 4) rigid, metres.
        image_size: (H, W) of those images.
        feature_size: (Hf, Wf) of the encoder's output.
        sampling: see the module's description.
        mean: ``visible`` divides by the number of cameras that see a voxel. ``nonzero`` divides, for each channel, by
            the number of cameras whose sample is not exactly zero, as Simple-BEV does. Default: the published rule
            for ``legacy``, else ``visible``.

    Returns:
        A plan on the device of ``intrinsics``. The projection is done in float64.

    Raises:
        ValueError: a shape or an option does not fit.
    """
    if sampling not in get_args(Sampling):
        raise ValueError(f"sampling must be one of {', '.join(get_args(Sampling))}, found {sampling!r}")
    mean = mean or ("nonzero" if sampling == "legacy" else "visible")
    if mean not in get_args(Mean):
        raise ValueError(f"mean must be one of {', '.join(get_args(Mean))}, found {mean!r}")
    num_cameras = len(intrinsics)
    if intrinsics.shape != (num_cameras, 3, 3) or ref_from_camera.shape != (num_cameras, 4, 4):
        raise ValueError(
            "expected intrinsics (S, 3, 3) and ref_from_camera (S, 4, 4), "
            f"found {tuple(intrinsics.shape)} and {tuple(ref_from_camera.shape)}"
        )
    mapping = SampleMapping.of(sampling, image_size, feature_size)
    projection = mapping.feature_from_ref(intrinsics.double(), ref_from_camera.double())
    camera, voxel, column, row = visible_pairs(grid, projection, feature_size)
    bilinear = BilinearTaps.at(mapping.position_x(column), mapping.position_y(row), feature_size)
    taps, weights, camera = bilinear.pixel, bilinear.weight, camera.int()
    taps += (camera * (feature_size[0] * feature_size[1]))[:, None]
    cell = bilinear.cell + camera * ((feature_size[0] + 1) * (feature_size[1] + 1))
    if mean == "nonzero":
        # Legacy positions may leave the map by more than a pixel: zero whatever the features are, so never counted.
        reaches = (weights != 0).any(1)
        voxel, taps, weights, cell = voxel[reaches], taps[reaches], weights[reaches], cell[reaches]
    start = row_starts(voxel, grid.num_voxels)
    weights /= start.diff().index_select(0, voxel)[:, None]
    return LiftPlan(grid, num_cameras, feature_size, sampling, mean, taps, weights, cell, voxel, start)


def build_lift_plans(
    grid: BEVGrid,
    intrinsics: Tensor,
    ref_from_camera: Tensor,
    image_size: tuple[int, int],
    feature_size: tuple[int, int],
    sampling: Sampling = "centered",
    mean: Mean | None = None,
    cache: LiftPlanCache | None = None,
) -> list[LiftPlan]:
    """Plans of a batch: intrinsics (B, S, 3, 3) and ref_from_camera (B, S, 4, 4), each sample with its own crop.

    Pass a ``cache`` where rigs repeat (evaluation, no augmentation); without one every plan is built.
    """
    build = cache.get if cache is not None else build_lift_plan
    return [
        build(grid, k, pose, image_size, feature_size, sampling, mean)
        for k, pose in zip(intrinsics, ref_from_camera, strict=True)
    ]


@dataclass
class LiftPlanCache:
    """The most recently used plans of fixed rigs. Least recently used ones are dropped beyond ``capacity``.

    Plans are found by the bytes of their matrices and all options: equal calibration, equal plan. A plan of six
    cameras on the default grid holds about 25 MB, its transpose included.
    """

    capacity: int = 8
    _plans: OrderedDict[tuple[object, ...], LiftPlan] = field(default_factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        return len(self._plans)

    def get(
        self,
        grid: BEVGrid,
        intrinsics: Tensor,
        ref_from_camera: Tensor,
        image_size: tuple[int, int],
        feature_size: tuple[int, int],
        sampling: Sampling = "centered",
        mean: Mean | None = None,
    ) -> LiftPlan:
        """The plan that :func:`build_lift_plan` gives for these arguments, built only if it is not here."""
        matrices = (intrinsics, ref_from_camera)
        contents = tuple((m.dtype, tuple(m.shape), m.detach().cpu().numpy().tobytes()) for m in matrices)
        key = (grid, contents, str(intrinsics.device), image_size, feature_size, sampling, mean)
        plan = self._plans.get(key)
        if plan is None:
            plan = build_lift_plan(grid, intrinsics, ref_from_camera, image_size, feature_size, sampling, mean)
            self._plans[key] = plan
            if len(self._plans) > self.capacity:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return plan


def row_starts(sorted_rows: Tensor, num_rows: int) -> Tensor:
    """CSR row starts (num_rows + 1,) int32 of ascending row numbers."""
    start = torch.zeros(num_rows + 1, dtype=torch.int32, device=sorted_rows.device)
    torch.cumsum(torch.bincount(sorted_rows, minlength=num_rows), 0, dtype=torch.int32, out=start[1:])
    return start
