"""Synthetic sweep directories in the layout that a sweep writes, for the tests of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROTOCOL = {"metric": "bev_iou", "source": "a paper", "threshold": 0.5, "dataset": "d1", "split": "val"}
SPACE = {
    "optim.lr": {"loguniform": [1e-4, 1e-2]},
    "optim.weight_decay": {"loguniform": [1e-6, 1e-2]},
    "task.encoder": {"choice": ["res18", "res50", "effb0"]},
    "task.lidar": {"choice": [True, False]},
}


def experiment(**changes: Any) -> dict[str, Any]:
    """A small complete experiment as plain data; nothing of the report depends on its keys."""
    tree: dict[str, Any] = {"name": "toy", "seed": 0, "optim": {"lr": 1e-3, "weight_decay": 0.0}}
    tree["train"] = {"duration": "4 epochs", "fork": None, "until": None}
    return {**tree, "task": {"name": "toy", "encoder": "res18", "lidar": False}, **changes}


def trial_entry(directory: Path, number: int, **fields: Any) -> dict[str, Any]:
    """An entry of the ledger, as ``asdict(TrialRecord)`` gives it."""
    trial_id = f"t_{number:05d}"
    entry = {
        "number": number,
        "trial_id": trial_id,
        "values": {"optim.lr": 1e-3 * (number + 1)},
        "config_digest": "c",
        "run_dir": str(directory / "trials" / trial_id),
        "state": "done",
        "epoch": 4,
        "objective": 0.1 * (number + 1),
        "best_epoch": 4,
        "metrics": {"perf/goodput": 0.8},
        "protocol": "p1",
        "rungs": {},
        "best_checkpoint": None,
        "run_id": None,
        "seconds": 60.0,
        "restarts": 0,
        "reason": "",
        "verified": True,
        "started": None,
    }
    return {**entry, **fields}


def write_sweep(directory: Path, entries: list[dict[str, Any]] | None, **sweep: Any) -> Path:
    """``sweep.json`` and (unless ``entries`` is None) ``ledger.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    section = {"space": SPACE, "algorithm": "random", "scheduler": "asha", "objective": "val/iou", "mode": "max"}
    section |= {"num_trials": len(entries or []), **sweep}
    plan = {"name": directory.name, "experiment": experiment(), "sweep": section, "dataset": "/data/world"}
    (directory / "sweep.json").write_text(json.dumps({**plan, "tracking_uri": None, "code_root": None}))
    if entries is not None:
        (directory / "ledger.json").write_text(json.dumps({"mode": section["mode"], "trials": entries}))
    return directory


def write_trial(
    entry: dict[str, Any],
    curve: list[float],
    *,
    panels: int = 0,
    protocol: dict[str, Any] | None = None,
    error: str = "",
    provenance: dict[str, Any] | None = None,
) -> None:
    """The files of a trial: its log (10 steps per epoch), its newest checkpoint, its pictures."""
    run_dir = Path(entry["run_dir"])
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = []
    for epoch, value in enumerate(curve):
        step = 10 * (epoch + 1)
        lines.append({"step": step - 5, "epoch": epoch, "train/loss": 1.0, "train/epoch": epoch + 0.5})
        lines.append({"step": step, "epoch": epoch, "train/loss": 1.0, "train/epoch": epoch + 1.0})
        lines.append({"step": step, "epoch": epoch, "val/iou": value, "val/loss": 1 - value})
        lines.append({"step": step, "epoch": epoch, "perf/goodput": 0.6 + 0.02 * epoch})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = {
        "config": merged(entry["values"]),
        "protocols": {"val/iou": protocol or PROTOCOL, "val/loss": {"metric": "loss", "task": "x", "split": "val"}},
        "clock": {"totals": {"step": 0.7 * entry["seconds"], "data_wait": 4.0, "evaluation": 6.0}, "time": 0.0},
        "provenance": {"code": "abc", "dataset": "d1", **(provenance or {})},
    }
    checkpoint = run_dir / "checkpoints" / f"step-{10 * len(curve):08d}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "state.json").write_text(json.dumps(state))
    if error:
        (run_dir / "error.txt").write_text(error)
    for index in range(panels):
        (run_dir / "panels").mkdir(exist_ok=True)
        step = 10 * (1 + int(np.argmax(curve)))
        picture(entry["number"], index).save(run_dir / "panels" / f"step-{step:08d}-{index}.png")


