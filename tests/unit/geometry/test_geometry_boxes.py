"""Corners, yaw and membership of 3D boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sensorlab.geometry import boxes
from sensorlab.geometry.poses import quaternion_from_yaw, rigid_from_quaternion, rotation_from_quaternion

CENTER = np.array([[10.0, -4.0, 0.5], [0.0, 0.0, 1.0]])
SIZE = np.array([[4.0, 2.0, 1.5], [1.0, 0.5, 2.0]])
YAW = np.array([np.pi / 2, -0.3])
FLAT = np.concatenate([CENTER, SIZE, YAW[:, None]], 1)


def test_corners_by_hand() -> None:
    pose = rigid_from_quaternion(quaternion_from_yaw(YAW), CENTER)
    corners = boxes.box_corners(pose, SIZE)
    # Turned by 90 degrees, the length of 4 m lies along y and the front face at larger y.
    assert np.allclose(corners[0].min(0), [9, -6, -0.25])
    assert np.allclose(corners[0].max(0), [11, -2, 1.25])
    assert np.allclose(corners[0, :4, 1], -2)
    # The first corner is front, left, top: left of +y is -x.
    assert np.allclose(corners[0, 0], [9, -2, 1.25])


def test_footprint_is_counter_clockwise_and_on_the_corners() -> None:
    footprint = boxes.footprint_corners(FLAT)
    x, y = footprint[..., 0], footprint[..., 1]
    area = 0.5 * (x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1)
    assert np.allclose(area, SIZE[:, 0] * SIZE[:, 1])
    top = boxes.box_corners(boxes.poses_from_boxes3d(FLAT), SIZE)[:, [0, 4, 5, 1], :2]
    assert np.allclose(footprint, top)


def test_yaw_ignores_pitch_and_roll() -> None:
    yaw = np.linspace(-3.1, 3.1, 13)
    assert np.allclose(boxes.yaw_from_quaternion(quaternion_from_yaw(yaw)), yaw)
    # Pitch by 0.2 about the box's own y axis, after the yaw of 0.7: q = yaw * pitch.
    cos_yaw, sin_yaw, cos_pitch, sin_pitch = np.cos(0.35), np.sin(0.35), np.cos(0.1), np.sin(0.1)
    tilted = np.array([cos_yaw * cos_pitch, -sin_yaw * sin_pitch, cos_yaw * sin_pitch, sin_yaw * cos_pitch])
    assert boxes.yaw_from_quaternion(tilted) == pytest.approx(0.7)


def test_conversions_round_trip() -> None:
    pose = boxes.poses_from_boxes3d(FLAT)
    assert np.allclose(boxes.boxes3d_from_poses(pose, SIZE), FLAT)
    assert np.allclose(boxes.boxes3d_from_quaternions(CENTER, SIZE, quaternion_from_yaw(YAW)), FLAT)


def test_points_in_box_agrees_with_the_definition() -> None:
    rng = np.random.default_rng(0)
    quaternion = rng.normal(size=(3, 4))
    center, size = rng.normal(size=(3, 3)), rng.uniform(1, 4, size=(3, 3))
    points = rng.uniform(-4, 4, size=(500, 3))
    inside = boxes.points_in_box(rigid_from_quaternion(quaternion, center), size, points)
    assert inside.shape == (3, 500)
    for n in range(3):
        local = (points - center[n]) @ rotation_from_quaternion(quaternion[n])
        assert np.array_equal(inside[n], (np.abs(local) <= size[n] / 2).all(1))
    assert 0 < inside.sum() < inside.size


def test_surface_and_margin() -> None:
    pose, size = np.eye(4)[None], np.array([[2.0, 2.0, 2.0]])
    points = np.array([[1.0, 0, 0], [1.1, 0, 0], [1.3, 0, 0]])
    assert boxes.points_in_box(pose, size, points).tolist() == [[True, False, False]]
    assert boxes.points_in_box(pose, size, points, margin=0.2).tolist() == [[True, True, False]]


def test_torch_and_no_boxes() -> None:
    flat = torch.from_numpy(FLAT)
    pose = boxes.poses_from_boxes3d(flat)
    assert np.allclose(boxes.box_corners(pose, flat[:, 3:6]), boxes.box_corners(pose.numpy(), SIZE))
    assert np.allclose(boxes.footprint_corners(flat), boxes.footprint_corners(FLAT))
    assert np.allclose(boxes.boxes3d_from_poses(pose, flat[:, 3:6]), FLAT)
    inside = boxes.points_in_box(pose, flat[:, 3:6], flat[:, :3])
    assert inside.tolist() == [[True, False], [False, True]]
    assert boxes.footprint_corners(np.zeros((0, 7))).shape == (0, 4, 2)
    assert boxes.box_corners(np.zeros((0, 4, 4)), np.zeros((0, 3))).shape == (0, 8, 3)
