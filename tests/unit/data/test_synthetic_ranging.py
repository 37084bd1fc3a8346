"""Lidar and radar of the embedded world against independent geometry."""

import math

import numpy as np
import pytest

from sensorlab.data.sample import RADAR_FIELDS
from sensorlab.data.sources.radar_pcd import parse_radar_pcd
from sensorlab.data.synthetic.catalogue import KINDS
from sensorlab.data.synthetic.ground import paint_ground
from sensorlab.data.synthetic.motion import BOX_MARGIN, Actor, Motion, WorldState, standing, world_state
from sensorlab.data.synthetic.ranging import (
    CROSSING_MOVING,
    LIDAR_NOISE,
    MOVING,
    ONCOMING,
    RADAR_POSITION_NOISE,
    RADAR_SPEED_NOISE,
    STATIONARY,
    STOPPED,
    LidarScanner,
    RadarScanner,
)
from sensorlab.data.synthetic.recorder import encode_radar
from sensorlab.data.synthetic.rig import LIDAR_ELEVATION, RADAR_NAMES, Rig, make_rig
from sensorlab.data.synthetic.roads import Path
from sensorlab.data.synthetic.world import Scene, make_scene
from sensorlab.geometry.boxes import poses_from_boxes3d
from sensorlab.geometry.poses import inverse_rigid, quaternion_from_yaw, rigid_from_quaternion, transform_points

TURNING = 2.2  # seconds into the scene, when the ego vehicle is in the bend


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(1, 1, 4.5, "train", 1)


@pytest.fixture(scope="module")
def rig() -> Rig:
    return make_rig(0, (320, 180), 360)


def global_from(state: WorldState, ego_from_sensor: np.ndarray) -> np.ndarray:
    """By the quaternion and translation of the ego_pose table."""
    x, y, yaw = state.ego
    return rigid_from_quaternion(quaternion_from_yaw(np.array(yaw)), np.array([x, y, 0.0])) @ ego_from_sensor


