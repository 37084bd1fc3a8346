"""Radar, lidar and camera files: parsing, validation and re-encoding."""

from __future__ import annotations

import io

import numpy as np
import pytest
from nuscenes_builder import pcd_bytes, radar_point
from PIL import Image
from sample_factory import make_jpeg

from sensorlab.data.sample import CameraFrame
from sensorlab.data.sources.camera_jpeg import check_jpeg, decode_jpeg, limit_height
from sensorlab.data.sources.lidar_bin import parse_lidar_bin
from sensorlab.data.sources.radar_pcd import parse_radar_pcd

NAN = float("nan")


def test_radar_values_and_types() -> None:
    points = parse_radar_pcd(pcd_bytes([radar_point(1.5, -2.5, n) for n in range(4)]))
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, np.array([radar_point(1.5, -2.5, n) for n in range(4)], np.float32))


def test_radar_fields_in_another_order_and_with_extras() -> None:
    data = pcd_bytes([radar_point(1.0, 2.0)])
    header, payload = data.split(b"DATA binary\n")
    header = header.replace(b"FIELDS x y z", b"FIELDS extra x y z").replace(b"SIZE 4", b"SIZE 2 4")
    header = header.replace(b"TYPE F", b"TYPE U F").replace(b"COUNT 1", b"COUNT 1 1")
    points = parse_radar_pcd(header + b"DATA binary\n" + b"\x07\x00" + payload)
    np.testing.assert_array_equal(points, [np.float32(radar_point(1.0, 2.0))])


def test_radar_trailing_byte_and_empty_file() -> None:
    assert len(parse_radar_pcd(pcd_bytes([radar_point(1, 1)]) + b"\n")) == 1
    assert parse_radar_pcd(pcd_bytes([])).shape == (0, 18)


def test_radar_nan_rules() -> None:
    good, bad = radar_point(1.0, 1.0), (NAN, NAN, NAN, *radar_point(1, 1)[3:])
    assert len(parse_radar_pcd(pcd_bytes([bad, good]))) == 0
    assert len(parse_radar_pcd(pcd_bytes([good, good, bad, good]))) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d[:-1], "truncated: 2 points need 86 bytes after the header, found 85"),
        (lambda d: d[:50], "no DATA line"),
        (lambda d: b"", "no DATA line"),
        (lambda d: b"\xff\xfe\n" + d, "not text"),
        (lambda d: d.replace(b"DATA binary", b"DATA ascii"), "expected 'binary'"),
        (lambda d: d.replace(b"FIELDS x y", b"FIELDS u y"), "no radar field 'x'"),
        (lambda d: d.replace(b"SIZE 4", b"SIZE 3"), "field 'x' has unsupported SIZE 3"),
        (lambda d: d.replace(b"TYPE F", b"TYPE X"), "unsupported SIZE 4, TYPE X"),
        (lambda d: d.replace(b"COUNT 1", b"COUNT 2"), "COUNT 2"),
        (lambda d: d.replace(b"SIZE 4 4", b"SIZE 4"), "differ in length"),
        (lambda d: d.replace(b"POINTS 2", b"POINTS 3"), "WIDTH x HEIGHT is not POINTS"),
        (lambda d: d.replace(b"POINTS 2", b"POINTS two"), "POINTS line"),
        (lambda d: d.replace(b"TYPE", b"KIND"), "no TYPE line"),
        (lambda d: d.replace(b"FIELDS x", b"FIELDS y"), "radar field 'x'"),
    ],
)
def test_damaged_radar_files(damage, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_radar_pcd(damage(pcd_bytes([radar_point(1.0, 1.0)] * 2)))


def test_lidar() -> None:
    points = np.arange(15, dtype="<f4").reshape(3, 5)
    np.testing.assert_array_equal(parse_lidar_bin(points.tobytes()), points)
    assert parse_lidar_bin(b"").shape == (0, 5)
    with pytest.raises(ValueError, match="58 bytes are not a whole number of 20-byte points"):
        parse_lidar_bin(points.tobytes()[:-2])


def test_check_jpeg() -> None:
    data = make_jpeg(64, 36)
    assert check_jpeg(data) == (64, 36)
    assert check_jpeg(data + b"\0\0") == (64, 36)  # padded copies exist
    for damaged in (data[:-40], data[:200], data[:10]):
        with pytest.raises(ValueError, match="truncated or damaged"):
            check_jpeg(damaged)
    for other in (b"", b"GIF89a", b"\x89PNG"):
        with pytest.raises(ValueError, match="not a JPEG"):
            check_jpeg(other)


def frame(width: int, height: int) -> CameraFrame:
    """An image whose left 3/8 are white, with a camera whose axis hits that edge."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : 3 * width // 8] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    edge = 3 * width / 8 - 0.5
    intrinsics = np.array([[100.0, 0, edge], [0, 100.0, height / 2 - 0.5], [0, 0, 1]])
    return CameraFrame("CAM", buffer.getvalue(), width, height, intrinsics, np.eye(4), np.eye(4), 0)


def test_reencoding_keeps_the_camera_exact() -> None:
    """The edge that the optical axis hits is found, in the smaller picture, where its intrinsics say."""
    small = limit_height(frame(640, 360), 90)
    assert (small.width, small.height) == (160, 90)
    np.testing.assert_allclose(small.intrinsics, [[25, 0, 59.5], [0, 25, 44.5], [0, 0, 1]])
    row = np.asarray(decode_jpeg(small.jpeg).convert("L"), float)[45]
    crossing = int(np.flatnonzero(row < 127.5)[0])
    subpixel = crossing - 1 + (row[crossing - 1] - 127.5) / (row[crossing - 1] - row[crossing])
    assert abs(subpixel - small.intrinsics[0, 2]) < 0.05


def test_reencoding_with_a_rounded_width_scales_the_axes_separately() -> None:
    small = limit_height(frame(640, 360), 77)
    assert (small.width, small.height) == (137, 77)
    sx, sy = 137 / 640, 77 / 360
    np.testing.assert_allclose(small.intrinsics[[0, 1], [0, 1]], [100 * sx, 100 * sy])
    np.testing.assert_allclose(small.intrinsics[:2, 2], [240 * sx - 0.5, 180 * sy - 0.5])


def test_images_are_never_enlarged() -> None:
    original = frame(64, 36)
    assert limit_height(original, 36) is original
    assert limit_height(original, 100) is original


def test_reencoding_a_damaged_image() -> None:
    original = frame(64, 36)
    broken = CameraFrame("CAM", original.jpeg[:300], 64, 36, np.eye(3), np.eye(4), np.eye(4), 0)
    with pytest.raises(ValueError, match="damaged JPEG"):
        limit_height(broken, 18)
