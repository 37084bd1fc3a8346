"""The voxel grid against Simple-BEV's ``utils/vox.py``: every array of vox.npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.poses import transform_points

pytestmark = pytest.mark.golden

VOX = np.load(Path(__file__).parent / "data" / "simple_bev" / "vox.npz")
FULL = BEVGrid()


def _grid(prefix: str) -> BEVGrid:
    x_min, x_max, y_min, y_max, z_min, z_max = (float(v) for v in VOX[f"{prefix}_bounds"])
    z, y, x = (int(v) for v in VOX[f"{prefix}_dims_zyx"])
    a, b, c = (float(v) for v in VOX[f"{prefix}_centroid"])
    return BEVGrid(x=(x_min, x_max), y=(y_min, y_max), z=(z_min, z_max), cells=(z, y, x), centroid=(a, b, c))


def _official_contains(grid: BEVGrid, voxels: np.ndarray) -> np.ndarray:
    """The original also calls points outside whose voxel z is exactly 0 (the centres of the first row)."""
    return grid.contains(voxels) & (voxels[:, 2] != 0)


@pytest.mark.parametrize("prefix", ["small", "alt"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_grid(prefix: str, library: str) -> None:
    grid = _grid(prefix)

    def to_array(name: str) -> np.ndarray:
        return VOX[f"{prefix}_{name}"] if library == "numpy" else torch.from_numpy(VOX[f"{prefix}_{name}"])

    assert np.abs(grid.voxel_centers().reshape(-1, 3) - VOX[f"{prefix}_xyz_ref"]).max() <= 1e-4
    assert np.abs(grid.voxel_from_ref - VOX[f"{prefix}_mem_T_ref"]).max() <= 1e-4
    assert np.abs(grid.ref_from_voxel - VOX[f"{prefix}_ref_T_mem"]).max() <= 1e-4
    voxels = grid.to_voxel(to_array("pts_ref"))
    assert np.abs(np.asarray(voxels) - VOX[f"{prefix}_pts_ref_to_mem"]).max() <= 1e-4
    assert np.abs(np.asarray(grid.to_ref(to_array("pts_mem"))) - VOX[f"{prefix}_pts_mem_to_ref"]).max() <= 1e-4
    inside = _official_contains(grid, np.asarray(voxels))
    assert np.array_equal(inside, VOX[f"{prefix}_pts_inbounds"].astype(bool))
    assert 0 < inside.sum() < len(inside)


def test_default_grid_centres_and_transforms() -> None:
    centers = FULL.voxel_centers()
    assert np.abs(centers[tuple(VOX["full_idx_zyx"].T)] - VOX["full_xyz_ref"]).max() <= 1e-4
    flat = np.ravel_multi_index(tuple(VOX["full_idx_zyx"].T), FULL.cells)
    assert np.array_equal(flat, VOX["full_flat"])
    assert np.abs(centers.reshape(-1, 3)[flat] - VOX["full_xyz_ref"]).max() <= 1e-4
    assert np.abs(centers.reshape(-1, 3).sum(0) - VOX["full_sum"]).max() <= 0.5
    assert np.abs(FULL.voxel_from_ref - VOX["full_mem_T_ref"]).max() <= 1e-5
    assert np.abs(FULL.ref_from_voxel - VOX["full_ref_T_mem"]).max() <= 1e-5


def test_default_grid_edges() -> None:
    points = VOX["full_edge_ref"]
    by_matrix = transform_points(FULL.voxel_from_ref, points.astype(np.float64))
    voxels = FULL.to_voxel(points)
    assert np.abs(by_matrix - VOX["full_edge_mem"]).max() <= 1e-4
    assert np.abs(voxels - VOX["full_edge_mem"]).max() <= 1e-4
    assert np.array_equal(_official_contains(FULL, voxels), VOX["full_edge_inbounds"].astype(bool))
    # The only point on which the two rules differ is the one whose voxel z is exactly 0: it is inside the first row.
    assert np.flatnonzero(FULL.contains(voxels) != VOX["full_edge_inbounds"].astype(bool)).tolist() == [0]
