"""Image augmentation against Simple-BEV: every record of aug.json and every array of aug.npz."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sensorlab.data.images import ResizeCrop, decode_image

pytestmark = pytest.mark.golden

DATA = Path(__file__).parent / "data" / "simple_bev"
RECORDS = json.loads((DATA / "aug.json").read_text())["records"]
PIXELS = dict(np.load(DATA / "aug.npz"))
NUM_IMAGES = 5


def test_everything_is_looked_at() -> None:
    assert len(RECORDS) == 16
    names = ("out", "resize_wh", "crop_xyxy")
    assert set(PIXELS) == {"small_image"} | {f"pix{i}_{name}" for i in range(NUM_IMAGES) for name in names}


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
def test_plan_and_intrinsics(record: dict[str, Any]) -> None:
    size = tuple(record["final_hw"])
    if record["draws"]:
        scale, *shift = record["draws"]
        plan = ResizeCrop.jittered(size, scale, tuple(shift))
    else:
        plan = ResizeCrop.plain(size)
    assert list(plan.resized) == record["resize_wh"]
    (x, y), (height, width) = plan.offset, plan.size
    assert [x, y, x + width, y + height] == record["crop_xyxy"]
    intrinsics = plan.intrinsics(np.array(record["K_in"]), tuple(record["source_wh"]), "origin")
    np.testing.assert_allclose(intrinsics, np.array(record["K_out"])[:3, :3], atol=1e-3, rtol=0)


@pytest.mark.parametrize("index", range(NUM_IMAGES))
def test_nearest_pixels(index: int) -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS["small_image"]).save(file, "PNG")
    want = PIXELS[f"pix{index}_out"]
    x0, y0, x1, y1 = PIXELS[f"pix{index}_crop_xyxy"].tolist()
    assert (y1 - y0, x1 - x0) == want.shape[:2]
    plan = ResizeCrop(tuple(PIXELS[f"pix{index}_resize_wh"].tolist()), (x0, y0), want.shape[:2])
    got = np.full_like(want, 77)
    decode_image(file.getvalue(), plan, "nearest", "golden", out=got)
    assert np.array_equal(got, want)
