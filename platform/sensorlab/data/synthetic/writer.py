"""Writes an embedded world: scenes in parallel, into a temporary folder that gets its name when all is there."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sensorlab.config import as_dict, validate
from sensorlab.data.synthetic import tables
from sensorlab.data.synthetic.arguments import WorldArguments
from sensorlab.data.synthetic.recorder import SceneRecorder
from sensorlab.data.synthetic.tables import Tables
from sensorlab.errors import UserError

GENERATOR = "sensorlab embedded world"
GENERATOR_VERSION = 1  # raised with every change that alters the files of a world
RECORD_NAME = "embedded-world.json"  # in the dataroot: what it was made from


@dataclass(frozen=True)
class WorldSummary:
    """What was written (or found already there)."""

    path: str
    version: str
    train_scenes: int
    val_scenes: int
    keyframes: int
    annotations: int
    images: int
    lidar_sweeps: int  # keyframes included
    radar_sweeps: int
    seconds: float  # 0 for a world that was there already
    reused: bool


def write_world(
    out: str | Path,
    *,
    scenes: int = 8,
    keyframes: int = 10,
    seed: int = 0,
    image_size: tuple[int, int] = (800, 450),
    sweeps: bool = True,
    version: str = "v1.0-mini",
    val_scenes: int = 2,
    lidar_rate: int = 10,
    lidar_azimuths: int = 720,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[str], None] = print,
) -> WorldSummary:
    """Write a nuScenes dataroot of generated scenes to ``out``. The files are a pure function of the arguments.

    The last ``val_scenes`` scenes are for validation; scene names end with ``-train`` or ``-val``. If ``out`` holds the
    same world already, nothing is written.

    Args:
        image_size: width, height in pixels; the field of view is always that of the nuScenes cameras.
        sweeps: write lidar (``lidar_rate`` = 10 or 20 Hz) and radar (13 Hz) sweeps between the keyframes (2 Hz).
        lidar_azimuths: columns of the 32-ring lidar.
        workers: processes; they are spawned, so a script needs the usual ``if __name__ == "__main__"`` guard for more
            than one. Their number does not change a byte.
        overwrite: replace an embedded world that was made from other arguments. Nothing else is ever replaced.
        progress: gets a line per finished scene.

    Raises:
        UserError: an argument makes no sense; ``out`` holds something else; the disk refuses.
    """
    arguments = validate(
        WorldArguments,
        {
            "scenes": scenes, "keyframes": keyframes, "seed": seed, "image_width": image_size[0],
            "image_height": image_size[1], "sweeps": sweeps, "version": version, "val_scenes": val_scenes,
            "lidar_rate": lidar_rate, "lidar_azimuths": lidar_azimuths,
        },
        "the embedded world",
    )  # fmt: skip
    if workers < 1:
        raise UserError(f"workers: at least 1 is needed (found {workers})")
    out = Path(out).absolute()
    try:
        existing = _existing_world(out, arguments, overwrite)
        if existing is not None:
            progress(f"{out} holds this world already: {existing.keyframes} keyframes, {existing.annotations} boxes")
            return existing
        return _write(out, arguments, workers, overwrite, progress)
    except OSError as error:
        raise UserError(f"cannot write the embedded world to {out}: {error.strerror or error}") from error


def _existing_world(out: Path, arguments: WorldArguments, overwrite: bool) -> WorldSummary | None:
    """The summary of the same world at ``out``; None if there is nothing that may not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    record = _read_record(out)
    if record is None:
        raise UserError(f"{out} exists and is no embedded world: choose another folder or remove it yourself")
    wanted = _identity(arguments)
    if all(record.get(key) == value for key, value in wanted.items()):
        return WorldSummary(path=str(out), seconds=0.0, reused=True, **record["summary"])
    if overwrite:
        return None
    raise UserError(
        f"{out} holds another embedded world ({_difference(record, wanted)}): "
        "choose another folder, or overwrite it (--overwrite)"
    )


