"""Seconds from SIGKILL to the first new step, and steps repeated.

A small training runs in a fresh process, is killed, and is started again, so the time contains what a real restart
contains: the interpreter, the imports, finding and verifying the checkpoint, restoring, the first batch and the first
step. The time beside it is that of the imports of the engine alone, in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sensorlab.selftest.resume import cost_of_kills, kill_and_resume

NAME = "resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="one kill: a check that it works")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and steps of each kill, their medians and maxima."""
    with tempfile.TemporaryDirectory(prefix="sensorlab-bench-") as folder:
        kills = cost_of_kills(kill_and_resume(Path(folder), args.seed, 1 if args.small else args.kills))
    first = [kill.seconds_to_first_step for kill in kills]
    new = [kill.seconds_to_new_step for kill in kills if kill.seconds_to_new_step is not None]
    return {
        "bench": NAME,
        "kills": len(kills),
        "seconds_to_first_step": _summary(first),
        "seconds_to_new_step": _summary(new),
        "steps_repeated": [kill.steps_repeated for kill in kills],
        "steps_repeated_beyond_checkpoint": sum(kill.lost_beyond_checkpoint for kill in kills),
        "seconds_of_imports_alone": _import_seconds(),
        "bar": {"seconds_to_new_step": "<= 10", "steps_repeated_beyond_checkpoint": 0},
    }


def _summary(seconds: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds), 2), "max": round(max(seconds), 2)} if seconds else {}


def _import_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import sensorlab.selftest.training"], check=True)
    return round(time.perf_counter() - start, 2)
