"""A dry run leaves no trace, and finds what would fail hours later."""

from __future__ import annotations

import sys

import pytest
import torch
from exact_runs import experiment, train
from kill_child import in_children
from run_states import assert_equal, final_state

from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.fit import fit
from toy_images import ToyImageConfig, ToyImageTask, streams, write_splits


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    write_splits(root)
    return root


def without_the_switch(run_dir):
    state, log = final_state(run_dir)
    state["config"]["train"].pop("dry_run")
    state.pop("config_digest")
    return state, log


SETTINGS = {
    "everything": {},
    "no average": {"ema": None},  # the model itself is evaluated, with parts of it frozen
    "fp16": {"precision": "fp16"},
    "bf16, channels last": {"precision": "bf16", "channels_last": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_dry_run_leaves_no_trace(dataset, tmp_path, name):
    for dry in (True, False):
        config = experiment(dataset, dry_run=dry, duration="8 steps", early_stop=None, **SETTINGS[name])
        train(config, tmp_path / f"{dry}")
    assert_equal(without_the_switch(tmp_path / "True"), without_the_switch(tmp_path / "False"))


@pytest.mark.skipif(sys.platform != "linux", reason="forks a server that has imported torch")
def test_a_dry_run_leaves_no_trace_on_two_workers(dataset, tmp_path):
    for dry in (True, False):
        config = experiment(dataset, dry_run=dry, duration="8 steps", early_stop=None, sync_batchnorm=True)
        assert in_children(config, tmp_path / f"{dry}") == [0, 0]
    assert_equal(without_the_switch(tmp_path / "True"), without_the_switch(tmp_path / "False"))


class TooLarge(ToyImageTask):
    """Fails on images of the largest size that multi-scale training can draw."""

    def forward(self, model, batch):
        if batch["image"].shape[-1] == 12:
            raise RuntimeError("the largest size does not fit")
        return super().forward(model, batch)


class WrongShape(ToyImageTask):
    """Its head does not fit to its pooling."""

    def build_model(self):
        model = super().build_model()
        model.head = torch.nn.Linear(5, 3)
        return model


class WrongTarget(ToyImageTask):
    """Its losses do not fit to its outputs."""

    def losses(self, model, outputs, batch):
        return super().losses(model, {"scores": outputs["scores"][:, :1]}, batch)


class BrokenMetric(ToyImageTask):
    """Only its validation fails."""

    def metrics(self):
        metrics = super().metrics()
        metrics["accuracy"].update = lambda outputs, batch: outputs["no such output"]
        return metrics


class BrokenEvaluation(ToyImageTask):
    """Only its evaluation mode fails."""

    def forward(self, model, batch):
        assert model.training, "evaluation mode is not implemented"
        return super().forward(model, batch)


FAULTS = {
    TooLarge: (RuntimeError, "the largest size"),
    WrongShape: (RuntimeError, "shapes cannot be multiplied"),
    WrongTarget: (IndexError, "out of bounds"),
    BrokenMetric: (KeyError, "no such output"),
    BrokenEvaluation: (AssertionError, "evaluation mode"),
}


class Steps(JsonLog):
    """Counts the steps that were made before the error, over all attempts."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def on_step_end(self, training, record):
        self.steps += 1


@pytest.mark.parametrize("task_class", FAULTS)
@pytest.mark.parametrize("dry", [True, False])
def test_faults_are_found_before_the_first_step(dataset, tmp_path, task_class, dry):
    # Multi-scale draws the largest size in some later step; validation comes at the end of the first epoch.
    config = experiment(dataset, ToyImageConfig(), dry_run=dry, early_stop=None)
    error, message = FAULTS[task_class]
    task, counter = task_class(config.task), Steps()
    both = streams(config, task)
    with pytest.raises(error, match=message):
        fit(config, task, *both, run_dir=tmp_path, callbacks=[counter])
    for stream in both:
        stream.close()
    late = not dry and task_class not in (WrongShape, WrongTarget)
    assert (counter.steps > 0) == late
