"""Scenes of the embedded world: motion, road layout and what never happens (anything driving through anything)."""

import math

import numpy as np
import pytest

from sensorlab.data.synthetic.motion import Actor, Motion
from sensorlab.data.synthetic.roads import LANE_WIDTH, Path, make_layout, turning_path
from sensorlab.data.synthetic.world import Scene, footprints_touch, make_scene
from sensorlab.geometry.boxes import footprint_corners


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """One scene per manoeuvre: straight, left turn, right turn, curve."""
    return [make_scene(3, index, 4.5, "train", index) for index in range(4)]


def test_a_scene_is_a_function_of_its_arguments():
    first, again = (make_scene(5, 2, 3.0, "train", 2) for _ in range(2))
    assert first == again
    assert make_scene(6, 2, 3.0, "train", 2).actors != first.actors
    assert first.name == "world-0002-train"


def test_small_worlds_have_day_and_night_in_both_splits():
    train = [make_scene(0, i, 0.5, "train", i) for i in range(6)]
    val = [make_scene(0, 6 + i, 0.5, "val", i) for i in range(2)]
    for split in (train, val):
        assert {scene.night for scene in split} == {True, False}
    assert any(scene.rain for scene in train)
    assert all(("night" in s.description) == s.night and ("rain" in s.description) == s.rain for s in train + val)


@pytest.mark.parametrize("index", range(4))
def test_velocities_are_the_derivatives_of_positions(scenes: list[Scene], index: int):
    scene, step = scenes[index], 1e-4
    for time in (0.3, 2.0, 3.9):
        before, now, after = (scene.at(t) for t in (time - step, time, time + step))
        numeric = (after.boxes[:, :2] - before.boxes[:, :2]) / (2 * step)
        np.testing.assert_allclose(now.velocities, numeric, atol=2e-3)
        ego = (np.array(after.ego) - np.array(before.ego)) / (2 * step)
        np.testing.assert_allclose([*now.ego_velocity, now.ego_yaw_rate], ego, atol=2e-3)


def test_the_ego_vehicle_turns_by_a_right_angle_and_changes_road():
    layout = make_layout((10.0, 20.0, 0.4), 0.0, lanes=2)
    for turn, lane in ((1, 0), (-1, 1)):
        path = turning_path(layout, lane, before=5.0, turn=turn)
        assert layout.main.coordinates(*_arrays(path.pose(0.0)))[1] == pytest.approx(
            -(lane + 0.5) * LANE_WIDTH, abs=1e-4
        )
        x, y, yaw = path.pose(60.0)
        assert yaw == pytest.approx(0.4 + turn * math.pi / 2)
        assert layout.cross is not None
        # Right-hand traffic: half a lane to the right of the crossing road's centre line.
        across = layout.cross.coordinates(*_arrays((x, y, yaw)))[1]
        assert across == pytest.approx(-turn * LANE_WIDTH / 2, abs=1e-4)


def test_road_coordinates_invert_road_poses_on_curves_of_both_senses():
    for curvature in (0.0, 1 / 80.0, -1 / 80.0):
        road = make_layout((300.0, 200.0, 2.2), curvature, lanes=1).main
        for s, d in ((-60.0, 5.0), (-3.0, -7.5), (40.0, 0.0), (80.0, 6.0)):
            found = road.coordinates(*_arrays(road.pose(s, d)))
            np.testing.assert_allclose([float(found[0]), float(found[1])], [s, d], atol=2e-3)


def test_a_path_goes_on_beyond_its_ends_and_is_smooth():
    path = Path((0.0, 0.0, 0.0), ((4.0, 0.0), (3.0, 0.2), (0.0, 0.0)))
    assert path.pose(-2.0) == pytest.approx((-2.0, 0.0, 0.0))
    poses = np.array([path.pose(s) for s in np.linspace(-3, 15, 1801)])
    np.testing.assert_allclose(np.hypot(*np.diff(poses[:, :2], axis=0).T), 0.01, rtol=1e-4)


def test_a_change_of_speed_ends_at_the_final_speed():
    motion = Motion(Path((0.0, 0.0, 0.0), ((0.0, 0.0),)), 1.0, speed=8.0, final_speed=2.0, rate=-2.0)
    assert [motion.speed_at(t) for t in (-1.0, 0.0, 1.5, 3.0, 9.0)] == [8.0, 8.0, 5.0, 2.0, 2.0]
    assert motion.distance(-1.0) == pytest.approx(-7.0)
    assert motion.distance(5.0) == pytest.approx(1.0 + 8 * 3 - 9 + 2 * 2)


