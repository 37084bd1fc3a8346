"""``sensorlab selftest resume``: a run killed at random moments ends with the bytes of one that was never killed.

A child process trains a small network on data made in memory, through the same stream and engine as every experiment.
It is killed with SIGKILL, which no process can catch, and started again, until it has been killed as often as asked.
Weights, their running average, the optimiser's state and the log of the losses are then compared with those of an
uninterrupted run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from sensorlab.data.random_streams import keyed_generator
from sensorlab.engine import checkpoint
from sensorlab.errors import UserError

SILENCE_S = 120.0  # a child that says nothing for so long hangs
NUM_STEPS = 3 * 14  # of ``training.stripes_experiment``


@dataclass
class Attempt:
    """One child process, as its parent saw it; times in seconds on the clock of ``time.perf_counter``."""

    started_at: float
    first_step: int = -1  # the checkpoint that it went on from; 0: none
    step_at: dict[int, float] = field(default_factory=dict)  # step -> when it was done
    saved: int = 0  # step of the last complete checkpoint that it announced
    killed_at: float | None = None

    @property
    def last_step(self) -> int:
        return max(self.step_at, default=self.first_step)


@dataclass(frozen=True)
class Kill:
    """What one kill cost."""

    step: int  # optimiser steps done when the process died
    resumed_from: int  # step of the checkpoint that the next attempt went on from
    steps_repeated: int
    lost_beyond_checkpoint: int  # steps repeated although a complete checkpoint had them
    seconds_to_first_step: float  # from the kill to the first step of the next attempt, its start included
    seconds_to_new_step: float | None  # to the first step never done before; None: killed again before


def run_attempt(
    run_dir: Path, seed: int, kill_after_step: int | None = None, delay_s: float = 0.0, workers: int = 1
) -> Attempt:
    """Train in a fresh process; kill it ``delay_s`` after it has announced step ``kill_after_step`` or a later one.

    Several ``workers`` are a process each. All are killed, one after the other, beginning with any of them.

    Raises:
        UserError: a process failed by itself, or says nothing for two minutes; the message has its last lines.
    """
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryDirectory() as folder:
        attempt = Attempt(time.perf_counter())
        children = [_start(run_dir, seed, rank, workers, Path(folder) / "meeting", errors) for rank in range(workers)]
        try:
            for at, line in _lines(children[0]):
                _note(attempt, at, line)
                due = kill_after_step is not None and attempt.step_at and attempt.last_step >= kill_after_step
                if due and attempt.killed_at is None:
                    time.sleep(delay_s)
                    attempt.killed_at = time.perf_counter()
                    first = attempt.last_step % workers
                    for child in children[first:] + children[:first]:
                        child.kill()
            exit_codes = [child.wait(SILENCE_S) for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()
        if not any(exit_codes):
            attempt.killed_at = None  # it was done before the signal came
        elif attempt.killed_at is None:
            errors.seek(0)
            message = errors.read().decode(errors="replace")
            raise UserError(f"the training process failed with exit code {max(exit_codes)}:\n{message[-2000:]}")
    return attempt


def _start(
    run_dir: Path, seed: int, rank: int, workers: int, meeting: Path, errors: IO[bytes]
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sensorlab.selftest.training", str(run_dir), "--seed", str(seed)]
    command += ["--workers", str(workers), "--rank", str(rank), "--meeting", str(meeting)]
    output = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
    return subprocess.Popen(command, stdout=output, stderr=errors, text=True)


def _lines(child: subprocess.Popen[str]) -> Iterator[tuple[float, str]]:
    """(time, line) of the child's output until it ends. Raises ``UserError`` after two minutes of silence."""
    lines: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(child, lines), daemon=True).start()
    try:
        while (line := lines.get(timeout=SILENCE_S)) is not None:
            yield line
    except queue.Empty:
        raise UserError(f"the training process says nothing for {SILENCE_S:.0f} s") from None


def _read_lines(child: subprocess.Popen[str], lines: queue.SimpleQueue[tuple[float, str] | None]) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            lines.put((time.perf_counter(), line))
    lines.put(None)


def _note(attempt: Attempt, at: float, line: str) -> None:
    what, _, number = line.strip().partition(" ")
    if not number.isdigit():  # "finished", or a line that the kill tore
        return
    if what == "started":
        attempt.first_step = int(number)
    elif what == "step":
        attempt.step_at[int(number)] = at
    elif what == "saved":
        attempt.saved = int(number)


