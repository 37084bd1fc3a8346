"""Where an experiment's dataset is, and making it when it is not there yet."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sensorlab.cluster.files import read_json
from sensorlab.config import canonical_json, digest
from sensorlab.data.dataset import MANIFEST, Manifest, PreparedDataset
from sensorlab.errors import UserError
from sensorlab.experiment import DataConfig, PrepareConfig

_SYNTHETIC_IMAGE = (800, 450)
_ROOTS, _WORLD = "roots", "world-"  # embedded worlds are OUTPUT_ROOT/roots/world-DIGEST


def locate_dataset(path: str, root: Path) -> Path:
    """Absolute path of ``data.path``: below the working directory if it is there, else below the output root.

    The working directory of a submitted job is thrown away, so what is made is made below the output root.
    """
    given = Path(path).expanduser()
    if given.is_absolute():
        return given
    here = Path.cwd() / given
    return here if (here / MANIFEST).is_file() else root / given


def ensure_dataset(
    config: DataConfig, root: Path, report: Callable[[str], None] = print, *, path: Path | None = None
) -> Path:
    """The prepared dataset of an experiment, made as ``data.prepare`` says if it does not exist. Call with Ray up.

    A dataset that is there already is used as it is. If it lies below the output root, where experiments make theirs,
    it must be the one that ``data.prepare`` describes; elsewhere it was prepared by hand, and ``data.path`` alone
    decides. A dataroot that has moved, or is gone, is no difference: its tables are what identifies it.

    Args:
        config: the experiment's ``data`` section.
        root: output root.
        report: takes progress lines.
        path: where the dataset is, when that is known already; default: where ``data.path`` leads.

    Raises:
        UserError: it does not exist and nothing says how to make it, making it failed, or it was made as another
            ``data.prepare`` said.
    """
    path = path or locate_dataset(config.path, root)
    if config.prepare is not None:
        if not (path / MANIFEST).is_file():
            _prepare(config.prepare, path, root, report)
        elif path.resolve().is_relative_to(root.resolve()):
            _refuse_difference(config.prepare, path)
    PreparedDataset.open(path)
    return path


def _refuse_difference(prepare: PrepareConfig, path: Path) -> None:
    manifest = PreparedDataset.open(path).manifest
    for key, (found, wanted) in _compared(prepare, manifest).items():
        if found != wanted:
            raise UserError(
                f"{path} was prepared with {key}={_text(found)}, but the experiment asks for {key}={_text(wanted)}: "
                f"delete that directory to have it prepared again, set data.path to another one, or restore {key}"
            )


def _compared(prepare: PrepareConfig, manifest: Manifest) -> dict[str, tuple[Any, Any]]:
    """What the dataset was made with and what is asked for, by the key that says it."""
    source, origin = manifest.source, Path(manifest.origin)
    world = _world_arguments(origin)
    pairs: dict[str, tuple[Any, Any]] = {
        "source": ("nuscenes" if world is None else "synthetic", prepare.source),
        "version": (source.get("version"), prepare.version),
        "sweeps": (source.get("sweeps"), prepare.sweeps),
        "image_height": (source.get("image_height"), prepare.image_height),
        "val_scenes": (source.get("given_splits", {}).get("val", []), sorted(prepare.val_scenes)),
    }
    if source.get("kind") != "nuscenes":
        pairs = {"source": (source.get("kind"), prepare.source)}
    elif prepare.source == "synthetic":
        name = _world_name(prepare)
        if world and origin.name != name:
            pairs |= {key: (world[key], getattr(prepare, key)) for key in ("scenes", "keyframes", "seed")}
        elif world is not None and origin.name != name:  # the world is gone; its name has the digest of its arguments
            pairs["{scenes,keyframes,seed}"] = (origin.name, name)
    elif prepare.dataroot is not None:
        dataroot = Path(prepare.dataroot).expanduser().resolve()
        if world is not None and dataroot == origin.resolve():
            del pairs["source"]  # an embedded world may be named as any other dataroot
        elif dataroot != origin and not _same_tables(dataroot, prepare.version, source.get("tables")):
            pairs["dataroot"] = (str(origin), str(dataroot))
    return {f"data.prepare.{key}": pair for key, pair in pairs.items()}


def _same_tables(dataroot: Path, version: str, tables: Any) -> bool:
    """Whether a dataroot holds these tables; one that is not there (any more) says nothing against it."""
    from sensorlab.data.sources.nuscenes_tables import TableReader

    return not (dataroot / version).is_dir() or TableReader(dataroot, version).fingerprint() == tables


def _world_arguments(origin: Path) -> dict[str, Any] | None:
    """Arguments of the embedded world at ``origin``; empty when it is gone, ``None`` when it never was one."""
    from sensorlab.data.synthetic.writer import RECORD_NAME

    record = read_json(origin / RECORD_NAME)
    if record is not None:
        return dict(record["arguments"])
    return {} if origin.parent.name == _ROOTS and origin.name.startswith(_WORLD) and not origin.exists() else None


def _text(value: Any) -> str:
    return canonical_json(value) if isinstance(value, list) else "null" if value is None else str(value)


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


def _arguments(prepare: PrepareConfig) -> dict[str, Any]:
    """What the embedded world of ``prepare`` is a function of."""
    return {
        "scenes": prepare.scenes,
        "keyframes": prepare.keyframes,
        "seed": prepare.seed,
        "sweeps": prepare.sweeps > 1,
        "version": prepare.version,
        "val_scenes": max(1, prepare.scenes // 4),
    }


def _world_name(prepare: PrepareConfig) -> str:
    return f"{_WORLD}{digest(_arguments(prepare))}"


def _write_world(prepare: PrepareConfig, root: Path, report: Callable[[str], None]) -> Path:
    """The embedded world of these arguments; written once, then found again."""
    from sensorlab.data.synthetic.writer import write_world

    out = root / _ROOTS / _world_name(prepare)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    write_world(out, image_size=_SYNTHETIC_IMAGE, workers=cpus, progress=report, **_arguments(prepare))
    return out
