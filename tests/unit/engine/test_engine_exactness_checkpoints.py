"""What a run does with checkpoints that it cannot trust: it names them and goes on from the one before."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exact_runs import experiment, train
from run_states import assert_equal, final_state

from sensorlab.engine import checkpoint
from sensorlab.engine.callbacks.base import Callback
from sensorlab.errors import UserError
from sensorlab.experiment import CheckpointConfig, ExperimentConfig, InitConfig
from toy_images import write_splits


class Interrupted(Exception):
    pass


class StopAfter(Callback):
    """Raises after step ``step``; notes the step that the attempt began at."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_fit_start(self, training):
        self.began = training.cursor.step

    def on_step_end(self, training, record):
        if record.step == self.step:
            raise Interrupted


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ExperimentConfig:
    dataset = tmp_path_factory.mktemp("dataset")
    write_splits(dataset)
    checkpoints = CheckpointConfig(every="1 step", keep_latest=3)
    return experiment(dataset, duration="8 steps", early_stop=None).model_copy(update={"checkpoint": checkpoints})


@pytest.fixture(scope="module")
def straight(tmp_path_factory, config) -> Path:
    run_dir = tmp_path_factory.mktemp("straight")
    train(config, run_dir, StopAfter(-1))
    return run_dir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, config) -> Path:
    """A run that died in step 6: its last checkpoints are those of steps 3, 4 and 5, and the best one's."""
    run_dir = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        train(config, run_dir, StopAfter(6))
    return run_dir


def _cut(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-10])


def _flip(name: str) -> Callable[[Path], object]:
    def flip(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 4
        (path / name).write_bytes(content)

    return flip


def _foreign(path: Path) -> None:
    earlier = path.with_name("step-00000003")
    shutil.rmtree(path)
    shutil.copytree(earlier, path)


FILES = ("model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "MANIFEST.json")
DAMAGES: dict[str, Callable[[Path], object]] = {
    **{f"{name} cut": _cut(name) for name in FILES},
    **{f"bit of {name} flipped": _flip(name) for name in FILES},
    **{f"{name} missing": lambda path, name=name: (path / name).unlink() for name in FILES},
    "empty directory": lambda path: [file.unlink() for file in path.iterdir()],
    "of another step": _foreign,
    "foreign file": lambda path: (path / "more.safetensors").write_bytes(b""),
    "older format": lambda path: (path / "MANIFEST.json").write_text('{"format": 1, "step": 5, "files": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(config, straight, stopped, tmp_path, caplog, damage):
    run_dir, watch = tmp_path / "run", StopAfter(-1)
    shutil.copytree(stopped, run_dir)
    DAMAGES[damage](run_dir / "checkpoints" / "step-00000005")
    train(config, run_dir, watch)
    assert watch.began == 4
    assert "refused: checkpoint" in caplog.text
    assert "step-00000005" in caplog.text
    assert_equal(final_state(run_dir), final_state(straight))


def test_with_all_of_them_damaged_the_run_begins_anew(config, straight, stopped, tmp_path, caplog):
    run_dir, watch = tmp_path / "run", StopAfter(-1)
    shutil.copytree(stopped, run_dir)
    for path in (run_dir / "checkpoints").iterdir():
        _flip("state.json")(path)
        assert path.name not in caplog.text
    train(config, run_dir, watch)
    assert watch.began == 0
    assert_equal(final_state(run_dir), final_state(straight))


def test_a_checkpoint_of_another_experiment_is_refused_with_all_that_differs(config, stopped, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(stopped / "checkpoints", run_dir / "checkpoints")
    other = config.model_copy(update={"seed": 5, "task": config.task.model_copy(update={"width": 4})})
    with pytest.raises(UserError, match=r"may not change(.|\n)*seed: 0 -> 5(.|\n)*task.width: 6 -> 4"):
        train(other, run_dir)


class Payload:
    """Pickled code, harmless: creates a file when it is executed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_the_payload_works(tmp_path):
    marker = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(marker))).close()
    assert marker.exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.safetensors", "weights.bin"])
@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_initial_weights_is_never_executed(config, tmp_path, name, kind):
    marker, weights = tmp_path / "executed", tmp_path / name
    if kind == "pickle":
        weights.write_bytes(pickle.dumps({"stem.weight": Payload(marker)}))
    else:
        torch.save({"stem.weight": torch.zeros(6, 1, 3, 3), "code": Payload(marker)}, weights)
    init = config.train.model_copy(update={"init": InitConfig(path=str(weights))})
    with pytest.raises(UserError, match=name):
        train(config.model_copy(update={"train": init}), tmp_path / "run")
    assert not marker.exists()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("sealed", [False, True])
def test_code_in_a_checkpoint_is_never_executed(config, stopped, tmp_path, file, sealed):
    """``sealed``: whoever put it there has made the manifest anew, so that only the content can give it away."""
    run_dir, marker = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(stopped, run_dir)
    path = run_dir / "checkpoints" / "step-00000005"
    (path / file).write_bytes(pickle.dumps(Payload(marker)))
    if sealed and file != "MANIFEST.json":
        manifest = json.loads((path / "MANIFEST.json").read_text())
        content = (path / file).read_bytes()
        manifest["files"][file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest.pop("sha256")
        manifest["sha256"] = checkpoint._seal(manifest)
        (path / "MANIFEST.json").write_text(json.dumps(manifest))
        with pytest.raises(checkpoint.CheckpointError, match="step-00000005"):
            train(config, run_dir)
    else:
        train(config, run_dir)
    assert not marker.exists()


def test_a_pickle_beside_the_checkpoints_is_not_opened(config, straight, stopped, tmp_path):
    run_dir, marker = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(stopped, run_dir)
    for name in ("step-00000007", "step-00000009.pt", "latest.pt"):
        (run_dir / "checkpoints" / name).write_bytes(pickle.dumps(Payload(marker)))
    train(config, run_dir, StopAfter(-1))
    assert not marker.exists()
    for name in ("step-00000009.pt", "latest.pt"):
        (run_dir / "checkpoints" / name).unlink()
    assert_equal(final_state(run_dir), final_state(straight))
