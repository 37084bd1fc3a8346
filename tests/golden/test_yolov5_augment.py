"""Transforms of images and boxes against YOLOv5: every array of vNN_augment.npz.

v30_augment.npz holds what differs from v70_augment.npz; the other arrays are equal in the two releases. Images are BGR
where the original has them so; only the changes of colour depend on it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sensorlab.data.augment.filters import CandidateFilter, candidates
from sensorlab.data.augment.hsv import HsvConfig, change_hsv, hsv_factors, hsv_tables
from sensorlab.data.augment.letterbox import letterbox, long_side, map_back, map_boxes, place_image
from sensorlab.data.augment.mosaic import mosaic_boxes, mosaic_tiles, paste_mosaic
from sensorlab.data.augment.perspective import Warp, warp_boxes, warp_image
from sensorlab.data.augment.rect import rectangular_batches
from sensorlab.data.augment.resize import resize_image

pytestmark = pytest.mark.golden

DATA = Path(__file__).parent / "data" / "yolov5"
INPUTS = dict(np.load(DATA / "augment_inputs.npz"))
V70 = dict(np.load(DATA / "v70_augment.npz"))
V30_ONLY = dict(np.load(DATA / "v30_augment.npz"))
EXPECTED = {"v30": {**V70, **V30_ONLY}, "v70": V70}
MULTIPLE = {"v30": 64, "v70": 32}
RULE = {"v30": CandidateFilter(max_aspect=20.0), "v70": CandidateFilter(max_aspect=100.0)}
RELEASES = ("v30", "v70")
GEOMETRY = 1e-4  # px
PIXELS = 2  # grey levels


def _assert_pixels(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype == np.uint8
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= PIXELS


def _pixel_boxes(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) in pixels of label rows class, x, y, w, h, normalised."""
    center, extent = labels[:, 1:3].astype(np.float64), labels[:, 3:5].astype(np.float64)
    return np.concatenate([center - extent / 2, center + extent / 2], axis=1) * (size[1], size[0], size[1], size[0])


def test_every_array_is_looked_at() -> None:
    names = {"letterbox_cases", "letterbox_img6_out", "letterbox_img7_out", "persp_params", "box_candidates"}
    names |= {f"persp{case}_{name}" for case in range(7) for name in ("M", "labels")}
    names |= {"persp2_img", "persp3_img_sub", "persp4_img", "persp5_img"}
    names |= {"mosaic_centres_yc_xc", "mosaic_order", "mosaic1_img", "mosaic2_img"}
    names |= {f"mosaic{case}_labels" for case in range(4)} | {"hsv_draws"}
    names |= {f"hsv{case}_{name}" for case in range(2) for name in ("out", "r", "lut_hue", "lut_sat", "lut_val")}
    names |= {"scale_boxes_auto", "scale_boxes_ratio_pad", "rect_order", "rect_batch_index", "rect_batch_shapes"}
    names |= {f"rect{place}_labels" for place in range(8)} | {f"rect{place}_img_rgb_chw" for place in (0, 4, 7)}
    names |= {"rect_shapes_h0_w0_rh_rw_padx_pady"}
    assert set(V70) == names
    assert len(names) == 59
    assert set(V30_ONLY) == {"letterbox_cases", "persp0_labels", "box_candidates"}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("case", range(10))
def test_letterbox(release: str, case: int) -> None:
    row = EXPECTED[release]["letterbox_cases"][case]
    height, width, new_height, new_width = (int(side) for side in row[:4])
    auto, stretch, enlarge = (bool(flag) for flag in row[4:7])
    multiple = MULTIPLE[release] if auto else None
    plan = letterbox((height, width), (new_height, new_width), multiple=multiple, stretch=stretch, enlarge=enlarge)
    np.testing.assert_allclose([*plan.ratio, *plan.pad, *plan.size], row[7:], atol=1e-9, rtol=0)


@pytest.mark.parametrize("image", [6, 7])
def test_letterbox_pixels(image: int) -> None:
    pixels, expected = INPUTS[f"letterbox_img{image}_in"], V70[f"letterbox_img{image}_out"]
    _assert_pixels(place_image(pixels, letterbox(pixels.shape[:2], expected.shape[:2])), expected)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("case", range(7))
def test_perspective(release: str, case: int) -> None:
    expected, image, boxes = EXPECTED[release], INPUTS["persp_img"], INPUTS["persp_targets"][:, 1:].astype(np.float64)
    px, py, angle, scale, shear_x, shear_y, tx, ty, border_y, border_x = expected["persp_params"][case].tolist()
    size = image.shape[0] + 2 * int(border_y), image.shape[1] + 2 * int(border_x)
    warp = Warp(translate=(tx, ty), shear=(shear_x, shear_y), scale=scale, angle=angle, perspective=(px, py))
    matrix = warp.matrix(image.shape[:2], size)
    np.testing.assert_allclose(matrix, expected[f"persp{case}_M"], atol=1e-9, rtol=0)

    warped = warp_boxes(boxes, matrix, size)
    kept = candidates(boxes * scale, warped, RULE[release])
    labels = expected[f"persp{case}_labels"]
    assert np.array_equal(INPUTS["persp_targets"][kept, 0], labels[:, 0])
    np.testing.assert_allclose(warped[kept], labels[:, 1:], atol=GEOMETRY, rtol=0)

    pixels = warp_image(image, matrix, size)
    if f"persp{case}_img" in expected:
        _assert_pixels(pixels, expected[f"persp{case}_img"])
    if f"persp{case}_img_sub" in expected:
        _assert_pixels(pixels[::3, ::3], expected[f"persp{case}_img_sub"])


