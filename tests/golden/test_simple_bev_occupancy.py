"""Radar and lidar voxels against Simple-BEV: every array of occ.npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.poses import inverse_rigid, rigid
from sensorlab.models.ops.occupancy import lidar_occupancy, radar_occupancy, voxelize_points

pytestmark = pytest.mark.golden

OCC = np.load(Path(__file__).parent / "data" / "simple_bev" / "occ.npz")
GRIDS = {"net": BEVGrid(cells=(40, 4, 32)), "full": BEVGrid()}


def _concatenated(points: np.ndarray) -> tuple[Tensor, Tensor]:
    """(B, N, D) to (B * N, D) and the sample of every row."""
    batch, number, size = points.shape
    return torch.from_numpy(np.ascontiguousarray(points).reshape(-1, size)), torch.arange(batch).repeat_interleave(
        number
    )


def _ref_from_ego() -> Tensor:
    return torch.from_numpy(inverse_rigid(rigid(OCC["rots"][:, 0], OCC["trans"][:, 0])))


def _radar() -> tuple[Tensor, Tensor, Tensor]:
    """Positions, metadata and sample numbers of the real returns: the last 22 columns are padding."""
    assert not OCC["radar_data"][:, :, -22:].any()
    rows, index = _concatenated(OCC["radar_data"][:, :, :-22].transpose(0, 2, 1))
    return rows[:, :3], rows[:, 3:], index


def _lidar() -> tuple[Tensor, Tensor]:
    assert not OCC["lidar_pts"][:, :, -35:].any()
    return _concatenated(OCC["lidar_pts"][:, :, :-35].transpose(0, 2, 1))


def _occupied(volume: Tensor) -> np.ndarray:
    """Sample, z, y, x of the cells in which any channel is not zero."""
    return (volume != 0).any(1).nonzero().numpy()


def test_points_and_features() -> None:
    grid = BEVGrid(cells=tuple(int(n) for n in OCC["fn_dims_zyx"]))
    points, index = _concatenated(OCC["fn_pts_ref"])
    features, _ = _concatenated(OCC["fn_feats"])
    occupancy = voxelize_points(points, grid, batch_index=index, batch_size=2, legacy=True)
    assert np.array_equal(occupancy[:, 0].numpy(), OCC["fn_occ"])
    scattered = voxelize_points(points, grid, features=features, batch_index=index, batch_size=2, legacy=True)
    assert np.array_equal(scattered.numpy(), OCC["fn_feat_occ"])


def test_edges() -> None:
    occupancy = voxelize_points(torch.from_numpy(OCC["edge_pts_ref"]), GRIDS["full"], legacy=True)
    assert np.array_equal(_occupied(occupancy)[:, 1:], OCC["edge_occ_zyx"])


@pytest.mark.parametrize("name", ["net", "full"])
@pytest.mark.parametrize(("legacy", "array"), [(True, "radar"), (False, "radar_nopad")])
def test_radar(name: str, legacy: bool, array: str) -> None:
    points, _, index = _radar()
    occupancy = radar_occupancy(points, index, _ref_from_ego(), GRIDS[name], legacy=legacy)
    assert np.array_equal(_occupied(occupancy), OCC[f"{name}_{array}_bzyx"])
    assert occupancy.max() == 1


@pytest.mark.parametrize("name", ["net", "full"])
@pytest.mark.parametrize("legacy", [True, False])
def test_radar_metadata(name: str, legacy: bool) -> None:
    points, metadata, index = _radar()
    volume = radar_occupancy(points, index, _ref_from_ego(), GRIDS[name], metadata=metadata, legacy=legacy)
    cells = OCC[f"{name}_meta_bzyx"]
    assert np.array_equal(_occupied(volume), cells)
    b, z, y, x = cells.T
    assert np.array_equal(volume[b, :, z, y, x].numpy(), OCC[f"{name}_meta_feats"])


@pytest.mark.parametrize("name", ["net", "full"])
@pytest.mark.parametrize(("legacy", "array"), [(True, "lidar"), (False, "lidar_persample")])
def test_lidar(name: str, legacy: bool, array: str) -> None:
    points, index = _lidar()
    occupancy = lidar_occupancy(points, index, _ref_from_ego(), GRIDS[name], legacy=legacy)
    assert np.array_equal(_occupied(occupancy), OCC[f"{name}_{array}_bzyx"])
