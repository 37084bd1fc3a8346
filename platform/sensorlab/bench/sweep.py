"""What a sweep costs beyond its training: seconds per trial, and seconds from the command to the first step.

A real sweep (Ray, tracking store, engine, Ray Data) over a small BEV experiment runs as a program of its own, one trial
at a time, once with trials that train in their own process and once with trials of two workers. The engine accounts
for every second of a trial's loop. Of the time between the ends of two trials, steps, evaluations, checkpoints and
callbacks are training; all else is overhead: process start, imports, building model and streams, waiting for data,
opening and closing the run, scheduling. Trials after the first are counted; the first one's start-up shows in the time
to the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sensorlab.bench import _samples
from sensorlab.cluster.files import RESULT, read_json
from sensorlab.cluster.start import PACKAGE

NAME = "sweep"
BARS = {"one_worker": 3.0, "two_workers": 12.0}  # seconds per trial
FIRST_STEP_BAR = 20.0
_TRAINING = ("step", "evaluation", "checkpoint", "callback")
_PATIENCE_S = 1200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", help="prepared dataset; default: a small embedded world, made for the occasion")
    parser.add_argument("--trials", type=int, default=4, help="trials of each sweep, at least 2")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--no-groups", action="store_true", help="leave the sweep with two workers per trial out")
    parser.set_defaults(source_size=[320, 180], small=True, split="train", image_size=[96, 160])


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Figures of both sweeps, with the bars beside them."""
    before = os.getloadavg()[0]
    with _samples.dataset_path(args) as dataset, tempfile.TemporaryDirectory(prefix="sensorlab-bench-") as folder:
        sides = {"one_worker": _measure(args, dataset, Path(folder) / "one", 1)}
        if not args.no_groups:
            sides["two_workers"] = _measure(args, dataset, Path(folder) / "two", 2)
    for name, side in sides.items():
        side["bar_s"] = BARS[name]
    return {
        "bench": NAME,
        "trials": args.trials,
        "epochs": args.epochs,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average_before_and_after": [round(before, 1), round(os.getloadavg()[0], 1)],
        "first_step_bar_s": FIRST_STEP_BAR,
        **sides,
    }


def _measure(args: argparse.Namespace, dataset: Path, root: Path, workers: int) -> dict[str, Any]:
    started = time.time()
    command = [sys.executable, "-m", "sensorlab.bench.sweep", str(root), str(dataset)]
    command += [str(workers), str(args.trials), str(args.epochs)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the measured sweep failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return figures(root, started)


def figures(root: Path, started: float) -> dict[str, Any]:
    """Overheads from the files that the trials of one sweep left, in order of their ends."""
    found = sorted(root.glob(f"sweeps/*/trials/*/{RESULT}"), key=lambda path: path.stat().st_mtime)
    ends = [path.stat().st_mtime for path in found]
    times = [(read_json(path) or {})["time"] for path in found]
    inside = [sum(entry["seconds"][kind] for kind in _TRAINING) for entry in times]
    overheads = [ends[k] - ends[k - 1] - inside[k] for k in range(1, len(found))]
    return {
        "trials_done": len(found),
        "overhead_s_per_trial": round(statistics.median(overheads), 2),
        "overhead_s": [round(value, 2) for value in overheads],
        "training_s_per_trial": round(statistics.mean(inside), 2),
        "data_wait_s_per_trial": round(statistics.mean(entry["seconds"]["data_wait"] for entry in times), 2),
        "first_step_s": round(min(entry["first_step"] for entry in times) - started, 2),
    }


def main(argv: list[str]) -> int:
    """The measured program: ROOT DATASET WORKERS TRIALS EPOCHS."""
    from sensorlab.cluster.program import EngineProgram
    from sensorlab.cluster.start import connect, disconnect
    from sensorlab.cluster.sweep import SweepPlan, run_sweep, with_objective
    from sensorlab.cluster.sweep_config import load_sweep
    from sensorlab.experiment import experiment_from
    from sensorlab.runs.store import default_store_uri

    root, dataset = Path(argv[0]), argv[1]
    workers, trials, epochs = (int(text) for text in argv[2:])
    sweep = load_sweep(
        {
            "space": {"optim.lr": {"loguniform": [1e-4, 1e-3]}},
            "num_trials": trials,
            "max_concurrent": 1,
            "scheduler": "none",
        }
    )
    experiment = with_objective(experiment_from(_experiment(dataset, workers, epochs)), sweep)
    root.mkdir(parents=True)
    plan = SweepPlan("bench", root, experiment, sweep, dataset, default_store_uri(root))
    cluster = connect(num_cpus=2, dashboard=workers > 1)
    try:
        outcome = run_sweep(plan, cluster, EngineProgram())
    finally:
        disconnect()
    print(json.dumps(outcome.summary))
    return outcome.exit_code


def _experiment(dataset: str, workers: int, epochs: int) -> dict[str, Any]:
    task = {
        "name": "bev_segmentation",
        "grid": {"x": [-20, 20], "y": [-5, 5], "z": [-20, 20], "cells": [40, 2, 40]},
        "model": {"encoder": "res18", "latent_dim": 16, "neck_width": 32, "decoder_width": 16},
        "image": {"size": [96, 160]},
    }
    return {
        "name": "bench",
        "task": task,
        "data": {"path": dataset, "global_batch": 2},
        "train": {"duration": f"{epochs} epochs", "log_every": "1 step"},
        "eval": {"panels": 0},
        "resources": {"num_workers": workers, "cpus_per_worker": 0.75, "data_cpus": 0.25},
    }


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
