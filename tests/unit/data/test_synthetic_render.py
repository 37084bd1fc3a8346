"""Cameras of the embedded world: pixels against projected boxes, depth order, visibility, light."""

import math

import numpy as np
import pytest

from sensorlab.data.synthetic.catalogue import KINDS
from sensorlab.data.synthetic.ground import paint_ground
from sensorlab.data.synthetic.motion import Actor, WorldState, standing, world_state
from sensorlab.data.synthetic.render import NOISE_TILE_MARGIN, CameraRenderer, Frame
from sensorlab.data.synthetic.rig import CAMERA_NAMES, Rig, make_rig
from sensorlab.data.synthetic.sky import make_weather
from sensorlab.data.synthetic.tables import visibility_token
from sensorlab.data.synthetic.world import Scene, make_scene
from sensorlab.geometry.boxes import box_corners, poses_from_boxes3d
from sensorlab.geometry.cameras import project_points, unproject_pixels
from sensorlab.geometry.poses import inverse_rigid, rigid_from_quaternion, transform_points

SIZE = (320, 180)


def renderers(scene: Scene, rig: Rig) -> list[CameraRenderer]:
    ground, weather = paint_ground(scene, 0), make_weather(scene, 0)
    shape = (SIZE[1] + NOISE_TILE_MARGIN, SIZE[0] + NOISE_TILE_MARGIN, 3)
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return [CameraRenderer(camera, ground, weather, noise) for camera in rig.cameras]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(1, 1, 4.5, "train", 1)


@pytest.fixture(scope="module")
def rig() -> Rig:
    return make_rig(1, SIZE, 180)


@pytest.fixture(scope="module")
def frames(scene: Scene, rig: Rig) -> list[Frame]:
    state = scene.at(2.2)
    return [camera.render(state, scene.actors, np.random.default_rng(1)) for camera in renderers(scene, rig)]