def merged(values: dict[str, Any]) -> dict[str, Any]:
    tree = experiment()
    for key, value in values.items():
        node, (*path, leaf) = tree, key.split(".")
        for part in path:
            node[part] = dict(node.get(part) or {})
            node = node[part]
        node[leaf] = value
    return tree


def picture(number: int, index: int) -> Image.Image:
    """A picture that differs between trials: a ramp with as many bars as the trial's number."""
    pixels = np.zeros((90, 320, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(320) * 255 // 320
    pixels[..., 1 + index % 2] = (np.arange(90) * 255 // 90)[:, None]
    for bar in range(number % 12 + 1):
        pixels[20:70, 12 + 24 * bar : 22 + 24 * bar] = 255
    return Image.fromarray(pixels)


def showcase(
    directory: Path, configurations: int = 12, seeds: int = 2, epochs: int = 9, rungs: tuple[int, ...] = (1, 3)
) -> Path:
    """A sweep with everything in it: repeats, rungs, failures, a trial that was never a number, two protocols.

    Objectives are made up by a formula with noise; whatever learns from them finds ``optim.lr`` most important.
    """
    rng = np.random.default_rng(1)
    entries: list[dict[str, Any]] = []
    seen: dict[int, list[float]] = {rung: [] for rung in rungs}
    for _ in range(configurations):
        values = {
            "optim.lr": float(10 ** rng.uniform(-4, -2)),
            "optim.weight_decay": float(10 ** rng.uniform(-6, -2)),
            "task.encoder": str(rng.choice(["res18", "res50", "effb0"])),
            "task.lidar": bool(rng.integers(2)),
        }
        quality = 0.45 - 0.25 * abs(math.log10(values["optim.lr"]) + 2.8) + 0.05 * values["task.lidar"]
        for seed in range(seeds):
            own = {**values, "seed": seed} if seeds > 1 else values
            curve = [max(0.0, (quality + 0.015 * rng.normal()) * (1 - math.exp(-(e + 1) / 2.5))) for e in range(epochs)]
            entries.append(_raced(directory, len(entries), own, curve, seen, rng))
    last = len(entries)
    broken = "Traceback (most recent call last):\n  File <x>\nRuntimeError: CUDA out of memory <b>now</b>\n"
    lost = {"state": "failed", "objective": None, "epoch": 0, "best_epoch": None, "metrics": {}, "protocol": ""}
    entries.append(trial_entry(directory, last, **lost, reason="RuntimeError: CUDA out of memory", restarts=2))
    write_trial(entries[-1], [], error=broken)
    entries.append(trial_entry(directory, last + 1, objective=-math.inf, epoch=2, best_epoch=1))
    odd = trial_entry(directory, last + 2, objective=0.91, protocol="p2", values=dict(entries[0]["values"]))
    write_trial(odd, [0.8, 0.91], protocol={**PROTOCOL, "threshold": 0.3}, panels=2)
    return write_sweep(directory, [*entries, odd])


def _raced(
    directory: Path, number: int, values: dict[str, Any], curve: list[float], seen: dict[int, list[float]], rng: Any
) -> dict[str, Any]:
    """A trial that is stopped at a rung when it is in the lower half of what came there before."""
    reached: dict[str, float] = {}
    length, reason = len(curve), ""
    for rung, earlier in seen.items():
        value = curve[rung - 1]
        reached[str(rung)] = value
        behind = bool(earlier) and value < float(np.median(earlier))
        earlier.append(value)
        if behind:
            length, reason = rung, f"behind at epoch {rung}"
            break
    curve = curve[:length]
    best = int(np.argmax(curve))
    entry = trial_entry(
        directory,
        number,
        values=values,
        state="stopped" if reason else "done",
        reason=reason,
        epoch=length,
        objective=curve[best],
        best_epoch=best + 1,
        rungs=reached,
        seconds=float(12 * length * rng.uniform(0.9, 1.3) + 8),
        metrics={"val/iou_sample_mean": curve[best] + 0.01, "val/loss": 1 - curve[best], "perf/goodput": 0.7},
    )
    write_trial(entry, curve, panels=2)
    return entry


def population(directory: Path, members: int = 4, generations: int = 4) -> Path:
    """A population whose every generation's worst member goes on from the best one's checkpoint, with half its rate.

    Member 1 has failed in generation 1. Objectives are made up by a formula; the lower the rate, the better.
    """
    entries: list[dict[str, Any]] = []
    rates = [10 ** -(2 + 0.3 * member) for member in range(members)]
    donors: list[int | None] = [None] * members
    for generation in range(generations):
        ends = []
        for member in range(members):
            number = generation * members + member
            failed = (generation, member) == (1, 1)
            value = 0.1 * (generation + 1) - math.log10(rates[member]) / 20
            values: dict[str, Any] = {"optim.lr": rates[member], "task.encoder": "res18", "train.until": generation + 1}
            donor = donors[member]
            if donor is not None:
                values["train.fork.checkpoint"] = f"{directory}/trials/t_{donor:05d}/checkpoints/step"
            lost = {"state": "failed", "objective": None, "last_objective": None, "reason": "no memory"}
            measured = {"objective": value + 0.001, "last_objective": value}
            entries.append(
                trial_entry(
                    directory,
                    number,
                    values=values,
                    position=number,
                    epoch=generation + 1,
                    forked_from=None if donor is None else f"t_{donor:05d}",
                    **(lost if failed else measured),
                )
            )
            if not failed:
                write_trial(entries[-1], [value + 0.001, value], provenance={} if donor is None else {"fork": number})
            ends.append(-math.inf if failed else value)
        best, worst = int(np.argmax(ends)), int(np.argmin(ends))
        donors = [generation * members + (best if member == worst else member) for member in range(members)]
        rates = [rates[best] / 2 if member == worst else rates[member] for member in range(members)]
    space = {"optim.lr": {"loguniform": [1e-5, 1e-1]}, "task.encoder": {"choice": ["res18", "res50"]}}
    options = {"algorithm": "pbt", "scheduler": "none", "num_trials": members}
    return write_sweep(directory, entries, space=space, **options)


def levels(directory: Path) -> Path:
    """A sweep along ``data.train_fraction``: four configurations at the first level, two at the second, one at the
    last; one trial of the first was measured by another protocol, and what is cheapest has the highest numbers."""
    fractions = (0.25, 0.5, 1.0)
    plan = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 3), (2, 3)]  # level, configuration
    entries = []
    for number, (level, configuration) in enumerate(plan):
        values = {"optim.lr": 0.1 * (configuration + 1), "data.train_fraction": fractions[level]}
        objective = 0.9 - 0.2 * level + 0.01 * configuration
        odd = "p9" if (level, configuration) == (0, 0) else f"p{level}"
        entry = trial_entry(
            directory, number, values=values, fidelity=level, objective=objective, epoch=1, protocol=odd
        )
        write_trial(entry, [objective], protocol={**PROTOCOL, "threshold": 0.3 if odd == "p9" else 0.5})
        entries.append(entry)
    fidelity = {"key": "data.train_fraction", "values": list(fractions)}
    return write_sweep(directory, entries, fidelity=fidelity, num_trials=4, asha={"reduction": 2})
