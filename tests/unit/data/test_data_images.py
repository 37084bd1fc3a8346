"""Decoding, resizing and cropping of images, and the exactness of what they do to intrinsics."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sensorlab.data import images
from sensorlab.data.images import MAX_ENLARGEMENT, ResizeCrop, decode_image
from sensorlab.errors import UserError


def _encode(pixels: np.ndarray, file_format: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **({"quality": 98} if file_format == "JPEG" else {}))
    return file.getvalue()


def _decode(encoded: bytes, plan: ResizeCrop, interpolation: str = "draft") -> np.ndarray:
    out = np.full((*plan.size, 3), 77, np.uint8)
    decode_image(encoded, plan, interpolation, "sample s, camera c", out=out)  # type: ignore[arg-type]
    return out


def _ramps(width: int, height: int, noise: float = 0.0) -> np.ndarray:
    """Red grows with u, green with v, both linearly; blue is constant. ``noise``: its standard deviation in levels."""
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    ramps = np.stack([40 + 170 * u / width, 40 + 170 * v / height, np.full_like(u, 128)], -1)
    return (ramps + np.random.default_rng(0).normal(0, noise, ramps.shape)).round().clip(0, 255).astype(np.uint8)


@settings(max_examples=25, deadline=None)
@given(
    source=st.sampled_from([(640, 360), (641, 357), (400, 225)]),
    scale=st.floats(0.8, 1.2),
    shift=st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
    interpolation=st.sampled_from(["draft", "bilinear", "bicubic"]),
)
def test_intrinsics_follow_the_pixels(
    source: tuple[int, int], scale: float, shift: tuple[float, float], interpolation: str
) -> None:
    """A linear ramp shows at every final pixel which source position it was sampled at."""
    width, height = source
    plan = ResizeCrop.jittered((96, 160), scale, shift)
    # Rounding to whole levels must not look like a shift: noise dithers it, and a bias (as JPEG decoders have) cancels
    # between an image and its negative.
    source_pixels = _ramps(width, height, noise=4.0)
    positive, negative = (
        _decode(_encode(pixels), plan, interpolation).astype(float) for pixels in (source_pixels, 255 - source_pixels)
    )
    got = (positive + 255 - negative) / 2
    camera = np.array([[500.0, 0, 300.0], [0, 480.0, 170.0], [0, 0, 1]])
    moved = plan.intrinsics(camera, source)
    v, u = np.mgrid[:96, :160]
    # The ray of the final pixel, seen by the source camera.
    source_u = (u - moved[0, 2]) / moved[0, 0] * camera[0, 0] + camera[0, 2]
    source_v = (v - moved[1, 2]) / moved[1, 1] * camera[1, 1] + camera[1, 2]
    margin = 12  # source pixels: filters meet the border
    inside = (source_u > margin) & (source_u < width - margin) & (source_v > margin) & (source_v < height - margin)
    # Mean errors in source pixels. Ignoring the width of pixels would be off by 0.5 to 2 of them.
    error_u = ((got[..., 0] - 40) / 170 * width - source_u)[inside].mean()
    error_v = ((got[..., 1] - 40) / 170 * height - source_v)[inside].mean()
    assert abs(error_u) < 0.35
    assert abs(error_v) < 0.35


def test_original_intrinsics_differ_by_the_half_pixel() -> None:
    camera = np.array([[1266.0, 0, 816.0], [0, 1266.0, 491.0], [0, 0, 1]])
    plan = ResizeCrop.plain((224, 400))
    shift = plan.intrinsics(camera, (1600, 900), "origin") - plan.intrinsics(camera, (1600, 900))
    assert shift[0, 2] == pytest.approx(0.375)
    assert shift[1, 2] == pytest.approx(0.5 - 0.5 * 224 / 900)


def test_outside_of_the_image_is_black() -> None:
    white = _encode(np.full((90, 160, 3), 255, np.uint8))
    for interpolation in ("draft", "nearest"):
        got = _decode(white, ResizeCrop((160, 90), (-10, 20), (90, 160)), interpolation)
        assert (got[:70, 10:] > 250).all()
        assert not got[:, :10].any()
        assert not got[70:].any()
        assert not _decode(white, ResizeCrop((160, 90), (160, 0), (90, 160)), interpolation).any()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_those_of_pillow(interpolation: str) -> None:
    """Resizing by torch, or only the window by Pillow, gives the pixels of the whole image, up to rounding."""
    source = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    plan = ResizeCrop((123, 71), (17, 9), (40, 80))
    whole = np.asarray(Image.fromarray(source).resize((123, 71), Image.Resampling[interpolation.upper()]))[9:49, 17:97]
    got = _decode(_encode(source, "PNG"), plan, interpolation)
    assert np.abs(got.astype(int) - whole).max() <= 1


def test_draft_decodes_less_and_stays_close(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = images._resize_bilinear

    def recording(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        sizes.append(pixels.shape[:2])
        return original(pixels, size)

    monkeypatch.setattr(images, "_resize_bilinear", recording)
    smooth = _encode(_ramps(1600, 900))
    for scale in (0.8, 1.0, MAX_ENLARGEMENT):
        plan = ResizeCrop.jittered((224, 400), scale, (0, 0))
        difference = _decode(smooth, plan, "draft").astype(int) - _decode(smooth, plan, "bilinear")
        assert np.abs(difference).max() <= 3
    assert sizes[::2] == [(225, 400)] * 3
    assert sizes[1::2] == [(900, 1600)] * 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_become_rgb(mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(_ramps(160, 90)).convert(mode).save(file, "PNG")
    assert _decode(file.getvalue(), ResizeCrop.plain((45, 80))).std() > 10


def test_damaged_images_name_their_camera() -> None:
    whole = _encode(_ramps(160, 90))
    for damaged in (whole[: len(whole) // 2], b"", b"not an image", whole[:20]):
        with pytest.raises(UserError, match=r"sample s, camera c: the image cannot be decoded"):
            _decode(damaged, ResizeCrop.plain((45, 80)))
