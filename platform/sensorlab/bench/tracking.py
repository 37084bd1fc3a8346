"""Recording 20 metrics per step: cost on the step path, and eight runs at once on one SQLite store.

Part one runs the same steps three times in one process: writing to the store directly from the step (one ``log_batch``
per step, and one ``log_metric`` per value), and through :class:`sensorlab.runs.recorder.RunRecorder`. The recorder's
thread shares the interpreter with training, so two more figures belong to it: the processor time that its thread uses
per step, and whole steps of a fixed computation with and without a recorder (on a busy machine the latter is noisy).

Part two starts one process per run, all on one store. Rows in the store are counted afterwards. The direct side runs
fewer steps (it is slow); compare rows per second.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sensorlab.runs.client import open_client
from sensorlab.runs.recorder import RunRecorder
from sensorlab.runs.store import Store, open_store

NAME = "tracking"
METRICS_PER_STEP = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of the published figures."""
    parser.add_argument("--runs", type=int, default=8, help="concurrent runs")
    parser.add_argument("--steps", type=int, default=1000, help="steps per run")
    parser.add_argument("--direct-steps", type=int, default=25, help="steps per run of the direct side")
    parser.add_argument("--small", action="store_true", help="2 runs of 50 steps: a check that it works, no figures")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All figures; times in microseconds per step where the name says so, else seconds."""
    runs, steps, direct_steps = (2, 50, 5) if args.small else (args.runs, args.steps, args.direct_steps)
    with tempfile.TemporaryDirectory(prefix="sensorlab-bench-") as folder:
        store = open_store(f"sqlite:///{folder}/mlruns.db", "bench")
        return {
            "metrics_per_step": METRICS_PER_STEP,
            "step_path": _step_path(store, Path(folder), steps, direct_steps),
            "concurrent": {
                "runs": runs,
                "direct_log_batch": _concurrent(store, Path(folder), runs, direct_steps, _direct_run),
                "recorder": _concurrent(store, Path(folder), runs, steps, _recorded_run),
            },
        }


def _metrics(step: int) -> dict[str, float]:
    return {f"train/metric_{index:02d}": step + index / 100 for index in range(METRICS_PER_STEP)}


def _new_run(store: Store) -> str:
    return str(open_client(store.uri).create_run(store.experiment_id).info.run_id)


# ---------------------------------------------------------------------------------------------- one process


def _step_path(store: Store, folder: Path, steps: int, direct_steps: int) -> dict[str, Any]:
    recorder = RunRecorder(store.uri, _new_run(store), folder / "spool")
    recorder.last_logged_steps()  # connected: imports are not part of the cost per step
    background = time.process_time() - time.thread_time()
    recorded = _time_calls(steps, recorder.log, pause_s=0.002)
    delivered = recorder.close("FINISHED", deadline_s=120)
    background = time.process_time() - time.thread_time() - background
    direct_batch = _time_calls(direct_steps, _log_batch(store, _new_run(store)))
    direct_single = _time_calls(max(2, direct_steps // 5), _log_metric(store, _new_run(store)))
    return {
        "recorder_us": recorded,
        "recorder_background_cpu_us": round(background / steps * 1e6, 1),
        "direct_log_batch_us": direct_batch,
        "direct_log_metric_us": direct_single,
        "recorder_delivered": delivered,
        "direct_log_batch_over_recorder": round(direct_batch["mean"] / recorded["mean"], 1),
        "whole_step": _whole_steps(store, folder, min(steps, 300)),
    }


def _time_calls(steps: int, call: Callable[[dict[str, float], int], None], pause_s: float = 0.0) -> dict[str, float]:
    """Mean, median, 99th percentile and maximum of the calls, in microseconds. ``pause_s`` stands for the step."""
    times = []
    for step in range(steps):
        metrics = _metrics(step)
        start = time.perf_counter()
        call(metrics, step)
        times.append((time.perf_counter() - start) * 1e6)
        time.sleep(pause_s)
    ordered = sorted(times)
    return {
        "mean": round(statistics.fmean(times), 2),
        "median": round(statistics.median(times), 2),
        "p99": round(ordered[int(0.99 * (len(ordered) - 1))], 2),
        "max": round(ordered[-1], 2),
    }


def _whole_steps(store: Store, folder: Path, steps: int) -> dict[str, float]:
    """Microseconds per step of a fixed computation, alone and recorded; blocks alternate, so drift hits both."""
    recorder = RunRecorder(store.uri, _new_run(store), folder / "spool")
    recorder.last_logged_steps()
    block = max(1, steps // 10)
    alone: list[float] = []
    recorded: list[float] = []
    for start in range(0, steps, block):
        alone.append(_computation(block, None, start))
        recorded.append(_computation(block, recorder, start))
        recorder.flush(30.0)  # its thread is idle again in the next block that runs alone
    recorder.close("FINISHED")
    before, after = statistics.median(alone), statistics.median(recorded)
    return {"alone_us": round(before, 1), "recorded_us": round(after, 1), "added_us": round(after - before, 1)}


def _computation(steps: int, recorder: RunRecorder | None, first_step: int) -> float:
    """Microseconds per step of a step that computes in torch (without the interpreter lock) and in Python."""
    import torch

    matrix = torch.full((256, 256), 0.01)
    start = time.perf_counter()
    for step in range(first_step, first_step + steps):
        metrics = _metrics(step)
        for _ in range(4):
            matrix = (matrix @ matrix).clamp_(-1, 1)
        sum(index * index for index in range(20_000))
        if recorder is not None:
            recorder.log(metrics, step)
    return (time.perf_counter() - start) / steps * 1e6


# ---------------------------------------------------------------------------------------------- many processes


def _concurrent(
    store: Store, folder: Path, runs: int, steps: int, target: Callable[[Store, str, Path, int, Any, Any], None]
) -> dict[str, Any]:
    """Run ``target`` in one process per run, all starting together, and count what arrived."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(runs + 1), context.Queue()
    run_ids = [_new_run(store) for _ in range(runs)]
    processes = [
        context.Process(target=target, args=(store, run_id, folder / "spool", steps, barrier, results))
        for run_id in run_ids
    ]
    for process in processes:
        process.start()
    barrier.wait(timeout=120)
    start = time.perf_counter()
    loops = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join(timeout=600)
    wall = time.perf_counter() - start
    rows = _count_rows(store, run_ids)
    return {
        "steps": steps,
        "wall_s": round(wall, 2),
        "slowest_loop_s": round(max(loops), 3),  # how long the training threads were busy with recording
        "rows": rows,
        "rows_lost": runs * steps * METRICS_PER_STEP - rows,
        "rows_per_s": round(rows / wall, 1),
    }


