"""Radar and lidar: sweeps, filters, frames, padding and voxels."""

from __future__ import annotations

import numpy as np
import torch
from bev_samples import FORWARD, make_sample, yaw_pose

from sensorlab.data.sample import RADAR_FIELDS, PointSweep
from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.poses import inverse_rigid, rigid, transform_points
from sensorlab.tasks.bev_segmentation.config import LidarConfig, RadarConfig
from sensorlab.tasks.bev_segmentation.sensors import (
    RADAR_FEATURES,
    lidar_points,
    lidar_volume,
    pad_points,
    passes_default_filters,
    radar_points,
    radar_volume,
    select_sweeps,
)

GRID = BEVGrid(x=(-20, 20), z=(-20, 20), cells=(40, 2, 40))
REF_FROM_EGO = inverse_rigid(rigid(FORWARD, np.array([1.0, 0.0, 1.5])))
RADAR = RadarConfig(input="metadata", min_distance=0.0)


def _sweep(name: str, time_lag: float, *points: dict[str, float], yaw: float = 0.0) -> PointSweep:
    rows = np.zeros((len(points), len(RADAR_FIELDS)), np.float32)
    for row, values in zip(rows, points, strict=True):
        for field, value in values.items():
            row[RADAR_FIELDS.index(field)] = value
    return PointSweep(name, 0, time_lag, yaw_pose(yaw), rows)


def test_the_youngest_sweeps_of_every_sensor() -> None:
    sweeps = [_sweep(name, lag) for name in ("A", "B") for lag in (0.2, 0.0, 0.1)]
    assert [(s.name, s.time_lag) for s in select_sweeps(sweeps, 2)] == [("A", 0.0), ("B", 0.0), ("A", 0.1), ("B", 0.1)]
    assert len(select_sweeps(sweeps, 9)) == 6
    assert select_sweeps([], 3) == []


def test_default_filters() -> None:
    good = {"ambig_state": 3.0, "invalid_state": 0.0, "dyn_prop": 6.0}
    sweep = _sweep("A", 0, good, good | {"ambig_state": 4}, good | {"invalid_state": 1}, good | {"dyn_prop": 7})
    assert passes_default_filters(sweep.points).tolist() == [True, False, False, False]
    assert len(radar_points([sweep], RADAR, None)[0]) == 4
    assert len(radar_points([sweep], RADAR.model_copy(update={"filters": "default"}), None)[0]) == 1


def test_points_near_their_sensor_are_dropped() -> None:
    sweep = _sweep("A", 0, {"x": 2.1, "y": -2.1}, {"x": 2.1, "y": 2.3}, {"x": -9.0, "y": 0.0})
    config = RADAR.model_copy(update={"min_distance": 2.2})
    assert radar_points([sweep], config, None)[0][:, :2].tolist() == [[np.float32(2.1), np.float32(2.3)], [-9.0, 0.0]]


def test_positions_are_in_the_ego_frame_and_age_is_a_feature() -> None:
    positions, features = radar_points([_sweep("A", 0.08, {"x": 5.0, "rcs": 7.5}, yaw=90)], RADAR, None)
    np.testing.assert_allclose(positions, [[0, 5, 0]], atol=1e-6)
    described = dict(zip(RADAR_FEATURES, features[0].tolist(), strict=True))
    assert len(RADAR_FEATURES) == 16
    assert (described["rcs"], described["time_lag"]) == (7.5, np.float32(0.08))


def test_velocities_turn_into_the_axes_of_the_map() -> None:
    # A radar that looks to the left sees something recede from it at 5 m/s: to the left, -5 along the map's columns.
    sweep = _sweep("A", 0, {"x": 9.0, "vx": 5.0, "vx_comp": 4.0, "vy_comp": 1.0}, yaw=90)
    turned = dict(zip(RADAR_FEATURES, radar_points([sweep], RADAR, REF_FROM_EGO)[1][0].tolist(), strict=True))
    np.testing.assert_allclose([turned["vx"], turned["vy"]], [-5, 0], atol=1e-5)
    # compensated: 4 to the left; 1 along the radar's y axis, which points backward
    np.testing.assert_allclose([turned["vx_comp"], turned["vy_comp"]], [-4, -1], atol=1e-5)
    raw = dict(zip(RADAR_FEATURES, radar_points([sweep], RADAR, None)[1][0].tolist(), strict=True))
    assert (raw["vx"], raw["vy"], raw["vx_comp"], raw["vy_comp"]) == (5, 0, 4, 1)