def _read_record(out: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((out / RECORD_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("generator") == GENERATOR else None


def _identity(arguments: WorldArguments) -> dict[str, Any]:
    return {"generator": GENERATOR, "generator_version": GENERATOR_VERSION, "arguments": as_dict(arguments)}


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if found.get("generator_version") != wanted["generator_version"]:
        return f"generator version {found.get('generator_version')}, now {wanted['generator_version']}"
    there = found.get("arguments", {})
    changed = [
        f"{key} {there.get(key)}, not {value}" for key, value in wanted["arguments"].items() if there.get(key) != value
    ]
    return "; ".join(changed)


def _write(
    out: Path, arguments: WorldArguments, workers: int, overwrite: bool, progress: Callable[[str], None]
) -> WorldSummary:
    started = time.perf_counter()
    blocking = next((parent for parent in out.parents if parent.exists() and not parent.is_dir()), None)
    if blocking is not None:
        raise UserError(f"cannot write the embedded world to {out}: {blocking} is not a folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        parts: dict[int, Tables] = {}
        for index, part in _record_scenes(partial, arguments, workers):
            parts[index] = part
            progress(_progress_line(part["scene"][0]["name"], len(parts), arguments, time.perf_counter() - started))
        merged = tables.merge_tables([tables.shared_tables(), *(parts[index] for index in sorted(parts))])
        (partial / arguments.version).mkdir()
        for name, rows in merged.items():
            # One row per line: a diff of two worlds can be read.
            text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
            (partial / arguments.version / f"{name}.json").write_text(text, encoding="utf-8")
        summary = _summarise(arguments, merged)
        record = _identity(arguments) | {"summary": summary}
        (partial / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        # Another process may have written this very world meanwhile; somebody may be reading that one already.
        if _existing_world(out, arguments, overwrite) is None:
            _publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return WorldSummary(path=str(out), seconds=time.perf_counter() - started, reused=False, **summary)


def _record_scenes(root: Path, arguments: WorldArguments, workers: int) -> Iterator[tuple[int, Tables]]:
    """Record all scenes; yields them as they are finished."""
    workers = min(workers, arguments.scenes)
    if workers == 1:
        for index in range(arguments.scenes):
            yield record_scene(root, arguments, index)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        futures = [pool.submit(record_scene, root, arguments, index) for index in range(arguments.scenes)]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that was recording a scene died: too little memory for that many workers, or a script that "
            'starts processes without an `if __name__ == "__main__"` guard; use fewer workers'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def record_scene(root: Path, arguments: WorldArguments, index: int) -> tuple[int, Tables]:
    """Record one scene below ``root`` (also the task of a worker process); its index and its rows."""
    return index, SceneRecorder(root, arguments, index).record()


def _progress_line(name: str, done: int, arguments: WorldArguments, seconds: float) -> str:
    keyframes = done * arguments.keyframes
    left = seconds / done * (arguments.scenes - done)
    total = arguments.scenes * arguments.keyframes
    rate = keyframes / max(seconds, 1e-9)
    return f"{name} written: {keyframes}/{total} keyframes, {rate:.1f} keyframes/s, {left:.0f} s left"


def _summarise(arguments: WorldArguments, merged: Tables) -> dict[str, Any]:
    """The fields of a summary that belong to the world, not to this run."""
    files = [row["filename"].split("/")[1].split("_")[0] for row in merged["sample_data"]]
    return {
        "version": arguments.version,
        "train_scenes": arguments.scenes - arguments.val_scenes,
        "val_scenes": arguments.val_scenes,
        "keyframes": len(merged["sample"]),
        "annotations": len(merged["sample_annotation"]),
        "images": files.count("CAM"),
        "lidar_sweeps": files.count("LIDAR"),
        "radar_sweeps": files.count("RADAR"),
    }


def _publish(partial: Path, out: Path) -> None:
    """Give the finished folder its name; an embedded world that is there steps aside first."""
    if out.exists() and any(out.iterdir()):
        old = partial.with_name(partial.name + ".old")
        os.rename(out, old)
        os.rename(partial, out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(partial, out)
