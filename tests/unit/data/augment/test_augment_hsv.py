"""Changes of colour."""

from __future__ import annotations

import colorsys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorlab.data.augment.hsv import HsvConfig, change_hsv, hsv_tables, hsv_to_rgb, rgb_to_hsv, sample_hsv

levels = st.integers(0, 255)


@settings(max_examples=200, deadline=None)
@given(levels, levels, levels)
def test_conversion_agrees_with_the_definition(red: int, green: int, blue: int) -> None:
    hue, saturation, value = (float(c[0]) for c in rgb_to_hsv(np.array([[red, green, blue]], dtype=np.uint8)))
    expected = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    assert value == round(expected[2] * 255)
    # Half a step of rounding, and 255 or 5 x 255 times the rounding of a reciprocal to 2^-12.
    assert abs(saturation - expected[1] * 255) <= 0.5 + 0.04
    distance = abs(hue - expected[0] * 180)
    assert min(distance, 180 - distance) <= 0.5 + 0.16


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 179), levels, levels)
def test_conversion_back_agrees_with_the_definition(hue: int, saturation: int, value: int) -> None:
    got = hsv_to_rgb(*(np.array([level], dtype=np.uint8) for level in (hue, saturation, value)))[0]
    expected = np.array(colorsys.hsv_to_rgb(hue / 180, saturation / 255, value / 255)) * 255
    np.testing.assert_allclose(got, expected, atol=0.51)


def test_grey_stays_grey_and_black_stays_black() -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    changed = change_hsv(grey, np.array([1.01, 1.7, 0.5]))
    assert np.array_equal(changed, grey // 2)


def test_factors_of_one_change_little() -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 160, 3), dtype=np.uint8)  # more than one chunk
    changed = change_hsv(image, np.ones(3))
    # A step of two degrees of hue is 8.5 levels of the middle channel, at full saturation and value; hue is off by up
    # to 0.66 of it.
    assert np.abs(changed.astype(int) - image).max() <= 6
    assert np.array_equal(changed.max(axis=2), image.max(axis=2))


def test_a_view_gives_the_same_as_a_copy() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    factors = np.array([1.01, 0.7, 1.2])
    assert np.array_equal(change_hsv(image[:, ::-1], factors), change_hsv(image, factors)[:, ::-1])


def test_hue_is_a_circle_and_the_others_are_clipped() -> None:
    hue, saturation, value = hsv_tables(np.array([1.5, 2.0, 0.5]))
    assert hue[179] == 88  # 268.5 - 180
    assert (saturation[127], saturation[128], saturation[255]) == (254, 255, 255)
    assert value[255] == 127


def test_factors_stay_in_their_ranges() -> None:
    generator = np.random.default_rng(0)
    drawn = np.array([sample_hsv(generator, HsvConfig()) for _ in range(1000)])
    deviation = np.abs(drawn - 1) / (0.015, 0.7, 0.4)
    assert deviation.max() <= 1 + 1e-9
    assert (np.abs(deviation.mean(axis=0) - 0.5) < 0.05).all()