def projected_boxes(state: WorldState, rig: Rig, camera: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 8, 2) and depths (N, 8) of the corners of the annotated boxes, by the poses that the tables hold."""
    spec, (x, y, yaw) = rig.cameras[camera], state.ego
    global_from_ego = rigid_from_quaternion(
        np.array([math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]), np.array([x, y, 0.0])
    )
    camera_from_global = inverse_rigid(global_from_ego @ spec.ego_from_sensor)
    corners = box_corners(poses_from_boxes3d(state.boxes), state.boxes[:, 3:6])
    return project_points(spec.intrinsics, transform_points(camera_from_global, corners))


def hull(points: np.ndarray) -> np.ndarray:
    """Convex hull of points (N, 2), counter-clockwise (Andrew's monotone chain)."""

    def chain(ordered: list[np.ndarray]) -> list[np.ndarray]:
        kept: list[np.ndarray] = []
        for point in ordered:
            while len(kept) > 1 and np.linalg.det(np.stack([kept[-1] - kept[-2], point - kept[-1]])) <= 0:
                kept.pop()
            kept.append(point)
        return kept[:-1]

    ordered = sorted(points, key=lambda p: (p[0], p[1]))
    return np.array(chain(ordered) + chain(ordered[::-1]))


def outside_by(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How far points (N, 2) are outside of a counter-clockwise convex polygon, pixels; negative inside."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1) / np.linalg.norm(edges, axis=1, keepdims=True)
    return ((points[:, None] - polygon) * normals).sum(-1).max(axis=1)


def area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


@pytest.mark.parametrize("camera", range(6), ids=CAMERA_NAMES)
def test_pixels_of_an_object_are_inside_its_projected_box(scene: Scene, rig: Rig, frames: list[Frame], camera: int):
    pixels, depth = projected_boxes(scene.at(2.2), rig, camera)
    checked = 0
    for index in np.nonzero(frames[camera].visible)[0]:
        if depth[index].min() < 0.2:
            continue  # corners behind the camera have no projection
        v, u = np.nonzero(frames[camera].ids == index)
        assert outside_by(hull(pixels[index]), np.stack([u, v], axis=1)).max() < 1e-3
        checked += 1
    assert checked >= 1


def test_an_object_fills_its_projected_box(scene: Scene, rig: Rig, frames: list[Frame]):
    ratios = []
    for camera, frame in enumerate(frames):
        pixels, depth = projected_boxes(scene.at(2.2), rig, camera)
        for index in np.nonzero(frame.alone > 150)[0]:
            inside = (pixels[index] > 1).all() and (pixels[index] < np.array(SIZE) - 2).all()
            if inside and depth[index].min() > 0.2:
                ratios.append(frame.alone[index] / area(hull(pixels[index])))
    assert len(ratios) >= 5
    # The solid is three centimetres smaller than the box on every side.
    assert min(ratios) > 0.8
    assert max(ratios) < 1.05
    assert 0.9 < np.median(ratios) < 1.0


def test_counts_of_visible_pixels_are_those_of_the_picture(frames: list[Frame]):
    for frame in frames:
        for index, visible in enumerate(frame.visible):
            assert visible == (frame.ids == index).sum()
        assert (frame.visible <= frame.alone).all()


def _actor(kind: str, ahead: float, left: float = 0.0, yaw: float = 0.0) -> Actor:
    return Actor(KINDS[kind], KINDS[kind].size, (0.7, 0.2, 0.2), standing((ahead, left, yaw)))


@pytest.fixture(scope="module")
def front(scene: Scene, rig: Rig) -> CameraRenderer:
    return renderers(scene, rig)[0]


def _render(camera: CameraRenderer, *actors: Actor) -> Frame:
    ego = standing((0.0, 0.0, 0.0))
    return camera.render(world_state(ego, actors, 0.0), actors, np.random.default_rng(0))


def test_what_is_in_front_hides_what_is_behind_in_either_order(front: CameraRenderer):
    bus, person = _actor("bus", 18.0, yaw=math.pi / 2), _actor("adult", 25.0)
    for order in ((bus, person), (person, bus)):
        frame = _render(front, *order)
        behind = order.index(person)
        assert frame.visible[behind] == 0
        assert frame.alone[behind] > 20
        assert frame.visible[1 - behind] == frame.alone[1 - behind]
        assert visibility_token(int(frame.visible[behind]), int(frame.alone[behind])) == "1"


def test_half_hidden_objects_have_half_of_their_pixels(front: CameraRenderer):
    # Seen from the camera at (1.7, 0), the edge of the wall at (10, 0) hides the right half of the far car.
    wall = Actor(KINDS["building"], (1.0, 8.06, 8.0), (0.5, 0.5, 0.5), standing((10.5, -4.0, 0.0)))
    frame = _render(front, wall, _actor("car", 30.0, yaw=math.pi / 2))
    assert frame.visible[1] / frame.alone[1] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("share", "level"), [(0, "1"), (39, "1"), (40, "2"), (59, "2"), (60, "3"), (80, "4"), (100, "4")]
)
def test_visibility_levels(share: int, level: str):
    assert visibility_token(share, 100) == level


def test_visibility_of_an_object_outside_all_images():
    assert visibility_token(0, 0) == "1"


def test_bodies_partly_behind_the_camera_are_drawn(front: CameraRenderer):
    # A long vehicle right beside the camera: its rear is behind the image plane.
    frame = _render(front, _actor("bus", 3.0, left=3.6))
    ids = frame.ids == 0
    assert frame.visible[0] > 500
    assert ids[:, 0].sum() > SIZE[1] // 2
    assert not ids[:, -1].any()


def test_a_shadow_darkens_the_ground(rig: Rig):
    scene = make_scene(1, 0, 4.5, "train", 0)
    assert not scene.night
    assert not scene.rain
    camera = renderers(scene, rig)[0]
    car = _actor("truck", 14.0)
    empty, filled = _render(camera), _render(camera, car)
    ground = (filled.ids < 0) & (np.arange(SIZE[1])[:, None] > SIZE[1] * 0.6)
    ratio = filled.image[ground].astype(float).mean(axis=1) / np.maximum(empty.image[ground].mean(axis=1), 1)
    dark = ratio < 0.75
    assert 20 < dark.sum() < 0.5 * ground.sum()


def test_night_is_dark_and_noisy(scene: Scene, rig: Rig, frames: list[Frame]):
    night = make_scene(1, 2, 4.5, "train", 2)
    assert night.night
    assert not scene.night
    state = night.at(2.0)
    dark = [camera.render(state, night.actors, np.random.default_rng(1)) for camera in renderers(night, rig)]
    assert np.mean([f.image.mean() for f in dark]) < 0.4 * np.mean([f.image.mean() for f in frames])
    # Lamps and windows still shine.
    assert max(f.image.max() for f in dark) > 200


def test_the_ground_is_seen_where_it_lies(scene: Scene, rig: Rig):
    """Unprojected with the published calibration, the pixels of the road show what the raster has there."""
    ground, state = paint_ground(scene, 0), scene.at(1.0)
    x, y, yaw = state.ego
    for camera, spec in zip(renderers(scene, rig), rig.cameras, strict=True):
        image = camera.render(
            WorldState(1.0, state.ego, (0.0, 0.0), 0.0, *_nothing()), (), np.random.default_rng(0)
        ).image
        u, v = (axis.ravel() for axis in np.meshgrid(np.arange(0, SIZE[0], 5), np.arange(125, SIZE[1], 3)))
        rays = unproject_pixels(spec.intrinsics, np.stack([u, v], axis=1).astype(float), np.ones(len(u)))
        rays = rays @ spec.ego_from_sensor[:3, :3].T
        points = spec.ego_from_sensor[:3, 3] + rays * (-spec.ego_from_sensor[2, 3] / rays[:, 2:])
        there = x + points[:, 0] * math.cos(yaw) - points[:, 1] * math.sin(yaw)
        across = y + points[:, 0] * math.sin(yaw) + points[:, 1] * math.cos(yaw)
        painted = ground.fine.bilinear(there, across).mean(axis=1)
        near = np.hypot(points[:, 0], points[:, 1]) < 12
        assert near.sum() > 100
        assert np.corrcoef(image[v, u].mean(axis=1)[near], painted[near])[0, 1] > 0.95


def _nothing() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros((0, 7)), np.zeros((0, 2)), np.zeros(0, dtype=bool)