def _count_rows(store: Store, run_ids: list[str]) -> int:
    marks = ",".join("?" * len(run_ids))
    with sqlite3.connect(store.uri.removeprefix("sqlite:///")) as database:
        return int(database.execute(f"SELECT count(*) FROM metrics WHERE run_uuid IN ({marks})", run_ids).fetchone()[0])


def _direct_run(store: Store, run_id: str, spool: Path, steps: int, barrier: Any, results: Any) -> None:
    call = _log_batch(store, run_id)
    open_client(store.uri).get_run(run_id)
    barrier.wait(timeout=120)
    start = time.perf_counter()
    for step in range(steps):
        call(_metrics(step), step)
    results.put(time.perf_counter() - start)


def _recorded_run(store: Store, run_id: str, spool: Path, steps: int, barrier: Any, results: Any) -> None:
    recorder = RunRecorder(store.uri, run_id, spool)
    recorder.last_logged_steps(60.0)
    barrier.wait(timeout=120)
    start = time.perf_counter()
    for step in range(steps):
        recorder.log(_metrics(step), step)
    results.put(time.perf_counter() - start)
    recorder.close("FINISHED", deadline_s=300)


def _log_batch(store: Store, run_id: str) -> Callable[[dict[str, float], int], None]:
    from mlflow.entities import Metric

    client = open_client(store.uri)

    def call(metrics: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        points = [Metric(name, value, now, step) for name, value in metrics.items()]
        client.log_batch(run_id, metrics=points, synchronous=True)

    return call


def _log_metric(store: Store, run_id: str) -> Callable[[dict[str, float], int], None]:
    client = open_client(store.uri)

    def call(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            client.log_metric(run_id, name, value, step=step, synchronous=True)

    return call
