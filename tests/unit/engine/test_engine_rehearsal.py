"""What is found with the first batch, and how it is said: on one worker, and on all of several at once."""

from __future__ import annotations

import functools
import logging
import sys
from pathlib import Path

import pytest
import torch
from exact_runs import experiment as image_experiment
from exact_runs import train
from run_states import assert_equal, final_state
from torch import nn
from two_workers import run_on_two_workers

from sensorlab.engine import training as training_module
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.compilation import compile_network
from sensorlab.engine.fit import fit
from sensorlab.engine.freeze import FreezeRule
from sensorlab.engine.workers import WorkerGroup
from sensorlab.errors import UserError
from sensorlab.experiment import CheckpointConfig, DataConfig, EvalConfig, ExperimentConfig, TrainConfig
from toy import ToyConfig, ToyStream, ToyTask, toy_experiment
from toy_images import write_splits


class Spare(ToyTask):
    """Has a layer that some workers use."""

    used_by: tuple[int, ...] = ()
    rank = 0

    def build_model(self):
        model = super().build_model()
        model.spare = nn.Linear(1, 1)
        return model

    def forward(self, model, batch):
        x = batch["x"]
        for name, layer in model.named_children():
            if name != "spare" or self.rank in self.used_by:
                x = layer(x)
        return {"y": x}


class Steps(Callback):
    """Counts the steps of an attempt."""

    def __init__(self) -> None:
        self.count = 0

    def on_step_end(self, training, record):
        self.count += 1


def experiment(global_batch: int = 4, metric: str = "val/mse", **changes) -> ExperimentConfig:
    return toy_experiment(
        data=DataConfig(path="nowhere", global_batch=global_batch),
        train=TrainConfig.model_validate({"duration": "3 steps", "log_every": "1 step"} | changes),
        eval=EvalConfig(metric=metric, mode="min"),
        checkpoint=CheckpointConfig(every="1 step"),
        task=ToyConfig(dropout=0.0),
    )


def run(config: ExperimentConfig, kind: type[ToyTask], run_dir: Path, rank: int = 0, n: int = 1) -> str:
    """What became of a training: its steps, or the message of the user error and the steps before it."""
    task, counter = kind(config.task), Steps()
    task.rank = rank
    batch = config.data.global_batch
    streams = (
        ToyStream(24, batch, task, rank=rank, n=n),
        ToyStream(8, 4, task, training=False, rank=rank, n=n),
    )
    try:
        fit(config, task, *streams, run_dir=run_dir, workers=WorkerGroup(rank, n), callbacks=[counter])
    except UserError as error:
        return f"after {counter.count} steps: {error}"
    return f"{counter.count} steps"


def test_one_worker_is_told_once_of_parameters_without_a_gradient(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="sensorlab"):
        assert run(experiment(), Spare, tmp_path) == "3 steps"
        assert run(experiment(duration="3 steps"), Spare, tmp_path) == "0 steps"
    told = [record.message for record in caplog.records if "get no gradient" in record.message]
    assert len(told) == 1
    assert "from the first batch: spare.weight, spare.bias; they stay as they are" in told[0]


def test_used_parameters_are_no_news(tmp_path, caplog):
    run(experiment(), ToyTask, tmp_path)
    assert "no gradient" not in caplog.text


def test_one_sample_is_too_few_for_batch_norm(tmp_path):
    message = run(experiment(global_batch=1), ToyTask, tmp_path)
    assert message.startswith("after 0 steps: data.global_batch=1 is too small for batch norm with 1 worker(s): raise")
    assert "sync_batchnorm" not in message
    assert "got input size" in message


def test_another_value_error_stays_what_it_is(tmp_path):
    class Broken(ToyTask):
        def losses(self, model, outputs, batch):
            raise ValueError("something else")

    with pytest.raises(ValueError, match=r"^something else$"):
        run(experiment(), Broken, tmp_path)