@pytest.mark.parametrize("case", range(4))
def test_mosaic(case: int) -> None:
    assert V70["mosaic_order"].tolist() == [0, 1, 2, 3]
    images = [INPUTS[f"mosaic_img{index}"] for index in range(4)]
    labels = [INPUTS[f"mosaic_labels{index}"] for index in range(4)]
    y, x = V70["mosaic_centres_yc_xc"][case].tolist()
    tiles = mosaic_tiles([image.shape[:2] for image in images], (x, y), 64)
    boxes = [_pixel_boxes(rows, image.shape[:2]) for rows, image in zip(labels, images, strict=True)]
    expected = V70[f"mosaic{case}_labels"]
    assert np.array_equal(np.concatenate(labels)[:, 0], expected[:, 0])
    np.testing.assert_allclose(mosaic_boxes(boxes, tiles, 64), expected[:, 1:], atol=GEOMETRY, rtol=0)
    if f"mosaic{case}_img" in V70:
        assert np.array_equal(paste_mosaic(images, tiles, 64), V70[f"mosaic{case}_img"])


@pytest.mark.parametrize("case", range(2))
def test_hsv(case: int) -> None:
    draws = V70["hsv_draws"][case].astype(np.float64).round(6)  # stored as float32; they are whole tenths
    factors = hsv_factors(draws, HsvConfig())
    np.testing.assert_allclose(factors, V70[f"hsv{case}_r"], rtol=1e-7)
    for table, name in zip(hsv_tables(factors), ("hue", "sat", "val"), strict=True):
        assert np.array_equal(table, V70[f"hsv{case}_lut_{name}"])
    bgr = INPUTS["hsv_img"]
    _assert_pixels(change_hsv(bgr[..., ::-1], factors)[..., ::-1], V70[f"hsv{case}_out"])


@pytest.mark.parametrize("release", RELEASES)
def test_box_candidates(release: str) -> None:
    kept = candidates(INPUTS["cand_box1"], INPUTS["cand_box2"], RULE[release])
    assert np.array_equal(kept, EXPECTED[release]["box_candidates"].astype(bool))


@pytest.mark.parametrize(
    ("name", "size", "source"), [("auto", (480, 640), (721, 1281)), ("ratio_pad", (640, 640), (333, 500))]
)
def test_scale_boxes(name: str, size: tuple[int, int], source: tuple[int, int]) -> None:
    gain = min(size[0] / source[0], size[1] / source[1])
    offset = np.array([size[1] - source[1] * gain, size[0] - source[0] * gain]) / 2
    got = map_back(INPUTS["scale_boxes_in"], np.array([gain, gain]), offset, source)
    np.testing.assert_allclose(got, V70[f"scale_boxes_{name}"], atol=GEOMETRY, rtol=0)


def test_rectangular_batches() -> None:
    sizes = np.array([INPUTS[f"rect_img{index}"].shape[:2] for index in range(8)])
    batches = rectangular_batches(sizes, 64, 3)
    assert np.array_equal(batches.order, V70["rect_order"])
    assert np.array_equal(batches.batch, V70["rect_batch_index"])
    assert np.array_equal(batches.shapes, V70["rect_batch_shapes"])


@pytest.mark.parametrize("place", range(8))
def test_rectangular_sample(place: int) -> None:
    image = int(V70["rect_order"][place])
    pixels, labels = INPUTS[f"rect_img{image}"], INPUTS[f"rect_labels{image}"].reshape(-1, 5)
    shape = V70["rect_batch_shapes"][V70["rect_batch_index"][place]].tolist()
    source, resized = pixels.shape[:2], long_side(pixels.shape[:2], 64)
    plan = letterbox(resized, tuple(shape), enlarge=False)
    shapes = [*source, resized[0] / source[0], resized[1] / source[1], *plan.pad]
    np.testing.assert_allclose(shapes, V70["rect_shapes_h0_w0_rh_rw_padx_pady"][place], rtol=1e-6)

    boxes = map_boxes(_pixel_boxes(labels, resized), *plan.mapping("nominal"))
    expected = V70[f"rect{place}_labels"]
    assert np.array_equal(labels[:, 0], expected[:, 1])
    assert not expected[:, 0].any()
    np.testing.assert_allclose(boxes, _pixel_boxes(expected[:, 1:], plan.size), atol=GEOMETRY, rtol=0)

    name = f"rect{place}_img_rgb_chw"
    if name in V70:
        bgr = place_image(resize_image(pixels, resized, "area"), plan)
        _assert_pixels(bgr[..., ::-1].transpose(2, 0, 1), V70[name])
