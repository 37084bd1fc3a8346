"""Trainings in processes of their own, alone or two together, killed with SIGKILL at chosen places.

The faults are injected here, from outside: a function of the product is replaced, in the child alone, by one that
kills the process before, in the middle of, or after a chosen call.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from exact_runs import Witness, train

from sensorlab.engine import checkpoint, fit
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.ema import ExponentialAverage
from sensorlab.engine.workers import WorkerGroup
from sensorlab.experiment import ExperimentConfig
from toy_images import ClassAccuracy, ToyImageTask

# A server that has imported torch (and what its optimisers import late) forks the children: real processes to kill,
# without the seconds of an import.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pytest",
        "pandas",
        "torch._dynamo",
        "sensorlab.engine.fit",
        "sensorlab.data.local_stream",
        "sensorlab.data.sampling",
    ]
)

KILLED = -signal.SIGKILL


def in_child(config: ExperimentConfig, run_dir: Path, fault: str | None = None, call: int = 0) -> int:
    """Train in a child, killed by call number ``call`` (from 1) of ``fault``; its exit code."""
    process = CONTEXT.Process(target=_child, args=(config, run_dir, fault, call))
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


def _child(config: ExperimentConfig, run_dir: Path, fault: str | None, call: int) -> None:
    torch.set_num_threads(1)
    if fault == "file operation":
        _kill_at_file_operation(run_dir, call)
    elif fault is not None:
        FAULTS[fault](call)
    train(config, run_dir, Witness())


def in_children(
    config: ExperimentConfig,
    run_dir: Path,
    fault: str | None = None,
    call: int = 0,
    *,
    ranks: Collection[int] = (0, 1),
    workers: int = 2,
) -> list[int]:
    """Train on two ``workers`` or more, of which ``ranks`` are killed as in :func:`in_child`; their exit codes.

    The group ends as under any launcher: when a worker dies, the others are killed too, wherever they are.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    meeting = run_dir.with_name(f"{run_dir.name}-meeting")
    meeting.unlink(missing_ok=True)
    faults = [fault if rank in ranks else None for rank in range(workers)]
    processes = [
        CONTEXT.Process(target=_worker, args=(config, run_dir, meeting, WorkerGroup(rank, workers), fault, call))
        for rank, fault in enumerate(faults)
    ]
    for process in processes:
        process.start()
    running = {process.sentinel: process for process in processes}
    while running:
        ended = multiprocessing.connection.wait(list(running), timeout=60)
        assert ended, "the workers hang"
        for sentinel in ended:
            process = running.pop(sentinel)
            process.join()
            if process.exitcode:
                for other in running.values():
                    other.kill()
    return [process.exitcode or 0 for process in processes]


def _worker(
    config: ExperimentConfig, run_dir: Path, meeting: Path, workers: WorkerGroup, fault: str | None, call: int
) -> None:
    torch.set_num_threads(1)
    if fault is not None:
        FAULTS[fault](call)
    size = workers.world_size
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=workers.rank, world_size=size)
    train(config, run_dir, Witness(), workers=workers)
    dist.destroy_process_group()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ------------------------------------------------------------------------------------------ faults at named places


def _wrap(owner: Any, name: str, fault: Callable[..., None], call: int, after: bool = False, only=None) -> None:
    """Replace ``owner.name``: call number ``call`` (of those that ``only`` accepts) runs ``fault(*args)``."""
    original, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += only is None or only(*args)
        due = calls == call and (only is None or only(*args))
        if due and not after:
            fault(*args)
        result = original(*args, **kwargs)
        if due and after:
            fault(*args)
        return result

    setattr(owner, name, wrapped)


def _before(owner: Any, name: str, only=None) -> Callable[[int], None]:
    return lambda call: _wrap(owner, name, lambda *_: die(), call, only=only)


def _after(owner: Any, name: str, only=None) -> Callable[[int], None]:
    return lambda call: _wrap(owner, name, lambda *_: die(), call, after=True, only=only)


def _tear_weights(call: int) -> None:
    def tear(tensors, path):
        os.truncate(path, os.path.getsize(path) // 2)
        die()

    _wrap(checkpoint, "save_file", tear, call, after=True)


def _tear_text(name: str) -> Callable[[int], None]:
    def tear(path, text, *_):
        path.write_bytes(text.encode()[: len(text) // 2])
        die()

    return lambda call: _wrap(Path, "write_text", tear, call, only=lambda path, *_: path.name == name)


def _tear_log(call: int) -> None:
    def tear(log, training, metrics, step):
        with (training.run_dir / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps({"step": step, **metrics})[:20])
        die()

    _wrap(JsonLog, "on_metrics", tear, call)


def _to_checkpoint(source, target) -> bool:
    return Path(target).name.startswith("step-")


def _is_checkpoint(path, *_) -> bool:
    return "step-" in Path(path).name and Path(path).is_dir()


FAULTS: dict[str, Callable[[int], None]] = {
    "before the forward pass": _before(ToyImageTask, "forward"),
    "before the optimiser step": _before(torch.optim.AdamW, "step"),
    "between optimiser step and average": _before(ExponentialAverage, "update"),
    "between average and cursor": _after(ExponentialAverage, "update"),
    "after a step, before its record": _after(fit, "train_step"),
    "in evaluation": _before(ClassAccuracy, "update"),
    "between evaluation and log": _after(fit, "evaluate"),
    "in a line of the log": _tear_log,
    "after a line of the log": _after(JsonLog, "on_metrics"),
    "before a checkpoint": _before(checkpoint, "save"),
    "in a tensor file": _tear_weights,
    "between tensor files": _before(checkpoint, "save_file"),
    "in state.json": _tear_text("state.json"),
    "before the manifest": _before(Path, "write_text", only=lambda path, *_: path.name == "MANIFEST.json"),
    "in the manifest": _tear_text("MANIFEST.json"),
    "before the rename": _before(os, "replace", only=_to_checkpoint),
    "after the rename": _after(os, "replace", only=_to_checkpoint),
    "after the removal of old ones": _after(checkpoint.CheckpointStore, "save"),
    "after the checkpoint was reported": _after(fit, "_checkpoint"),
}


# --------------------------------------------------------------------------------- faults at every file operation


def _kill_at_file_operation(run_dir: Path, call: int) -> None:
    """Die just before operation number ``call`` of this process on a file of the run; writes nothing if 0.

    Python announces each operation (open, rename, remove, truncate, ...) to audit hooks before it is done.
    """
    prefix, calls = str(run_dir), 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal calls
        if event.startswith(("open", "os.", "shutil.")) and any(str(arg).startswith(prefix) for arg in args[:2]):
            calls += 1
            if calls == call:
                die()

    sys.addaudithook(hook)
