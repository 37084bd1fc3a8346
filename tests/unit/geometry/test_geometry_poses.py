"""Quaternions and rigid transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorlab.geometry import poses

component = st.floats(-1, 1, allow_nan=False)
quaternions = (
    st.tuples(component, component, component, component)
    .filter(lambda q: sum(c * c for c in q) > 1e-3)
    .map(lambda q: np.array(q) / np.linalg.norm(q))
)


def test_known_rotations() -> None:
    half = np.sqrt(0.5)
    about_z = poses.rotation_from_quaternion(np.array([half, 0, 0, half]))
    assert np.allclose(about_z @ [1, 0, 0], [0, 1, 0])
    about_x = poses.rotation_from_quaternion(np.array([half, half, 0, 0]))
    assert np.allclose(about_x @ [0, 1, 0], [0, 0, 1])
    assert np.allclose(poses.rotation_from_quaternion(poses.quaternion_from_yaw(np.array(np.pi / 2))), about_z)


@given(quaternions)
@settings(max_examples=100, deadline=None)
def test_quaternion_round_trip(quaternion: np.ndarray) -> None:
    rotation = poses.rotation_from_quaternion(quaternion)
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    back = poses.quaternion_from_rotation(rotation)
    assert back[0] >= 0
    assert min(np.abs(back - quaternion).max(), np.abs(back + quaternion).max()) < 1e-7


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_turns_have_no_preferred_component(axis: int) -> None:
    quaternion = np.zeros(4)
    quaternion[1 + axis] = 1
    back = poses.quaternion_from_rotation(poses.rotation_from_quaternion(quaternion))
    assert np.allclose(np.abs(back), quaternion)


def test_quaternions_are_normalised_and_zero_is_refused() -> None:
    q = np.array([1.0, 2.0, -1.0, 0.5])
    assert np.allclose(poses.rotation_from_quaternion(q), poses.rotation_from_quaternion(q * 7))
    with pytest.raises(ValueError, match="length zero"):
        poses.rotation_from_quaternion(np.zeros(4))
    with pytest.raises(ValueError, match="expected quaternions"):
        poses.rotation_from_quaternion(np.zeros(3))


def test_transforms_chain_and_invert_over_batches() -> None:
    rng = np.random.default_rng(0)
    quaternion, translation = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 3)) * 30
    a_from_b = poses.rigid_from_quaternion(quaternion, translation)
    b_from_c = poses.rigid_from_quaternion(quaternion[::-1], translation[::-1])
    points = rng.normal(size=(2, 5, 7, 3)) * 50
    chained = poses.transform_points(a_from_b, poses.transform_points(b_from_c, points))
    assert np.allclose(poses.transform_points(a_from_b @ b_from_c, points), chained)
    assert np.allclose(poses.inverse_rigid(a_from_b), np.linalg.inv(a_from_b))
    assert np.allclose(
        poses.transform_points(poses.inverse_rigid(a_from_b), chained), poses.transform_points(b_from_c, points)
    )
    difference = poses.transform_points(a_from_b, points) - poses.transform_points(a_from_b, 0 * points)
    assert np.allclose(poses.rotate_vectors(a_from_b, points), difference)


def test_inverse_of_a_reflection() -> None:
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[0, 3] = 4
    assert np.allclose(poses.inverse_rigid(mirror), np.linalg.inv(mirror))


def test_torch_and_numpy_agree() -> None:
    rng = np.random.default_rng(1)
    quaternion, translation, points = rng.normal(size=(3, 4)), rng.normal(size=(3, 3)), rng.normal(size=(3, 6, 3))
    matrix = poses.rigid_from_quaternion(quaternion, translation)
    tensor = poses.rigid_from_quaternion(torch.from_numpy(quaternion), torch.from_numpy(translation))
    assert isinstance(tensor, torch.Tensor)
    assert np.allclose(tensor.numpy(), matrix)
    assert np.allclose(poses.inverse_rigid(tensor).numpy(), poses.inverse_rigid(matrix))
    moved = poses.transform_points(tensor, torch.from_numpy(points))
    assert np.allclose(moved.numpy(), poses.transform_points(matrix, points))
    back = poses.quaternion_from_rotation(tensor[:, :3, :3])
    assert np.allclose(back.numpy(), poses.quaternion_from_rotation(matrix[:, :3, :3]))
    yaw = np.linspace(-4, 4, 9)
    assert np.allclose(poses.quaternion_from_yaw(torch.from_numpy(yaw)).numpy(), poses.quaternion_from_yaw(yaw))


def test_dtypes_are_kept_and_integers_become_floats() -> None:
    assert poses.rigid(np.eye(3, dtype=np.float32), np.zeros(3, np.float32)).dtype == np.float32
    assert poses.rigid(np.eye(3, dtype=int), np.zeros(3, dtype=int)).dtype == np.float64
    assert poses.rotation_from_quaternion(torch.tensor([1, 0, 0, 0])).dtype == torch.float32


def test_wrap_angle() -> None:
    angles = np.array([0, np.pi, -np.pi, 3.5, -3.5, 7.0])
    wrapped = poses.wrap_angle(angles)
    assert ((wrapped >= -np.pi) & (wrapped < np.pi)).all()
    assert np.allclose(np.exp(1j * wrapped), np.exp(1j * angles))