def kill_and_resume(run_dir: Path, seed: int, num_kills: int, workers: int = 1) -> list[Attempt]:
    """Attempts of one run, each killed at a random moment except the last, which ends it."""
    generator = keyed_generator("selftest", "kills", seed)
    steps = np.sort(generator.choice(np.arange(1, NUM_STEPS - 2), size=num_kills, replace=False))
    delays = generator.uniform(0.0, 0.02, size=num_kills)  # seconds: anywhere in the steps and saves that follow
    attempts = [
        run_attempt(run_dir, seed, step, delay, workers)
        for step, delay in zip(steps.tolist(), delays.tolist(), strict=True)
    ]
    return [*attempts, run_attempt(run_dir, seed, None, 0.0, workers)]


def cost_of_kills(attempts: list[Attempt]) -> list[Kill]:
    """The cost of each kill, from the attempt that it ended and the one that followed."""
    kills, done, saved = [], 0, 0
    for before, after in itertools.pairwise(attempts):
        done, saved = max(done, before.last_step), max(saved, before.saved)
        if before.killed_at is None or not after.step_at:
            continue
        new = [at for step, at in after.step_at.items() if step > done]
        kills.append(
            Kill(
                step=before.last_step,
                resumed_from=after.first_step,
                steps_repeated=before.last_step - after.first_step,
                lost_beyond_checkpoint=max(0, saved - after.first_step),
                seconds_to_first_step=min(after.step_at.values()) - before.killed_at,
                seconds_to_new_step=min(new) - before.killed_at if new else None,
            )
        )
    return kills


def result_digest(run_dir: Path) -> dict[str, str]:
    """SHA-256 of what a finished run leaves: its weights, average and optimiser; and of the log of its losses."""
    latest = checkpoint.CheckpointStore(run_dir / "checkpoints").latest()
    if latest is None:
        raise UserError(f"{run_dir} has no valid checkpoint")
    state = checkpoint.load(latest.path)
    lines = []
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        lines.append({name: value for name, value in values.items() if not name.startswith(("perf/", "system/"))})
    parts = {name: state[name] for name in ("model", "ema", "optimizer")} | {"log": lines}
    return {name: _sha256(part) for name, part in parts.items()}


def _sha256(tree: Any) -> str:
    sha256 = hashlib.sha256()

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                sha256.update(repr(key).encode())
                visit(item)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)
        elif isinstance(value, torch.Tensor):
            sha256.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha256.update(value.contiguous().numpy().tobytes())
        else:
            sha256.update(repr(value).encode())

    visit(tree)
    return sha256.hexdigest()


def report(num_kills: int, seed: int, workers: int = 1) -> bool:
    """Run the test and print its findings; whether the killed run equals the straight one."""
    if not 1 <= num_kills <= NUM_STEPS // 2:
        raise UserError(f"--kills is between 1 and {NUM_STEPS // 2}, got {num_kills}")
    with tempfile.TemporaryDirectory(prefix="sensorlab-selftest-") as folder:
        straight, killed = Path(folder) / "straight", Path(folder) / "killed"
        on = f" on {workers} workers" if workers > 1 else ""
        print(f"a run of {NUM_STEPS} steps{on}, never interrupted ...", flush=True)
        run_attempt(straight, seed, None, 0.0, workers)
        print(f"the same run, killed {num_kills} times ...", flush=True)
        kills = cost_of_kills(kill_and_resume(killed, seed, num_kills, workers))
        for number, kill in enumerate(kills, 1):
            print(_line(number, kill), flush=True)
        expected, found = result_digest(straight), result_digest(killed)
    different = [name for name in expected if expected[name] != found[name]]
    for name in expected:
        print(f"{name:9} {expected[name][:16]}  {found[name][:16]}  {'DIFFERS' if name in different else 'equal'}")
    lost = sum(kill.lost_beyond_checkpoint for kill in kills)
    if len(kills) < num_kills:
        print(f"only {len(kills)} of {num_kills} kills came before the end of the run")
    passed = not different and lost == 0 and len(kills) == num_kills
    print(f"{'passed' if passed else 'FAILED'}: {len(kills)} kills, {lost} steps repeated beyond the last checkpoint")
    return passed


def _line(number: int, kill: Kill) -> str:
    new = "killed again before a new step" if kill.seconds_to_new_step is None else f"{kill.seconds_to_new_step:.1f} s"
    return (
        f"kill {number}: after step {kill.step}, resumed from step {kill.resumed_from}; to the first step "
        f"{kill.seconds_to_first_step:.1f} s, to the first new step {new}; {kill.steps_repeated} steps repeated"
    )