def test_a_misspelt_loss_term_as_objective_is_found_before_the_first_step(tmp_path):
    assert run(experiment(metric="val/squared"), ToyTask, tmp_path / "right") == "3 steps"
    message = run(experiment(metric="val/squard"), ToyTask, tmp_path / "wrong")
    assert message.startswith("after 0 steps: eval.metric=val/squard is not reported")
    assert "val/squared" in message


class SpareOfFirst(Spare):
    used_by = (0,)


class SpareOfBoth(Spare):
    used_by = (0, 1)


FREEZE = (FreezeRule(match=("spare.*",)),)
CASES = {
    "unused": (Spare, {}),
    "used by the first": (SpareOfFirst, {}),
    "used by both": (SpareOfBoth, {}),
    "frozen": (Spare, {"freeze": FREEZE}),
    "one sample each": (ToyTask, {"global_batch": 2}),
    "one sample for the second": (ToyTask, {"global_batch": 3}),
    "synchronised": (ToyTask, {"global_batch": 2, "sync_batchnorm": True}),
    "misspelt": (ToyTask, {"metric": "val/squard"}),
}


def _on_worker(rank: int, directory: str) -> dict[str, str]:
    outcomes = {
        name: run(experiment(**changes), kind, Path(directory) / name, rank, 2)
        for name, (kind, changes) in CASES.items()
    }
    longer = experiment(duration="5 steps")
    outcomes["begun on one"] = run(longer, Spare, Path(directory) / "begun on one", rank, 2)
    return outcomes


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux")
def test_two_workers_learn_together_what_neither_can_train(tmp_path):
    assert run(experiment(duration="5 steps"), Spare, tmp_path / "begun on one") == "5 steps"
    for name in ("step-00000004", "step-00000005"):
        assert (tmp_path / "begun on one" / "checkpoints" / name).is_dir()
    (tmp_path / "begun on one" / "checkpoints" / "step-00000005" / "MANIFEST.json").unlink()  # goes on from step 4
    first, second = run_on_two_workers(_on_worker, tmp_path, str(tmp_path))
    assert first == second
    unused = (
        "after 0 steps: trained parameters get no gradient from the first batch: spare.weight, spare.bias; 2 workers"
    )
    for name in ("unused", "used by the first", "begun on one"):
        assert first[name].startswith(unused), name
        assert "train.freeze (match: [spare.weight])" in first[name]
    for name, size in (("one sample each", 2), ("one sample for the second", 3)):
        told = f"after 0 steps: data.global_batch={size} is too small for batch norm with 2 worker(s): raise"
        assert first[name].startswith(told), name
        assert "set train.sync_batchnorm=true" in first[name]
    assert first["misspelt"].startswith("after 0 steps: eval.metric=val/squard is not reported")
    for name in ("used by both", "frozen", "synchronised"):
        assert first[name] == "3 steps", name


@pytest.mark.parametrize("dry", [True, False])
def test_code_that_compiles_for_one_size_alone_is_not_used(tmp_path, monkeypatch, dry):
    """The second graph is the one of the largest size: the code of the first has the size of the first batch in it."""
    graphs = []

    def compiles_once(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        if len(graphs) > 1:
            raise RuntimeError("dynamic shapes are not supported")
        return graph

    monkeypatch.setattr(training_module, "compile_network", functools.partial(compile_network, backend=compiles_once))
    write_splits(tmp_path / "dataset")
    states = []
    for compiles in (True, False):
        config = image_experiment(
            tmp_path / "dataset", compile=compiles, dry_run=dry, duration="4 steps", early_stop=None, freeze=()
        )
        train(config, tmp_path / f"{compiles}")
        state, _ = final_state(tmp_path / f"{compiles}")
        states.append(state)
    assert len(graphs) == 2
    assert "RuntimeError: dynamic shapes are not supported" in states[0]["provenance"]["compile"]
    assert_equal(states[0]["model"], states[1]["model"])
