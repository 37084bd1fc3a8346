"""The BEV voxel grid beyond the golden arrays: invariants, edges, refusals."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from sensorlab.geometry.bev_grid import BEVGrid

GRID = BEVGrid(x=(-8, 12), y=(-2, 4), z=(0, 30), cells=(6, 3, 10), centroid=(0.5, 1.0, -2.0))


def test_centres_lie_at_integer_voxel_coordinates() -> None:
    z, y, x = np.meshgrid(*(np.arange(n) for n in GRID.cells), indexing="ij")
    voxels = GRID.to_voxel(GRID.voxel_centers())
    assert np.allclose(voxels, np.stack([x, y, z], -1))
    assert GRID.contains(voxels).all()
    assert GRID.cell_size == (2.0, 2.0, 5.0)
    assert GRID.num_voxels == 180


def test_bounds_are_the_borders_of_the_outer_cells() -> None:
    corners = np.array([[-8 + 0.5, -2 + 1.0, 0 - 2.0], [12 + 0.5, 4 + 1.0, 30 - 2.0]])
    assert np.allclose(GRID.to_voxel(corners), [[-0.5, -0.5, -0.5], [9.5, 2.5, 5.5]])
    assert not GRID.contains(GRID.to_voxel(corners)).any()
    assert GRID.contains(GRID.to_voxel(corners + np.array([[1e-6], [-1e-6]]))).all()


def test_matrices_are_inverse() -> None:
    assert np.allclose(GRID.ref_from_voxel @ GRID.voxel_from_ref, np.eye(4))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_cells_round_to_even_and_stay_inside(library: str) -> None:
    voxels = np.array([[0.5, 1.5, 2.5], [-0.49, 0.0, 5.49], [9.499999, 2.49, -0.4]])
    cells = GRID.to_cells(torch.from_numpy(voxels) if library == "torch" else voxels)
    assert np.asarray(cells).tolist() == [[0, 2, 2], [0, 0, 5], [9, 2, 0]]
    # Ten cells along x: 9.5 - eps is inside, and rounds to the even 10 in float32.
    near = np.array([[np.nextafter(np.float32(9.5), np.float32(0)), 0, 0]], np.float32)
    assert GRID.contains(near).all()
    assert np.asarray(GRID.to_cells(torch.from_numpy(near) if library == "torch" else near)).tolist() == [[9, 0, 0]]


def test_not_finite_is_outside() -> None:
    assert not GRID.contains(np.array([[np.nan, 0, 0], [0, np.inf, 0]])).any()


def test_is_a_value() -> None:
    assert pickle.loads(pickle.dumps(GRID)) == GRID
    assert hash(GRID) == hash(dataclasses.replace(GRID))
    assert dataclasses.replace(GRID, cells=(6, 3, 11)) != GRID


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (3.0, 3.0)}, "bounds of x"),
        ({"z": (0.0, float("nan"))}, "bounds of z"),
        ({"cells": (5, 0, 5)}, "cells must be"),
    ],
)
def test_refuses_impossible_grids(change: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GRID, **change)
