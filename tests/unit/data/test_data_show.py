"""Pictures of samples: what is drawn lies where the geometry says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from nuscenes_builder import build_root
from PIL import Image

from sensorlab.data.dataset import PreparedDataset
from sensorlab.data.prepare import prepare_nuscenes
from sensorlab.data.schema import decode_table
from sensorlab.data.show import _EDGES, _clip_to_near, draw_sample, show_sample
from sensorlab.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("show")
    return prepare_nuscenes(
        build_root(folder / "root"), "v1.0-mini", folder / "out", workers=0, report=lambda line: None
    )


def test_writes_a_picture(dataset: PreparedDataset, tmp_path: Path) -> None:
    path = show_sample(dataset.path, 1, tmp_path / "new" / "sample.png", "val")
    with Image.open(path) as image:
        assert image.width == 1800
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_axes_and_titles(dataset: PreparedDataset) -> None:
    sample = decode_table(dataset.split("train").read([0]))[0]
    figure = draw_sample(sample, "train 0")
    assert "scene drive-train" in figure.get_suptitle()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith("CAM_FRONT  64x36  +20 ms")
    assert titles[1].startswith("CAM_BACK")
    assert titles[2].startswith("ego frame from above")


def test_radar_points_lie_where_the_camera_sees_them(dataset: PreparedDataset) -> None:
    """RADAR_FRONT at (3, 0, .5) sees (10, 1, 0): ego (13, 1, .5); the camera's ego is 0.2 m further to the right."""
    sample = decode_table(dataset.split("train").read([0], ["cameras", "radars"]))[0]
    axes = draw_sample(sample, "").axes[0]
    (points,) = [c for c in axes.collections if isinstance(c, PathCollection)]
    # Camera at (1.5, 0, 1.5): depth 11.5, 1.2 m to the left, 1 m below.
    expected = [31.5 - 50 * 1.2 / 11.5, 17.5 + 50 * 1.0 / 11.5]
    np.testing.assert_allclose(points.get_offsets()[-1], expected, atol=1e-4)


def test_boxes_are_projected_into_the_image(dataset: PreparedDataset) -> None:
    sample = decode_table(dataset.split("train").read([0]))[0]
    np.testing.assert_allclose(sample.boxes.center[:, :2], [[7.0, -20.0], [20.0, 0.0]], atol=1e-9)

    def drawn(centers: np.ndarray) -> list[LineCollection]:
        boxes = dataclasses.replace(sample.boxes, center=centers)
        axes = draw_sample(dataclasses.replace(sample, boxes=boxes), "").axes[0]
        return [c for c in axes.collections if isinstance(c, LineCollection)]

    assert len(drawn(sample.boxes.center)) == 1  # the pedestrian ahead; the car is far to the right, out of view
    car, _ = drawn(np.array([[12.0, 0.0, 1.0], [20.0, 0.0, 0.9]]))
    lines = np.array(car.get_segments())
    assert lines.shape == (12, 2, 2)
    # Its nearest face is 12 - 4.5 / 2 - 1.5 = 8.25 m from the camera and 1.9 m wide, moved left by the 0.2 m that the
    # vehicle slides to the right until the image is taken.
    assert lines[..., 0].min() == pytest.approx(31.5 - 50 * (0.95 + 0.2) / 8.25, abs=1e-3)


def test_edges_join_neighbouring_corners() -> None:
    assert _EDGES.shape == (12, 2)
    assert np.bincount(_EDGES.reshape(-1)).tolist() == [3] * 8


def test_edges_are_cut_at_the_near_plane() -> None:
    edges = np.array([[[0, 0, 5.3], [0, 0, -4.7]], [[1, 0, -1], [2, 0, -2]], [[1, 2, 3], [4, 5, 6]]], float)
    clipped = _clip_to_near(edges)
    np.testing.assert_allclose(clipped[0], [[0, 0, 5.3], [0, 0, 0.3]])
    np.testing.assert_allclose(clipped[1], edges[2])
    assert len(clipped) == 2


@pytest.mark.parametrize("index", [-1, 3])
def test_sample_that_does_not_exist(dataset: PreparedDataset, tmp_path: Path, index: int) -> None:
    with pytest.raises(UserError, match=rf"split 'train' has samples 0\.\.2; there is no sample {index}"):
        show_sample(dataset.path, index, tmp_path / "x.png")


def test_output_that_cannot_be_written(dataset: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*x\.word"):
        show_sample(dataset.path, 0, tmp_path / "x.word")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        show_sample(dataset.path, 0, tmp_path / "file" / "x.png")
