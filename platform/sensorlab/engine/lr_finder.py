"""The learning-rate range test: the loss while the rate rises exponentially tells which rates to train with.

L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3; exponential rise, running
mean, and the end at four times its best as in S. Gugger, "How Do You Find A Good Learning Rate", 2018.

The test is a training like any other (:func:`range_test`), run by ``fit`` without validation; :class:`LrFinder` watches
it. Rates are those of a group without a multiplier; the multipliers of ``optim.groups`` hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorlab.config import as_dict, merge
from sensorlab.engine.callbacks.base import Callback
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig, experiment_from

if TYPE_CHECKING:
    from sensorlab.engine.training import Training

REPORT, PICTURE = "lr_finder.json", "lr_finder.png"
DIVERGED = 4.0  # times the best smoothed loss
_MEMORY = 0.9  # of the running mean that tells divergence
_WIDTH = 0.03  # of the bell that smooths the curve afterwards, in shares of the test's length


@dataclass(frozen=True)
class RateRange:
    """Rates from ``low`` (first step) towards ``high``, multiplied by the same factor after each of ``steps``."""

    low: float = 1e-7
    high: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        if not (0 < self.low < self.high < math.inf):
            raise UserError(f"--lr-range {self.low:g} {self.high:g}: give two positive rates, the lower one first")
        if self.steps < 10:
            raise UserError(f"--lr-steps {self.steps}: a curve needs at least 10 steps")


def range_test(config: ExperimentConfig, rates: RateRange) -> ExperimentConfig:
    """``config`` as a range test: its data, model and optimiser, with the schedule of the test and nothing else."""
    update: dict[str, Any] = {
        "optim": {"lr": rates.high},
        "schedule": {"name": "exponential", "start_factor": rates.low / rates.high, "end_factor": 1.0},
        "warmup": None,
        "train": {
            "duration": f"{rates.steps} steps",
            "extend": None,
            "accumulate": {"ramp": False},  # the ramp follows the warm-up
            "ema": None,
            "early_stop": None,
            "nonfinite": "skip",  # the end of the test, not an error
            "nonfinite_budget": rates.steps,
            "log_every": "1 step",
        },
        "checkpoint": {"every": None, "keep_every": None, "keep_latest": 1},
    }
    return experiment_from(merge(as_dict(config), update), where="learning-rate range test")


class LrFinder(Callback):
    """Takes the reduced loss of each step and ends the training when it diverges. Every worker sees the same losses."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.stopped: str | None = None  # why, if before the end
        self._mean = 0.0
        self._best = math.inf

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None:
        if "train/lr" not in metrics or self.stopped is not None:
            return
        loss, rate = metrics.get("train/loss", math.nan), metrics["train/lr"]  # a step that was skipped reports none
        if not math.isfinite(loss):
            self._stop(training, f"loss or gradient is not finite at rate {rate:.3g}")
            return
        self.rates.append(rate)
        self.losses.append(loss)
        self._mean = _MEMORY * self._mean + (1 - _MEMORY) * loss
        mean = self._mean / (1 - _MEMORY ** len(self.losses))  # without the bias towards the zero at the start
        if mean > DIVERGED * self._best and self._best > 0:
            self._stop(training, f"the mean loss is above {DIVERGED:g} times its best at rate {rate:.3g}")
        self._best = min(self._best, mean)

    def _stop(self, training: Training, reason: str) -> None:
        self.stopped = reason
        training.request_stop(reason)


@dataclass(frozen=True)
class Suggestion:
    """Rates to train with, as read off the smoothed curve."""

    steepest: float  # where the loss falls fastest per decade of rate
    minimum: float  # where the loss is lowest: already too high to train with
    minimum_tenth: float  # a tenth of that, the usual peak of a schedule


def smoothed(losses: Sequence[float], steps: int) -> np.ndarray:
    """Mean under a bell around each point, so that nothing is shifted along the rates, as a running mean would do.

    Args:
        losses: of equidistant rates in the logarithm.
        steps: length of the whole test; the bell's standard deviation is 3 % of it.
    """
    values = np.asarray(losses, np.float64)
    place = np.arange(len(values))
    weights = np.exp(-0.5 * ((place[:, None] - place[None, :]) / max(1.0, _WIDTH * steps)) ** 2)
    return np.asarray((weights @ values) / weights.sum(1))


def suggest(rates: Sequence[float], losses: np.ndarray) -> Suggestion | None:
    """Read the smoothed curve; ``None`` if the loss never fell.

    The steepest descent is looked for before the minimum only: what falls after it is a curve that has gone wild.
    """
    lowest = int(np.argmin(losses))
    if lowest < 2:
        return None
    slopes = np.gradient(losses[: lowest + 1], np.log10(rates[: lowest + 1]))
    steepest = int(np.argmin(slopes))
    return Suggestion(float(rates[steepest]), float(rates[lowest]), float(rates[lowest]) / 10.0)


def write_report(finder: LrFinder, rates: RateRange, config_digest: str, run_dir: Path) -> dict[str, Any]:
    """Write ``lr_finder.json`` and ``lr_finder.png`` to ``run_dir``; returns the content of the former.

    Raises:
        UserError: the loss was not finite from the start on.
    """
    if len(finder.losses) < 3:
        raise UserError(
            f"the range test ended after {len(finder.losses)} steps ({finder.stopped}): start at a lower rate "
            f"(--lr-range, now from {rates.low:g})"
        )
    curve = smoothed(finder.losses, rates.steps)
    found = suggest(finder.rates, curve)
    report = {
        "range": asdict(rates),
        "config_digest": config_digest,
        "steps": len(finder.losses),
        "stopped": finder.stopped,
        "suggestion": asdict(found) if found else None,
        "lr": finder.rates,
        "loss": finder.losses,
        "smoothed": curve.tolist(),
    }
    (run_dir / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(report, run_dir / PICTURE)
    return report


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Loss over rate, with what is suggested."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)  # no display, no global state: this runs in a thread of a worker
    axes = figure.add_subplot()
    axes.plot(report["lr"], report["loss"], color="0.75", linewidth=1, label="loss of a step")
    axes.plot(report["lr"], report["smoothed"], color="C0", linewidth=2, label="smoothed")
    if report["suggestion"]:
        marks = {"steepest": ("steepest descent", "C2"), "minimum_tenth": ("minimum / 10", "C1")}
        marks["minimum"] = ("minimum", "C3")
        for name, (label, color) in marks.items():
            rate = report["suggestion"][name]
            axes.axvline(rate, color=color, linestyle="--", linewidth=1, label=f"{label}: {rate:.2g}")
    lowest = int(np.argmin(report["smoothed"]))
    low, high = report["smoothed"][lowest], max(report["smoothed"][: lowest + 1])
    room = max(high - low, 0.1 * abs(low), 1e-12)
    axes.set_ylim(low - 0.25 * room, high + 0.5 * room)  # the rise at the end would flatten the rest
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title("learning-rate range test" + (f"\nended early: {report['stopped']}" if report["stopped"] else ""))
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(loc="best")
    figure.savefig(path, dpi=100)
