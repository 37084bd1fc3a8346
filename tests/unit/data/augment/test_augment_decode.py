"""Decoding: every mode has a rule."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sensorlab.data.augment.decode import decode_rgb, require_rgb
from sensorlab.errors import UserError

GREY = np.array([[0, 90], [200, 255]], dtype=np.uint8)


def _encode(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_grey_becomes_three_equal_channels() -> None:
    assert np.array_equal(decode_rgb(_encode(Image.fromarray(GREY)), "a"), np.stack([GREY] * 3, axis=2))


def test_alpha_is_dropped_and_not_blended() -> None:
    rgba = np.stack([GREY, GREY // 2, GREY // 3, np.zeros_like(GREY)], axis=2)  # fully transparent
    assert np.array_equal(decode_rgb(_encode(Image.fromarray(rgba)), "a"), rgba[..., :3])


def test_palette_is_expanded() -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert decode_rgb(_encode(image), "a").tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_orientation_is_not_applied() -> None:
    image = Image.fromarray(np.zeros((2, 5, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    assert decode_rgb(file.getvalue(), "a").shape == (2, 5, 3)


def test_deep_images_are_refused() -> None:
    deep = Image.fromarray(np.array([[0, 60000]], dtype=np.uint16))
    with pytest.raises(UserError, match=r"cam7: the image has more than 8 bits per channel \(mode I;16\)"):
        decode_rgb(_encode(deep), "cam7")


@pytest.mark.parametrize("cut", [0, 40, -20])
def test_broken_files_name_the_sample(cut: int) -> None:
    encoded = _encode(Image.fromarray(np.arange(3000, dtype=np.uint8).reshape(20, 50, 3)), "JPEG")
    with pytest.raises(UserError, match="cam7: the image cannot be decoded"):
        decode_rgb(encoded[:cut], "cam7")


@pytest.mark.parametrize(
    "image", [GREY, np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3)), np.zeros((0, 2, 3), np.uint8)]
)
def test_transforms_refuse_what_is_not_rgb(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        require_rgb(image)
