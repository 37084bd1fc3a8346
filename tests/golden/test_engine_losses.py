"""The losses of every step of a small training, against those stored when they were last looked at.

The training is the one of ``sensorlab selftest``: convolutions, batch statistics, dropout, augmentation, multi-scale,
accumulation, AdamW, one-cycle rate with warm-up, weight averaging. A change of arithmetic, order or seeds anywhere
moves it. On one machine the losses repeat to the bit; other processors sum convolutions in another order, which 42
steps amplify: hence the tolerance. ``python tests/golden/test_engine_losses.py`` writes the file anew; do that only
for a change that is meant.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch

from sensorlab.data.sampling import ShuffledSampling
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.compare import Series, first_difference, read_series
from sensorlab.engine.duration import Every
from sensorlab.experiment import ExperimentConfig
from sensorlab.selftest.training import stripes_experiment, train

GOLDEN = Path(__file__).parent / "data" / "engine" / "stripes.jsonl"
TOLERANCE = 2e-3  # absolute up to 1, relative above
pytestmark = pytest.mark.golden


def losses(config: ExperimentConfig) -> Series:
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder), JsonLog())
        series = read_series(Path(folder))
    # The accuracy jumps by 1/50 where a loss moves by a rounding error.
    return {key: value for key, value in series.items() if key[1] != "val/accuracy"}


def every_step(seed: int) -> ExperimentConfig:
    """Shuffled: an order by class scores would follow a sample that another processor judges otherwise."""
    config = stripes_experiment(seed)
    train, data = {"log_every": Every.parse("1 step")}, {"sampling": ShuffledSampling()}
    return config.model_copy(
        update={"train": config.train.model_copy(update=train), "data": config.data.model_copy(update=data)}
    )


def test_losses_of_every_step_are_those_stored():
    golden = read_series(GOLDEN)
    assert len({step for step, name in golden if name == "train/loss"}) == 42
    assert first_difference(golden, losses(every_step(0)), TOLERANCE) is None


def test_the_tolerance_tells_another_seed():
    difference = first_difference(read_series(GOLDEN), losses(every_step(1)), TOLERANCE)
    assert difference is not None
    assert difference.startswith("step 1:")


def test_the_tolerance_tells_a_rate_that_is_one_percent_off():
    config = every_step(0)
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": config.optim.lr * 1.01})})
    series = {key: value for key, value in losses(config).items() if key[1] != "train/lr"}
    golden = {key: value for key, value in read_series(GOLDEN).items() if key[1] != "train/lr"}
    assert first_difference(golden, series, TOLERANCE) is not None


def write() -> None:
    """Store the losses of now, one line per step."""
    torch.set_num_threads(1)
    lines: dict[int, dict[str, float]] = {}
    for (step, name), value in losses(every_step(0)).items():
        lines.setdefault(step, {"step": step})[name] = value
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    GOLDEN.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))


if __name__ == "__main__":
    write()
