"""The losses of every step of every experiment, in its debug configuration, against those stored in ``data/losses``.

A change of a task, a model, an augmentation, an order, an optimiser or a setting moves some of them. Losses repeat to
the bit on one machine. Another processor sums in another order, and AdamW turns the sign of a gradient near zero into a
whole step: between AVX-512 and AVX2 kernels, one thread and two, the losses of these four steps differed by up to 5e-5
(relative). The tolerance is twenty times that. Metrics and gradient norms differ more, and are not compared.

    python tests/golden/test_experiment_losses.py [NAME ...]     writes the files anew: for a change that is meant
    sensorlab compare-losses tests/golden/data/losses/NAME.jsonl outputs/runs/RUN --losses --tolerance 1e-3
                                                                 the same for what train_bev.py --debug has recorded
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sensorlab.cluster.datasets import ensure_dataset
from sensorlab.cluster.program import TRAIN, VAL, build_task, stream_specs
from sensorlab.cluster.sweep_check import check_space
from sensorlab.cluster.sweep_config import load_sweep, split_overrides
from sensorlab.config import as_dict
from sensorlab.data.local_stream import LocalStream
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.compare import Series, first_difference, losses_of, read_series
from sensorlab.engine.fit import fit
from sensorlab.errors import UserError
from sensorlab.experiment import experiment_from, load_experiment, load_file

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
GOLDEN = Path(__file__).parent / "data" / "losses"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
TOLERANCE = 1e-3  # absolute up to 1, relative above
pytestmark = pytest.mark.golden


def losses(name: str, root: Path, overrides: Sequence[str] = ()) -> Series:
    """Train the debug configuration of ``name`` in this process; ``root``: where its dataset is or will be made."""
    config = load_experiment(CONFIGS / f"{name}.yaml", overrides, debug=True)
    dataset = ensure_dataset(config.data, root, lambda line: None)
    specs = stream_specs(config, str(dataset))
    streams = {key: LocalStream(spec) for key, spec in specs.items()}
    with tempfile.TemporaryDirectory() as folder:
        try:
            task = build_task(config)
            fit(config, task, streams[TRAIN], streams[VAL], run_dir=Path(folder), callbacks=[JsonLog()])
        finally:
            for stream in streams.values():
                stream.close()
        return losses_of(read_series(Path(folder)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output root of all of them: they share the small world that the first one makes."""
    return tmp_path_factory.mktemp("outputs")


def test_every_stored_file_belongs_to_an_experiment() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.jsonl")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_every_step_are_those_stored(name: str, root: Path) -> None:
    stored, found = read_series(GOLDEN / f"{name}.jsonl"), losses(name, root)
    assert len({step for step, key in stored if key == "train/loss"}) >= 3
    assert first_difference(stored, found, TOLERANCE) is None


@pytest.mark.parametrize("change", ["seed=1", "data.augment=false", "task.losses.pos_weight=2.3", "optim.lr=4e-4"])
def test_the_tolerance_tells_a_changed_experiment(change: str, root: Path) -> None:
    name = "train_bev_astyx_radar"
    assert first_difference(read_series(GOLDEN / f"{name}.jsonl"), losses(name, root, [change]), TOLERANCE) is not None


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("tune")])
def test_the_debug_section_of_a_sweep_makes_a_sweep(name: str) -> None:
    tree = load_file(CONFIGS / f"{name}.yaml", debug=True)
    experiment, sweep, _ = split_overrides(tree, [])
    check_space(load_sweep(sweep), as_dict(experiment_from(experiment)), experiment_from)
    assert load_sweep(sweep).num_trials <= 2


def test_without_debug_the_section_is_left_out_and_with_it_there_must_be_one(tmp_path: Path) -> None:
    assert "debug" not in load_file(CONFIGS / "tune_bev.yaml")
    file = tmp_path / "plain.yaml"
    file.write_text("name: x\n")
    with pytest.raises(UserError, match=r"plain.yaml has no 'debug' section"):
        load_file(file, debug=True)
    file.write_text("name: x\ndebug: {trian: {duration: 1 step}}\n")
    with pytest.raises(UserError, match="trian: unknown key; did you mean 'train'"):
        load_experiment(file, debug=True)
    with pytest.raises(UserError, match="debug: unknown key"):
        experiment_from({"name": "x", "debug": {}})


def write(names: Sequence[str]) -> None:
    """Store the losses of now, one line per step."""
    torch.set_num_threads(1)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            lines: dict[int, dict[str, float]] = {}
            for (step, key), value in losses(name, Path(folder)).items():
                lines.setdefault(step, {"step": step})[key] = value
            text = "".join(json.dumps(line) + "\n" for line in lines.values())
            (GOLDEN / f"{name}.jsonl").write_text(text, encoding="utf-8")
            print(f"{name}: {len(lines)} steps", flush=True)


if __name__ == "__main__":
    write(sys.argv[1:] or NAMES)