def test_padding_does_not_change_the_volumes() -> None:
    samples = [make_sample(seed=seed) for seed in range(3)]
    clouds = [radar_points(s.radars[: 1 + i], RADAR, REF_FROM_EGO) for i, s in enumerate(samples)]
    lidars = [lidar_points(s.lidars[: i % 2 + 1], LidarConfig()) for i, s in enumerate(samples)]
    assert len({len(points) for points, _ in clouds}) == 3
    pose = torch.from_numpy(REF_FROM_EGO.astype(np.float32)).expand(3, 4, 4)
    batch = {
        "radar_points": torch.from_numpy(pad_points([points for points, _ in clouds])),
        "radar_features": torch.from_numpy(pad_points([features for _, features in clouds])),
        "lidar_points": torch.from_numpy(pad_points(lidars)),
        "ref_from_ego": pose,
    }
    lidar_on = LidarConfig(enabled=True)
    metadata = radar_volume(batch, RADAR, GRID, legacy=False)
    occupancy = radar_volume(batch, RadarConfig(input="occupancy"), GRID, legacy=False)
    lidar = lidar_volume(batch, lidar_on, GRID, legacy=False)
    assert metadata is not None
    assert occupancy is not None
    assert lidar is not None
    assert metadata.shape == (3, 16, 40, 2, 40)
    assert occupancy.shape == lidar.shape == (3, 1, 40, 2, 40)
    for i in range(3):
        one = {
            "radar_points": torch.from_numpy(clouds[i][0])[None],
            "radar_features": torch.from_numpy(clouds[i][1])[None],
            "lidar_points": torch.from_numpy(lidars[i])[None],
            "ref_from_ego": pose[:1],
        }
        for config, volume in ((RADAR, metadata), (RadarConfig(input="occupancy"), occupancy)):
            alone = radar_volume(one, config, GRID, legacy=False)
            assert alone is not None
            assert alone.any()
            assert torch.equal(alone[0], volume[i])
        alone = lidar_volume(one, lidar_on, GRID, legacy=False)
        assert alone is not None
        assert alone.any()
        assert torch.equal(alone[0], lidar[i])


def test_the_youngest_return_describes_a_voxel() -> None:
    here = {"x": 10.0, "y": 0.0, "z": 1.0}
    sweeps = [_sweep("A", 0.2, here | {"rcs": 2.0}), _sweep("A", 0.0, here | {"rcs": 1.0})]
    points, features = radar_points(sweeps, RADAR, REF_FROM_EGO)
    batch = {
        "radar_points": torch.from_numpy(points)[None],
        "radar_features": torch.from_numpy(features)[None],
        "ref_from_ego": torch.from_numpy(REF_FROM_EGO.astype(np.float32))[None],
    }
    volume = radar_volume(batch, RADAR, GRID, legacy=False)
    assert volume is not None
    rcs = volume[0, RADAR_FEATURES.index("rcs")]
    assert rcs[rcs != 0].tolist() == [1.0]


def test_lidar_voxels_are_where_the_points_are() -> None:
    sample = make_sample()
    points = lidar_points(sample.lidars, LidarConfig())
    in_ref = transform_points(REF_FROM_EGO, points.astype(np.float64))
    voxels = GRID.to_voxel(in_ref)
    cells = GRID.to_cells(voxels[GRID.contains(voxels) & (np.linalg.norm(points, axis=1) > 1.0)])
    batch = {
        "lidar_points": torch.from_numpy(points)[None],
        "ref_from_ego": torch.from_numpy(REF_FROM_EGO.astype(np.float32))[None],
    }
    volume = lidar_volume(batch, LidarConfig(enabled=True), GRID, legacy=False)
    assert volume is not None
    found = {tuple(cell) for cell in volume[0, 0].nonzero().tolist()}
    assert found == {(z, y, x) for x, y, z in cells.tolist()}
    assert 300 < len(found) < 800


def test_no_sensors() -> None:
    assert radar_volume({}, RadarConfig(), GRID, legacy=False) is None
    assert lidar_volume({}, LidarConfig(), GRID, legacy=False) is None
    positions, features = radar_points([], RADAR, None)
    assert (positions.shape, features.shape) == ((0, 3), (0, 16))
    batch = {"radar_points": torch.from_numpy(pad_points([positions, positions])), "ref_from_ego": torch.eye(4)[None]}
    batch["ref_from_ego"] = batch["ref_from_ego"].expand(2, 4, 4)
    empty = radar_volume(batch, RadarConfig(input="occupancy"), GRID, legacy=False)
    assert empty is not None
    assert not empty.any()
