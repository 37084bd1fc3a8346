"""Multi-scale training in the loop: the drawn sizes reach the network, and a resumed run draws the same ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from run_states import assert_equal, final_state
from torch import nn

from sensorlab.data.random_streams import keyed_generator
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.fit import fit
from sensorlab.engine.multi_scale import MultiScaleConfig, draw_size, largest_size
from sensorlab.errors import UserError
from sensorlab.experiment import CheckpointConfig, EvalConfig, TrainConfig
from toy import ToyStream, ToyTask, toy_experiment

SIZE = (16, 24)
SCALE = MultiScaleConfig(stride=4)


class Pictures(ToyTask):
    """The toy with a small image as its input."""

    def __init__(self, config):
        super().__init__(config)
        self.seen = []  # (training, size) of every forward pass

    def transform(self, sample, random, training):
        image = keyed_generator("picture", sample.token).random((3, *SIZE)).astype(np.float32)
        return {"image": image, "y": np.float32([image.mean()])}

    def build_model(self):
        features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))

    def forward(self, model, batch):
        self.seen.append((model.training, self.image_size(batch)))
        return {"y": model(batch["image"])}

    def image_size(self, batch):
        return tuple(batch["image"].shape[-2:])

    def resize(self, batch, size):
        return {**batch, "image": F.interpolate(batch["image"], size, mode="bilinear", align_corners=False)}


class Interrupted(Exception):
    pass


class StopAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, training, record):
        if record.step == self.step:
            raise Interrupted


def experiment(**train):
    return toy_experiment(
        train=TrainConfig(**({"duration": "2 epochs", "accumulate": 2, "multi_scale": SCALE} | train)),
        eval=EvalConfig(metric="val/mse", mode="min"),
        checkpoint=CheckpointConfig(every="1 step"),
    )


def run(run_dir, config, *callbacks, kind=Pictures):
    task = kind(config.task)
    streams = ToyStream(21, 4, task, seed=config.seed), ToyStream(8, 4, task, training=False)
    fit(config, task, *streams, run_dir=run_dir, callbacks=[JsonLog(), *callbacks])
    return task


def test_every_batch_of_training_has_its_size_and_evaluation_its_own(tmp_path):
    task = run(tmp_path, experiment(dry_run=False))
    drawn = [draw_size(SCALE, 0, epoch, batch, SIZE) for epoch in range(2) for batch in range(5)]
    assert len(set(drawn)) > 3
    assert [size for training, size in task.seen if training] == drawn
    assert {size for training, size in task.seen if not training} == {SIZE}


def test_a_dry_run_tries_the_largest_size(tmp_path):
    task = run(tmp_path, experiment())
    assert task.seen[0] == (True, largest_size(SCALE, SIZE))
    assert task.seen[1] == (False, SIZE)


@pytest.mark.parametrize("stop", [1, 3, 4])  # the first step, the last of an epoch (with one pass), the first after it
def test_a_resumed_run_equals_the_straight_one(tmp_path, stop):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(straight, experiment())
    with pytest.raises(Interrupted):
        run(resumed, experiment(), StopAfter(stop))
    run(resumed, experiment())
    assert_equal(final_state(resumed), final_state(straight))


def test_another_size_is_another_training(tmp_path):
    run(tmp_path / "scaled", experiment())
    run(tmp_path / "plain", experiment(multi_scale=None))
    weights = [final_state(tmp_path / name)[0]["model"]["0.0.weight"] for name in ("scaled", "plain")]
    assert not torch.equal(*weights)


def test_a_task_without_images_is_named(tmp_path):
    with pytest.raises(UserError, match=r"train\.multi_scale: task toy has no images"):
        run(tmp_path, experiment(), kind=ToyTask)
