"""Pictures of the first batches: the right samples, each once, also when the run is resumed in between."""

from __future__ import annotations

import numpy as np
import pytest
from callback_runs import Interrupted, StopAfter, run
from PIL import Image

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.first_batches import FirstBatches
from sensorlab.engine.callbacks.pictures import contact_sheet
from sensorlab.experiment import TrainConfig
from toy import ToyStream, ToyTask


class DrawingTask(ToyTask):
    """Draws each sample as a square whose grey value is the number of the sample."""

    def input_panels(self, batch):
        return [(f"sample {i}", np.full((20, 20, 3), i, np.uint8)) for i in batch["index"].tolist()]


class Gallery(Callback):
    def __init__(self):
        self.pictures = {}

    def on_picture(self, training, name, picture, step):
        assert name not in self.pictures
        self.pictures[name] = (step, picture)


def samples_of(sheet: np.ndarray) -> list[int]:
    """Grey values of the four tiles of a sheet, which are 20 x 20 under strips of 18."""
    return [int(sheet[y, x, 0]) for y in (28, 66) for x in (10, 30)]


def first_batches_of_the_stream(count: int) -> list[list[int]]:
    stream = ToyStream(21, 4, DrawingTask(None))
    return [batch["index"].tolist() for _, batch in zip(range(count), stream.batches(0), strict=False)]


def test_draws_the_samples_of_the_first_batches_and_no_others(tmp_path):
    gallery = Gallery()
    run(tmp_path, FirstBatches(3), gallery, task_class=DrawingTask)
    files = sorted(path.name for path in (tmp_path / "first_batches").iterdir())
    assert files == ["batch-0.png", "batch-1.png", "batch-2.png"]
    drawn = [samples_of(np.asarray(Image.open(tmp_path / "first_batches" / name))) for name in files]
    assert drawn == first_batches_of_the_stream(3)
    assert [(name, step) for name, (step, _) in gallery.pictures.items()] == [(f"train/batch_{i}", i) for i in range(3)]
    assert [samples_of(sheet) for _, sheet in gallery.pictures.values()] == drawn


def test_never_draws_beyond_the_first_epoch(tmp_path):
    run(tmp_path, FirstBatches(100), task_class=DrawingTask)
    assert len(list((tmp_path / "first_batches").iterdir())) == 5  # an epoch


def test_each_pass_of_a_step_is_a_batch(tmp_path):
    train = TrainConfig(duration="1 epoch", accumulate=2)
    gallery = Gallery()
    run(tmp_path, FirstBatches(3), gallery, task_class=DrawingTask, train=train)
    assert [(name, step) for name, (step, _) in gallery.pictures.items()] == [
        ("train/batch_0", 0),
        ("train/batch_1", 0),
        ("train/batch_2", 1),
    ]


def test_a_resumed_run_draws_only_what_is_left(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, FirstBatches(4), StopAfter(3), task_class=DrawingTask)
    done = {path.name: path.read_bytes() for path in (tmp_path / "first_batches").iterdir()}
    assert sorted(done) == ["batch-0.png", "batch-1.png", "batch-2.png"]
    gallery = Gallery()
    run(tmp_path, FirstBatches(4), gallery, task_class=DrawingTask)  # from the checkpoint of step 2
    assert list(gallery.pictures) == ["train/batch_2", "train/batch_3"]
    again = {path.name: path.read_bytes() for path in (tmp_path / "first_batches").iterdir()}
    assert done.items() <= again.items()
    gallery = Gallery()
    run(tmp_path, FirstBatches(4), gallery, task_class=DrawingTask)  # finished already
    assert not gallery.pictures


def test_a_task_that_draws_nothing_is_said_once(tmp_path, caplog):
    run(tmp_path, FirstBatches(3))
    assert caplog.text.count("draws no inputs") == 1
    assert not (tmp_path / "first_batches").exists()


def test_sheet_pads_tiles_of_different_sizes_and_keeps_their_pixels():
    wide, high = np.full((10, 40, 3), 200, np.uint8), np.full((30, 10, 3), 90, np.uint8)
    sheet = contact_sheet([("wide", wide), ("high", high), ("a title that is far too long for its tile", wide)])
    assert sheet.shape == (2 * (30 + 18), 2 * 40, 3)
    assert sheet.dtype == np.uint8
    assert (sheet[18:28, :40] == wide).all()
    assert (sheet[18:48, 40:50] == high).all()
    assert (sheet[48 + 18 : 48 + 28, :40] == wide).all()
    assert len(np.unique(sheet[:18, :40].reshape(-1, 3), axis=0)) > 1  # the title is written
    assert (sheet[48:, 40:] == sheet[-1, -1]).all()  # a long title does not run into the next column


def test_sheet_limits_tiles_and_their_sizes():
    pictures = [(str(i), np.zeros((1000, 2000, 3), np.uint8)) for i in range(20)]
    assert contact_sheet(pictures, max_tiles=16, max_side=64).shape == (4 * (32 + 18), 4 * 64, 3)
