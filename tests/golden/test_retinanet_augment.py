"""Resizing and mirroring against mmdetection: resize_cases and flip_boxes of vN_head.npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sensorlab.data.augment.flips import flip_boxes
from sensorlab.data.augment.letterbox import keep_ratio

pytestmark = pytest.mark.golden

GOLDEN = dict(np.load(Path(__file__).parent / "data" / "retinanet" / "augment.npz"))


def test_every_array_is_looked_at() -> None:
    assert set(GOLDEN) == {"resize_cases", "v1_flip_boxes", "v3_flip_boxes", "gt5_boxes0"}
    assert len(GOLDEN["resize_cases"]) == 24


@pytest.mark.parametrize("case", range(24))
def test_keep_ratio(case: int) -> None:
    height, width, long, short, *expected = GOLDEN["resize_cases"][case].tolist()
    plan = keep_ratio((int(height), int(width)), int(long), int(short), multiple=32)
    np.testing.assert_allclose([*plan.resized, plan.ratio[0], *plan.size], expected, atol=1e-9, rtol=0)


def test_horizontal_flip() -> None:
    boxes = GOLDEN["gt5_boxes0"].astype(np.float64)
    flipped = flip_boxes(boxes, (128, 160), horizontal=True, vertical=False)
    np.testing.assert_allclose(flipped, GOLDEN["v3_flip_boxes"], atol=1e-4, rtol=0)
    # The seed generation counts pixels: its boxes end on their last pixel, and lie one pixel further left.
    np.testing.assert_allclose(flipped - (1, 0, 1, 0), GOLDEN["v1_flip_boxes"], atol=1e-4, rtol=0)