def distance_to_surface(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N, P) distance of points (global) to the surface of each box, metres; negative inside."""
    local = transform_points(inverse_rigid(poses_from_boxes3d(boxes)), points)
    beyond = np.abs(local) - boxes[:, None, 3:6] / 2
    outside = np.linalg.norm(np.maximum(beyond, 0), axis=-1)
    return outside + np.minimum(beyond.max(axis=-1), 0)


def test_lidar_hits_lie_on_solids_or_on_the_ground(scene: Scene, rig: Rig):
    state = scene.at(TURNING)
    scanner = LidarScanner(rig.lidar, paint_ground(scene, 0), rain=False)
    distance, body = scanner.cast(state)
    hit = np.isfinite(distance)
    measured = (rig.lidar.directions[hit] * distance[hit][:, None]).astype(float)
    points = transform_points(global_from(state, rig.lidar.ego_from_sensor), measured)
    surface = distance_to_surface(points, state.boxes)
    owner = body[hit]
    on_body = owner >= 0
    assert on_body.sum() > 500
    # Every echo of a body is its margin inside the annotated box, every other echo is at height zero.
    depth = surface[owner[on_body], np.nonzero(on_body)[0]]
    np.testing.assert_allclose(depth, -BOX_MARGIN, atol=2e-3)
    np.testing.assert_allclose(points[~on_body, 2], 0.0, atol=2e-3)
    # Nothing is seen through a body: no ray has an end deeper inside one than its skin.
    assert surface.min() > -BOX_MARGIN - 2e-3


def test_lidar_sees_the_nearest_of_two_bodies(scene: Scene, rig: Rig):
    bus, car = _actor("bus", 15.0, yaw=math.pi / 2), _actor("car", 25.0)
    scanner = LidarScanner(rig.lidar, paint_ground(scene, 0), rain=False)
    _, body = scanner.cast(world_state(standing((0.0, 0.0, 0.0)), (car, bus), 0.0))
    assert (body == 1).sum() > 50
    assert (body == 0).sum() == 0


def test_measured_lidar_points_stay_within_the_noise(scene: Scene, rig: Rig):
    state = scene.at(TURNING)
    scanner = LidarScanner(rig.lidar, paint_ground(scene, 0), rain=False)
    points = scanner.scan(state, scene.actors, np.random.default_rng(0))
    assert points.dtype == np.float32
    assert points.shape[1] == 5
    xyz = points[:, :3].astype(float)
    elevation = np.degrees(np.arcsin(xyz[:, 2] / np.linalg.norm(xyz, axis=1)))
    rings = np.linspace(*LIDAR_ELEVATION, 32)
    np.testing.assert_allclose(elevation, rings[points[:, 4].astype(int)], atol=1e-3)
    assert set(points[:, 4].astype(int)) == set(range(32))
    assert points[:, 3].min() >= 0
    assert points[:, 3].max() <= 255
    everywhere = transform_points(global_from(state, rig.lidar.ego_from_sensor), xyz)
    nearest = np.abs(np.vstack([distance_to_surface(everywhere, state.boxes), everywhere[:, 2]])).min(axis=0)
    assert nearest.max() < BOX_MARGIN + 2.5 * LIDAR_NOISE + 2e-3
    # The annotated boxes hold the points of their objects despite the noise.
    inside = (distance_to_surface(everywhere, state.boxes) <= 0).any(axis=0)
    assert (inside | (everywhere[:, 2] < BOX_MARGIN)).mean() > 0.999


def test_rain_costs_echoes(scene: Scene, rig: Rig):
    ground, state = paint_ground(scene, 0), scene.at(1.0)
    dry, wet = (
        len(LidarScanner(rig.lidar, ground, rain).scan(state, scene.actors, np.random.default_rng(0)))
        for rain in (False, True)
    )
    assert 0.8 < wet / dry < 0.95


def range_rates(
    scene: Scene, ego_from_sensor: np.ndarray, time: float, points: np.ndarray, body: np.ndarray
) -> np.ndarray:
    """Change of the distance sensor to point, m/s, by finite differences of positions; points (M, 2) global."""
    step, distances = 1e-3, []
    now = scene.at(time).boxes[body, :2]
    for moment in (time - step, time + step):
        state = scene.at(moment)
        carried = points + state.boxes[body, :2] - now
        distances.append(np.linalg.norm(carried - global_from(state, ego_from_sensor)[:2, 3], axis=1))
    return (distances[1] - distances[0]) / (2 * step)


@pytest.mark.parametrize("index", range(5), ids=RADAR_NAMES)
def test_radar_doppler_is_the_rate_of_change_of_the_range(scene: Scene, rig: Rig, index: int):
    """While the ego vehicle turns, so that the lever arms of the sensors count."""
    spec = rig.radars[index]
    state = scene.at(TURNING)
    assert abs(state.ego_yaw_rate) > 0.3
    scans = [RadarScanner(spec).scan(state, scene.actors, np.random.default_rng(seed)) for seed in range(6)]
    points, body = np.concatenate([s.points for s in scans]), np.concatenate([s.body for s in scans])
    points, body = points[body >= 0], body[body >= 0]
    assert len(points) > 40
    xy = np.stack([points["x"], points["y"]], axis=1).astype(float)
    velocity = np.stack([points["vx"], points["vy"]], axis=1).astype(float)
    sight = xy / np.linalg.norm(xy, axis=1, keepdims=True)
    # The velocity vector lies along the line of sight.
    np.testing.assert_allclose(velocity[:, 0] * sight[:, 1] - velocity[:, 1] * sight[:, 0], 0.0, atol=1e-4)
    padded = np.column_stack([xy, np.zeros(len(xy))])
    everywhere = transform_points(global_from(state, spec.ego_from_sensor), padded)[:, :2]
    expected = range_rates(scene, spec.ego_from_sensor, TURNING, everywhere, body)
    error = (velocity * sight).sum(axis=1) - expected
    assert np.abs(error).max() < 5 * RADAR_SPEED_NOISE
    assert np.std(error) == pytest.approx(RADAR_SPEED_NOISE, rel=0.4)


@pytest.mark.parametrize("index", range(5), ids=RADAR_NAMES)
def test_compensated_doppler_is_that_of_the_object_over_ground(scene: Scene, rig: Rig, index: int):
    spec, state = rig.radars[index], scene.at(TURNING)
    scan = RadarScanner(spec).scan(state, scene.actors, np.random.default_rng(0))
    points, body = scan.points[scan.body >= 0], scan.body[scan.body >= 0]
    xy = np.stack([points["x"], points["y"]], axis=1).astype(float)
    axes = global_from(state, spec.ego_from_sensor)[:2, :2]
    sight = xy / np.linalg.norm(xy, axis=1, keepdims=True) @ axes.T
    radial = (points["vx_comp"].astype(float) * xy[:, 0] + points["vy_comp"] * xy[:, 1]) / np.linalg.norm(xy, axis=1)
    expected = (state.velocities[body] * sight).sum(axis=1)
    np.testing.assert_allclose(radial, expected, atol=5 * RADAR_SPEED_NOISE)
    # Static objects stand still although the sensor moves.
    still = np.hypot(*state.velocities[body].T) == 0
    assert still.any()
    assert np.abs(radial[still]).max() < 5 * RADAR_SPEED_NOISE


def test_radar_points_lie_on_the_near_sides_of_visible_objects(scene: Scene, rig: Rig):
    for spec in rig.radars:
        state = scene.at(1.0)
        scan = RadarScanner(spec).scan(state, scene.actors, np.random.default_rng(3))
        real = scan.body >= 0
        xyz = np.stack([scan.points[name][real] for name in ("x", "y", "z")], axis=1).astype(float)
        sensor = global_from(state, spec.ego_from_sensor)
        surface = distance_to_surface(transform_points(sensor, xyz), state.boxes)
        own = surface[scan.body[real], np.arange(real.sum())]
        bearing_error = np.linalg.norm(xyz, axis=1) * math.radians(0.25) * 2.5
        assert (np.abs(own) < 0.06 + BOX_MARGIN + 2.5 * RADAR_POSITION_NOISE + bearing_error).all()
        # Nothing larger stands in between: walk along the line of sight up to the object.
        origin = sensor[:3, 3]
        for share in np.linspace(0.05, 0.95, 40):
            way = origin + share * (transform_points(sensor, xyz) - origin)
            inside = distance_to_surface(way, state.boxes) < -0.25
            inside[scan.body[real], np.arange(real.sum())] = False
            assert not inside.any()


def test_labels_of_motion(rig: Rig):
    away = Motion(Path((40.0, 0.0, 0.0), ((0.0, 0.0),)), 0.0, 8.0)
    towards = Motion(Path((40.0, 8.0, math.pi), ((0.0, 0.0),)), 0.0, 8.0)
    across = Motion(Path((30.0, -6.0, math.pi / 2), ((0.0, 0.0),)), 0.0, 6.0)
    actors = (
        _driven("truck", away), _driven("truck", towards), _driven("bus", across),
        _driven("bus", standing((25.0, 12.0, 0.0))),
        Actor(KINDS["truck"], KINDS["truck"].size, (0.5, 0.5, 0.5), standing((25.0, -14.0, 0.0)), parked=True),
    )  # fmt: skip
    state = world_state(standing((0.0, 0.0, 0.0)), actors, 0.0)
    labels: dict[int, set[int]] = {}
    for seed in range(20):
        scan = RadarScanner(rig.radars[0]).scan(state, actors, np.random.default_rng(seed))
        for body, label in zip(scan.body, scan.points["dyn_prop"], strict=True):
            labels.setdefault(int(body), set()).add(int(label))
    expected = [MOVING, ONCOMING, CROSSING_MOVING, STOPPED, STATIONARY]
    assert {body: found for body, found in labels.items() if body >= 0} == {i: {e} for i, e in enumerate(expected)}


def test_radar_file_layout(scene: Scene, rig: Rig):
    points = RadarScanner(rig.radars[0]).scan(scene.at(1.0), scene.actors, np.random.default_rng(0)).points
    content = encode_radar(points)
    lines = content.split(b"\n")[:11]
    assert lines[2] == b"FIELDS " + " ".join(RADAR_FIELDS).encode()
    assert lines[3] == b"SIZE 4 4 4 1 2 4 4 4 4 4 1 1 1 1 1 1 1 1"
    assert lines[4] == b"TYPE F F F I I F F F F F I I I I I I I I"
    assert lines[10] == b"DATA binary"
    payload = content[len(b"\n".join(lines)) + 1 :]
    assert len(payload) == 43 * len(points) + 1
    parsed = parse_radar_pcd(content)
    for column, name in enumerate(RADAR_FIELDS):
        np.testing.assert_array_equal(parsed[:, column], points[name].astype(np.float32))


def test_some_points_fail_the_usual_filters(scene: Scene, rig: Rig):
    scans = [RadarScanner(rig.radars[0]).scan(scene.at(t), scene.actors, np.random.default_rng(0)) for t in (0.5, 2.0)]
    points, body = np.concatenate([s.points for s in scans]), np.concatenate([s.body for s in scans])
    valid = (points["invalid_state"] == 0) & (points["ambig_state"] == 3)
    assert valid[body >= 0].all()
    assert 0 < valid[body < 0].sum() < (body < 0).sum()


def _actor(kind: str, ahead: float, left: float = 0.0, yaw: float = 0.0) -> Actor:
    return _driven(kind, standing((ahead, left, yaw)))


def _driven(kind: str, motion: Motion) -> Actor:
    return Actor(KINDS[kind], KINDS[kind].size, (0.7, 0.2, 0.2), motion)