@pytest.mark.parametrize("index", range(4))
def test_nothing_touches_anything(scenes: list[Scene], index: int):
    scene = scenes[index]
    for time in np.arange(0.0, 4.5, 0.4):
        state = scene.at(float(time))
        corners = footprint_corners(state.boxes)
        for i in range(len(corners) - 1):
            gap = _largest_gap(corners[i], corners[i + 1 :])
            near = np.hypot(*(state.boxes[i + 1 :, :2] - state.boxes[i, :2]).T) < 40
            assert (gap[near] > 0).all(), (time, i)
        x, y, yaw = state.ego
        ego = np.array([[x + 1.4 * math.cos(yaw), y + 1.4 * math.sin(yaw), 0.8, 4.6, 1.8, 1.6, yaw]])
        assert (_largest_gap(footprint_corners(ego)[0], corners) > 0).all()


def test_footprints_touch_agrees_with_separating_axes_of_corners():
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(-4, 4, (300, 3)), rng.uniform(0.5, 5, (300, 2)), np.ones((300, 1))], axis=1)
    boxes = np.concatenate([boxes, rng.uniform(-4, 4, (300, 1))], axis=1)
    pose, half = np.array([[0.5, -0.2, 0.7]]), np.array([2.0, 0.9])
    touch = footprints_touch(pose, half, boxes[:, None, [0, 1, 6]], boxes[:, 3:5] / 2)[:, 0]
    own = footprint_corners(np.array([[0.5, -0.2, 0.0, 4.0, 1.8, 1.0, 0.7]]))[0]
    np.testing.assert_array_equal(touch, _largest_gap(own, footprint_corners(boxes)) < 0)
    assert 0 < touch.sum() < 300


def test_attributes_follow_the_motion(scenes: list[Scene]):
    groups = {"vehicle.moving": True, "vehicle.stopped": False, "vehicle.parked": False}
    groups |= {"pedestrian.moving": True, "pedestrian.standing": False}
    seen = set()
    for scene in scenes:
        for actor in scene.actors:
            attribute = actor.attribute(1.0)
            if attribute in groups:
                assert (actor.motion.speed_at(1.0) > 0.3) == groups[attribute]
                seen.add(attribute)
            elif actor.kind.style == "cycle":
                assert attribute == ("cycle.with_rider" if actor.rider else "cycle.without_rider")
                assert actor.rider or actor.motion.speed_at(1.0) == 0.0
            else:
                assert attribute is None
                assert actor.kind.style in ("cone", "barrier", "building", "pole")
    assert seen == set(groups)


def test_the_map_covers_the_way_of_the_ego_vehicle(scenes: list[Scene]):
    for scene in scenes:
        way = np.array([scene.at(float(t)).ego[:2] for t in np.arange(0.0, 4.6, 0.5)])
        assert (way > 100.0).all()
        assert (way < np.array(scene.extent) - 100.0).all()


def test_every_detection_class_occurs():
    names = {actor.kind.category for i in range(8) for actor in make_scene(0, i, 4.5, "train", i).actors}
    wanted = ("car", "truck", "bus.rigid", "trailer", "construction", "motorcycle", "bicycle")
    assert {f"vehicle.{name}" for name in wanted} <= names
    assert {"human.pedestrian.adult", "movable_object.trafficcone", "movable_object.barrier"} <= names


def _largest_gap(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Largest separation (negative: overlap) of a rectangle (4, 2) from others (K, 4, 2) over their edge normals."""
    gaps = []
    for k in range(2):
        for owner in (np.broadcast_to(one, others.shape), others):
            edge = owner[:, k + 1] - owner[:, k]
            axis = edge / np.linalg.norm(edge, axis=1, keepdims=True)
            a, b = one @ axis[:, :, None], others @ axis[:, :, None]
            a, b = a[..., 0], b[..., 0]
            gaps.append(np.maximum(a.min(1) - b.max(1), b.min(1) - a.max(1)))
    return np.max(gaps, axis=0)


def _arrays(pose: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(pose[0]), np.array(pose[1])


def test_scenery_is_not_annotated(scenes: list[Scene]):
    scenery: list[Actor] = [actor for actor in scenes[0].actors if not actor.annotated]
    assert {actor.kind.style for actor in scenery} == {"building", "pole"}
