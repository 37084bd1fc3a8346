"""N straight steps equal k steps + stop + resume, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from callback_runs import Interrupted, StopAfter
from run_states import assert_equal, final_state

from sensorlab.data.payload import CorruptSample
from sensorlab.engine import checkpoint
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.ema import EmaConfig
from sensorlab.engine.fit import fit
from sensorlab.engine.optim import OptimConfig
from sensorlab.errors import UserError
from sensorlab.experiment import CheckpointConfig, DataConfig, EvalConfig, ExperimentConfig, InitConfig, TrainConfig
from toy import ToyConfig, ToyStream, ToyTask, toy_experiment

STEPS_PER_EPOCH = 3  # 21 samples, batches of 4, two passes a step: the last step of an epoch has one pass


def experiment(**changes) -> ExperimentConfig:
    sections = {
        "eval": EvalConfig(metric="val/mse", mode="min", every="1 epoch"),
        "train": TrainConfig(duration="3 epochs", log_every="2 steps", accumulate=2, ema=EmaConfig(tau=5.0)),
        "checkpoint": CheckpointConfig(every=["1 epoch", "1 step"], keep_latest=3),
    }
    return toy_experiment(**(sections | changes))


def run(config: ExperimentConfig, run_dir: Path, *callbacks: Callback):
    task = ToyTask(config.task)
    train = ToyStream(21, 4, task, seed=config.seed)
    val = ToyStream(9, 4, task, training=False)
    return fit(config, task, train, val, run_dir=run_dir, callbacks=[JsonLog(), *callbacks])


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("straight")
    result = run(experiment(), run_dir)
    assert result.steps == 3 * STEPS_PER_EPOCH
    return final_state(run_dir)


@pytest.mark.parametrize("stop", range(1, 3 * STEPS_PER_EPOCH + 1))
def test_resumed_run_equals_the_straight_run_bit_for_bit(straight, tmp_path, stop):
    # The stop comes before the checkpoint of its own step is written, so the run resumes one step earlier.
    with pytest.raises(Interrupted):
        run(experiment(), tmp_path, StopAfter(stop))
    result = run(experiment(), tmp_path)
    assert result.steps == 3 * STEPS_PER_EPOCH
    assert_equal(final_state(tmp_path), straight)


def test_resume_reads_only_what_is_left(tmp_path):
    with pytest.raises(Interrupted):
        run(experiment(), tmp_path, StopAfter(5))
    config = experiment()
    task = ToyTask(config.task)
    stream = ToyStream(21, 4, task, seed=config.seed)
    fit(config, task, stream, None, run_dir=tmp_path)
    # Restored after step 4 = one step into the second epoch: 20 - 8 samples of it, then one whole epoch.
    assert len(stream.read) == 12 + 20


def test_a_different_seed_gives_different_weights(straight, tmp_path):
    run(experiment(seed=1), tmp_path)
    state, _ = final_state(tmp_path)
    assert not torch.equal(state["model"]["0.weight"], straight[0]["model"]["0.weight"])


def test_same_seed_twice_gives_the_same_bytes(straight, tmp_path):
    run(experiment(), tmp_path)
    assert_equal(final_state(tmp_path)[0], straight[0])


def test_altered_checkpoint_is_refused_by_name_and_the_previous_one_used(straight, tmp_path, caplog):
    with pytest.raises(Interrupted):
        run(experiment(), tmp_path, StopAfter(6))
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    run(experiment(), tmp_path)
    assert newest.name in caplog.text
    assert "altered" in caplog.text
    assert_equal(final_state(tmp_path)[0], straight[0])


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"optim": OptimConfig(lr=1.0)}, "optim.lr"),
        ({"data": DataConfig(path="nowhere", global_batch=2)}, "data.global_batch"),
        ({"task": ToyConfig(width=16)}, "task.width"),
        ({"seed": 3}, "seed"),
    ],
)
def test_resume_refuses_a_changed_configuration_and_names_the_key(tmp_path, change, key):
    with pytest.raises(Interrupted):
        run(experiment(), tmp_path, StopAfter(2))
    with pytest.raises(UserError, match=key):
        run(experiment(**change), tmp_path)


def test_resume_may_change_where_things_are_recorded(tmp_path):
    with pytest.raises(Interrupted):
        run(experiment(), tmp_path, StopAfter(2))
    assert run(experiment(output_dir="elsewhere", name="renamed"), tmp_path).steps == 9


@pytest.mark.parametrize("what", ["dataset", "order"])
def test_resume_refuses_another_dataset_or_order(tmp_path, what):
    config = experiment()
    task = ToyTask(config.task)
    fit(config, task, ToyStream(21, 4, task), None, run_dir=tmp_path, provenance={what: "a"})
    with pytest.raises(UserError, match=f"{what} with digest a"):
        fit(config, task, ToyStream(21, 4, task), None, run_dir=tmp_path, provenance={what: "b"})


def test_resume_with_other_code_is_said(tmp_path, caplog):
    config = experiment()
    task = ToyTask(config.task)
    for code in ("old", "new"):
        fit(config, task, ToyStream(21, 4, task), None, run_dir=tmp_path, provenance={"code": code})
    assert "written by the code old, this is new" in caplog.text


def test_a_fresh_start_refuses_a_directory_with_checkpoints(tmp_path):
    config = experiment()
    run(config, tmp_path)
    task = ToyTask(config.task)
    with pytest.raises(UserError, match="holds a run already"):
        fit(config, task, ToyStream(21, 4, task), None, run_dir=tmp_path, resume=False)


def test_best_checkpoint_survives_retention(tmp_path):
    result = run(experiment(checkpoint=CheckpointConfig(keep_latest=1)), tmp_path)
    infos = checkpoint.CheckpointStore(tmp_path / "checkpoints").all()
    values = {info.path: info.metrics["val/mse"] for info in infos}
    assert values[result.best_checkpoint] == min(values.values())
    assert len(infos) <= 2


def test_divergence_stops_before_the_update(tmp_path):
    config = experiment(task=ToyConfig(poison_step=5))
    with pytest.raises(FloatingPointError, match="not updated"):
        run(config, tmp_path)


def test_divergence_can_be_skipped_within_a_budget(tmp_path):
    train = TrainConfig(duration="1 epoch", nonfinite="skip", nonfinite_budget=1)
    result = run(experiment(task=ToyConfig(poison_step=5), train=train), tmp_path)
    assert result.steps == 5
    train = TrainConfig(duration="2 epochs", nonfinite="skip", nonfinite_budget=1)
    with pytest.raises(FloatingPointError, match="nonfinite_budget"):
        run(experiment(task=ToyConfig(poison_step=5), train=train), tmp_path / "second")


def test_budget_in_steps_ends_inside_an_epoch(tmp_path):
    result = run(experiment(train=TrainConfig(duration="7 steps")), tmp_path)
    assert (result.steps, result.epochs) == (7, 2)
    assert "val/mse" in result.metrics


def test_unknown_objective_lists_what_is_reported(tmp_path):
    with pytest.raises(UserError, match="val/mse"):
        run(experiment(eval=EvalConfig(metric="val/iou")), tmp_path)


def test_a_new_run_can_start_from_the_weights_of_another(straight, tmp_path):
    run(experiment(), tmp_path / "first")
    weights = checkpoint.CheckpointStore(tmp_path / "first" / "checkpoints").latest().path / "model.safetensors"
    init = InitConfig(path=str(weights), exclude=(r"^4\.",))
    train = TrainConfig(duration="1 epoch", log_every="2 steps", init=init)
    config = experiment(train=train, optim=OptimConfig(lr=0.0))
    run(config, tmp_path / "second")
    state, first = final_state(tmp_path / "second")[0], straight[0]
    assert torch.equal(state["model"]["0.weight"], first["model"]["0.weight"])
    assert not torch.equal(state["model"]["4.weight"], first["model"]["4.weight"])
    assert "skipped" in (tmp_path / "second" / "initial_weights.txt").read_text()


def test_skipped_samples_are_counted_and_listed(tmp_path):
    config = experiment(data=DataConfig(path="nowhere", global_batch=4, max_corrupt_fraction=0.1))
    task = ToyTask(config.task)
    stream = ToyStream(21, 4, task)
    stream.corrupt_samples.append(CorruptSample(3, "shard 0", "sample 'x' cannot be used: truncated"))
    result = fit(config, task, stream, None, run_dir=tmp_path)
    assert result.metrics["perf/corrupt_samples"] == 1
    assert "sample 'x'" in (tmp_path / "corrupt_samples.txt").read_text()


@pytest.mark.parametrize("eval_every", [2, 3, 5])
def test_the_best_checkpoint_holds_the_weights_that_were_measured(tmp_path, eval_every):
    # Evaluations and checkpoints fall on different steps.
    config = experiment(
        eval=EvalConfig(metric="val/mse", mode="min", every=f"{eval_every} steps"),
        checkpoint=CheckpointConfig(every="4 steps", keep_latest=1),
        train=TrainConfig(duration="4 epochs", log_every="2 steps"),
        optim=OptimConfig(lr=0.05),
    )
    result = run(config, tmp_path)
    measured = {}
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "val/mse" in entry:
            measured[entry["step"]] = entry["val/mse"]
    best_step = min(measured, key=measured.get)
    best = checkpoint.read_info(result.best_checkpoint)
    assert (best.step, best.metrics["val/mse"]) == (best_step, measured[best_step])


def test_a_skipped_step_leaves_no_trace_in_the_running_statistics(tmp_path):
    train = TrainConfig(duration="1 epoch", nonfinite="skip", nonfinite_budget=1)
    run(experiment(task=ToyConfig(poison_input=5), train=train), tmp_path)
    state, _ = final_state(tmp_path)
    assert torch.isfinite(state["model"]["1.running_mean"]).all()
    assert torch.isfinite(state["model"]["0.weight"]).all()
