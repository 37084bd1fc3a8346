"""Occupancy without padding: the corrected behaviour, beside the original's faults that the switch brings back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.models.ops.occupancy import lidar_occupancy, radar_occupancy, voxelize_points

GRID = BEVGrid(x=(-4, 4), y=(-2, 2), z=(0, 8), cells=(8, 2, 8), centroid=(0, 0, 0))
HERE = torch.eye(4).expand(2, 4, 4)


def _cells(volume: Tensor) -> list[tuple[int, ...]]:
    return [tuple(int(i) for i in cell) for cell in (volume != 0).any(1).nonzero()]


def test_points_fall_into_their_cells_and_outside_is_ignored() -> None:
    points = torch.tensor([[0.5, 0.5, 3.5], [-3.9, -1.9, 0.1], [4.1, 0, 3], [0, 0, -0.1], [torch.nan, 0, 3]])
    occupancy = voxelize_points(points, GRID)
    assert occupancy.shape == (1, 1, 8, 2, 8)
    assert _cells(occupancy) == [(0, 0, 0, 0), (0, 3, 1, 4)]
    assert occupancy.max() == 1


def test_first_cell_and_points_at_the_camera_count_unless_legacy() -> None:
    points = torch.tensor([[-3.5, -1.0, 0.3], [0.02, 1.0, 0.5], [0.01, 0.0, 0.01]])
    assert _cells(voxelize_points(points, GRID)) == [(0, 0, 0, 0), (0, 0, 0, 4), (0, 0, 1, 4)]
    assert _cells(voxelize_points(points[[0]], GRID, legacy=True)) == []  # cell (0, 0, 0)
    assert _cells(voxelize_points(points[[1]], GRID, legacy=True)) == []  # voxel z exactly 0
    assert _cells(voxelize_points(points[[2]], GRID, legacy=True)) == []  # at the camera
    assert _cells(voxelize_points(points[[1]] + 0.1, GRID, legacy=True)) == [(0, 0, 1, 4)]


def test_first_point_of_a_cell_gives_the_features() -> None:
    points = torch.tensor([[0.4, 0.5, 3.5], [2.5, 0.5, 3.5], [0.6, 0.5, 3.5], [0.5, 0.5, 3.5]])
    features = torch.tensor([[1.0, -1], [2, -2], [3, -3], [4, -4]])
    volume = voxelize_points(points, GRID, features=features)
    assert volume.shape == (1, 2, 8, 2, 8)
    assert volume[0, :, 3, 1, 4].tolist() == [1, -1]
    assert volume[0, :, 3, 1, 6].tolist() == [2, -2]
    assert int((volume != 0).sum()) == 4
    reversed_order = voxelize_points(points.flip(0), GRID, features=features.flip(0))
    assert reversed_order[0, :, 3, 1, 4].tolist() == [4, -4]


def test_batch_equals_its_samples_whatever_the_order_of_the_points() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand((60, 3), generator=generator) * torch.tensor([10.0, 5, 10]) - torch.tensor([5.0, 2.5, 1])
    features = torch.rand((60, 3), generator=generator)
    index = torch.randint(0, 3, (60,), generator=generator)
    batched = voxelize_points(points, GRID, features=features, batch_index=index, batch_size=4)
    for b in range(4):
        single = voxelize_points(points[index == b], GRID, features=features[index == b])
        assert torch.equal(batched[b : b + 1], single)
    assert not batched[3].any()
    assert batched[:3].any()


@pytest.mark.parametrize("legacy", [False, True])
def test_empty_clouds(legacy: bool) -> None:
    nothing, index = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    assert not voxelize_points(nothing, GRID, legacy=legacy).any()
    assert voxelize_points(nothing, GRID, features=torch.zeros(0, 16), legacy=legacy).shape == (1, 16, 8, 2, 8)
    assert lidar_occupancy(nothing, index, HERE, GRID, legacy=legacy).shape == (2, 1, 8, 2, 8)
    assert radar_occupancy(nothing, index, HERE, GRID, legacy=legacy).shape == (2, 1, 8, 2, 8)


def test_every_sample_is_moved_by_its_own_matrix() -> None:
    ref_from_ego = torch.eye(4).repeat(2, 1, 1)
    ref_from_ego[0, :3, 3] = torch.tensor([0.0, 0, 2])
    ref_from_ego[1, :3, :3] = torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # ego axes to camera axes
    points = torch.tensor([[1.5, 0.5, 1.5], [3.5, -1.5, 0.5]])
    occupancy = radar_occupancy(points, torch.tensor([0, 1]), ref_from_ego, GRID)
    assert _cells(occupancy) == [(0, 3, 1, 5), (1, 3, 0, 5)]


def test_radar_padding_occupies_the_ego_origin_only_in_legacy() -> None:
    ref_from_ego = torch.eye(4).repeat(2, 1, 1)
    ref_from_ego[:, :3, 3] = torch.tensor([0.5, 0.5, 3.5])
    points, index = torch.tensor([[2.0, 0.0, 2.0]]), torch.tensor([0])
    real = (0, 5, 1, 6)
    assert _cells(radar_occupancy(points, index, ref_from_ego, GRID)) == [real]
    assert _cells(radar_occupancy(points, index, ref_from_ego, GRID, legacy=True)) == [(0, 3, 1, 4), real, (1, 3, 1, 4)]
    # A real return at the origin keeps its metadata: the padding comes last.
    metadata = torch.full((1, 2), 7.0)
    volume = radar_occupancy(torch.zeros(1, 3), index, ref_from_ego, GRID, metadata=metadata, legacy=True)
    assert volume[0, :, 3, 1, 4].tolist() == [7, 7]


def test_lidar_drops_returns_from_the_vehicle_in_each_sample() -> None:
    near, far = [0.1, 0.1, 0.6], [1.5, 0.5, 3.5]
    points = torch.tensor([near, far, far, near, far])
    index = torch.tensor([0, 0, 1, 1, 1])
    assert _cells(lidar_occupancy(points, index, HERE, GRID)) == [(0, 3, 1, 5), (1, 3, 1, 5)]
    assert _cells(lidar_occupancy(points, index, HERE, GRID, min_distance=0.0)) == [
        (0, 0, 1, 4), (0, 3, 1, 5), (1, 0, 1, 4), (1, 3, 1, 5),
    ]  # fmt: skip


def test_legacy_lidar_applies_the_mask_of_sample_0_by_column() -> None:
    near, far, other = [0.1, 0.1, 0.6], [1.5, 0.5, 3.5], [2.5, 0.5, 3.5]
    # Columns: sample 0 near, far; sample 1 far, near, other. Kept: column 1 alone.
    points = torch.tensor([near, far, far, near, other])
    index = torch.tensor([0, 0, 1, 1, 1])
    assert _cells(lidar_occupancy(points, index, HERE, GRID, legacy=True)) == [(0, 3, 1, 5), (1, 0, 1, 4)]
    # A shorter sample 1 is padded with the ego origin, which is kept where sample 0 is far.
    ref_from_ego = torch.eye(4).repeat(2, 1, 1)
    ref_from_ego[:, :3, 3] = torch.tensor([0.0, 0, 2.5])
    points, index = torch.tensor([far, far, other]), torch.tensor([0, 0, 1])
    cells = _cells(lidar_occupancy(points, index, ref_from_ego, GRID, legacy=True))
    assert cells == [(0, 6, 1, 5), (1, 2, 0, 4), (1, 6, 1, 6)]


def test_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="as many features and batch indices"):
        voxelize_points(torch.zeros(3, 3), GRID, features=torch.zeros(2, 16))
    with pytest.raises(ValueError, match="as many features and batch indices"):
        voxelize_points(torch.zeros(3, 3), GRID, batch_index=torch.zeros(2, dtype=torch.int64))
