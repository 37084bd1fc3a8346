"""Where an experiment's dataset is, and making it when it is not there yet."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sensorlab.config import digest
from sensorlab.data.dataset import MANIFEST, PreparedDataset
from sensorlab.errors import UserError
from sensorlab.experiment import DataConfig, PrepareConfig

_SYNTHETIC_IMAGE = (800, 450)


def locate_dataset(path: str, root: Path) -> Path:
    """Absolute path of ``data.path``: below the working directory if it is there, else below the output root.

    The working directory of a submitted job is thrown away, so what is made is made below the output root.
    """
    given = Path(path).expanduser()
    if given.is_absolute():
        return given
    here = Path.cwd() / given
    return here if (here / MANIFEST).is_file() else root / given


def ensure_dataset(config: DataConfig, root: Path, report: Callable[[str], None] = print) -> Path:
    """The prepared dataset of an experiment, made as ``data.prepare`` says if it does not exist. Call with Ray up.

    Raises:
        UserError: it does not exist and nothing says how to make it, or making it failed.
    """
    path = locate_dataset(config.path, root)
    if not (path / MANIFEST).is_file() and config.prepare is not None:
        _prepare(config.prepare, path, root, report)
    PreparedDataset.open(path)
    return path


def _prepare(prepare: PrepareConfig, path: Path, root: Path, report: Callable[[str], None]) -> None:
    from sensorlab.data.prepare import prepare_nuscenes

    report(f"the dataset {path} does not exist yet; preparing it from the source {prepare.source!r}")
    if prepare.source == "synthetic":
        dataroot = _write_world(prepare, root, report)
    elif prepare.dataroot is None:
        raise UserError("data.prepare.source is nuscenes, so data.prepare.dataroot must name the dataroot")
    else:
        dataroot = Path(prepare.dataroot).expanduser().absolute()
    prepare_nuscenes(
        dataroot,
        prepare.version,
        path,
        sweeps=prepare.sweeps,
        splits={"val": prepare.val_scenes} if prepare.val_scenes else None,
        image_height=prepare.image_height,
        report=report,
    )


def _write_world(prepare: PrepareConfig, root: Path, report: Callable[[str], None]) -> Path:
    """The embedded world of these arguments; written once, then found again."""
    from sensorlab.data.synthetic.writer import write_world

    arguments: dict[str, Any] = {
        "scenes": prepare.scenes,
        "keyframes": prepare.keyframes,
        "seed": prepare.seed,
        "sweeps": prepare.sweeps > 1,
        "version": prepare.version,
        "val_scenes": max(1, prepare.scenes // 4),
    }
    out = root / "roots" / f"world-{digest(arguments)}"
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    write_world(out, image_size=_SYNTHETIC_IMAGE, workers=cpus, progress=report, **arguments)
    return out
