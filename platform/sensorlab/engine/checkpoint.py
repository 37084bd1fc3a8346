"""Checkpoints that are complete, verified and never torn.

A checkpoint is a directory ``step-00000120/``:

    <section>.safetensors   the tensors of one section of the state (model, optimizer, ema, ...)
    state.json              everything else; a tensor is the reference {"$tensor": [section, key]}
    MANIFEST.json           step, metrics, bytes + SHA-256 of the files above, and the digest of all this; written last

It is written under a temporary name, fsynced and renamed, so a directory with a manifest is whole unless something
altered it afterwards, and then its digests tell. No pickle is written or read. A process may be killed at any point;
what it leaves beside the checkpoints is dealt with by the next attempt (:meth:`CheckpointStore.recover`):

    .tmp-*                  half written or half removed
    .old-step-00000120/     whole; was being replaced by a later checkpoint of the same step

One that was refused when an attempt began is kept for inspection (:meth:`CheckpointStore.set_aside`):

    .refused-step-00000120/
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sensorlab.errors import UserError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 4  # raised whenever what a checkpoint holds, or means, changes
_PREFIX = "step-"
_GARBAGE = ".tmp-"
_REPLACED = ".old-"
_REFUSED = ".refused-"
_MANIFEST = "MANIFEST.json"
_STATE = "state.json"


class CheckpointError(Exception):
    """A checkpoint directory that cannot be trusted; the message names it and the fault."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What the manifest of a checkpoint says."""

    path: Path
    step: int
    metrics: dict[str, float]
    permanent: bool = False  # kept for good
    seal: str = ""  # digest of the manifest, and with it of everything in the checkpoint


def save(
    path: Path, state: Mapping[str, Any], *, step: int, metrics: Mapping[str, float], permanent: bool = False
) -> None:
    """Write ``state`` (nested dicts and lists of tensors and plain data) as the checkpoint directory ``path``.

    Raises:
        UserError: the disk is full or the directory cannot be written; nothing named ``path`` is left behind.
    """
    temporary = path.with_name(f"{_GARBAGE}{path.name}-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        tree = {name: _split(value, name, "", tensors) for name, value in state.items()}
        for section, named in tensors.items():
            save_file(named, temporary / f"{section}.safetensors")
        (temporary / _STATE).write_text(json.dumps(tree), encoding="utf-8")
        files = {file.name: _describe(file) for file in sorted(temporary.iterdir())}
        manifest: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "step": step,
            "metrics": dict(metrics),
            "permanent": permanent,
            "files": files,
        }
        manifest["sha256"] = _seal(manifest)
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for file in temporary.iterdir():
            _fsync(file)
        _fsync(temporary)
        _give_name(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the checkpoint {path}: {error}; free space or choose another output_dir"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _give_name(temporary: Path, path: Path) -> None:
    """Rename a complete checkpoint; one that has the name already exists in full until then."""
    replaced = path.with_name(f"{_REPLACED}{path.name}")
    if path.exists():
        os.replace(path, replaced)
    os.replace(temporary, path)
    _fsync(path.parent)
    if replaced.exists():
        _remove(replaced)


def _remove(path: Path) -> None:
    """Remove a directory; at no point does a part of it look like a checkpoint."""
    garbage = path.with_name(f"{_GARBAGE}removed-{path.name}")
    shutil.rmtree(garbage, ignore_errors=True)
    os.replace(path, garbage)
    shutil.rmtree(garbage, ignore_errors=True)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The verified state of a checkpoint.

    Raises:
        CheckpointError: missing, torn, altered or foreign.
    """
    verify(path)
    try:
        tensors = {file.stem: load_file(file, device=str(device)) for file in sorted(path.glob("*.safetensors"))}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path}: a file cannot be read as safetensors ({error})") from error
    try:
        tree = json.loads((path / _STATE).read_text(encoding="utf-8"))
        return {name: _join(value, tensors) for name, value in tree.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path}: {_STATE} is not a state ({error})") from error


def load_plain(path: Path) -> dict[str, Any]:
    """What a checkpoint holds besides tensors, which are references here; unverified.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: {_STATE} cannot be read ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path}: {_STATE} is not a state")
    return state


def read_info(path: Path) -> CheckpointInfo:
    """The manifest alone, unverified. Raises ``CheckpointError`` if it is missing or unreadable."""
    return _info(path, _manifest(path))


def verify(path: Path) -> CheckpointInfo:
    """Check that every file is there with its size and digest.

    Raises:
        CheckpointError: it is not so, or the disk does not let us know.
    """
    manifest = _manifest(path)
    try:
        _check_files(path, manifest["files"])
    except OSError as error:  # a directory in the place of a file, a bad sector, no permission, removed meanwhile
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error})") from error
    return _info(path, manifest)


def _check_files(path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    found = {file.name for file in path.iterdir()} - {_MANIFEST}
    if found != set(files):
        odd = sorted(found ^ set(files))
        raise CheckpointError(f"checkpoint {path}: files missing or foreign: {', '.join(odd)}")
    for name, expected in files.items():
        actual = _describe(path / name)
        if actual["bytes"] != expected["bytes"]:
            raise CheckpointError(
                f"checkpoint {path}: {name} has {actual['bytes']} bytes, the manifest says {expected['bytes']}"
            )
        if actual["sha256"] != expected["sha256"]:
            raise CheckpointError(f"checkpoint {path}: the content of {name} was altered (SHA-256 differs)")


def _info(path: Path, manifest: Mapping[str, Any]) -> CheckpointInfo:
    return CheckpointInfo(path, manifest["step"], manifest["metrics"], manifest["permanent"], _seal(manifest))


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {path}: format {manifest['format']}, this version reads {FORMAT_VERSION}"
            )
        if manifest.pop("sha256") != _seal(manifest):
            raise CheckpointError(f"checkpoint {path}: the content of {_MANIFEST} was altered (SHA-256 differs)")
        number = path.name.removeprefix(_PREFIX)
        if number != path.name and not (number.isdigit() and int(number) == manifest["step"]):
            raise CheckpointError(f"checkpoint {path}: foreign, it holds step {manifest['step']}")
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: no readable {_MANIFEST} ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: {_MANIFEST} is not a manifest ({error})") from error
    return manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    """Digest of a manifest without its digest; floats survive JSON exactly, so writer and reader agree."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _describe(file: Path) -> dict[str, Any]:
    sha256 = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
    return {"bytes": file.stat().st_size, "sha256": sha256.hexdigest()}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _split(value: Any, section: str, key: str, tensors: dict[str, dict[str, torch.Tensor]]) -> Any:
    """Replace the tensors in a tree by references; dict keys that are integers are marked to survive JSON."""
    if isinstance(value, torch.Tensor):
        if key in tensors.setdefault(section, {}):
            raise ValueError(f"checkpoint state: two tensors of {section!r} would both be called {key!r}")
        tensors[section][key] = value.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": [section, key]}
    if isinstance(value, Mapping):
        entries = [
            [name, _split(item, section, f"{key}.{name}" if key else str(name), tensors)]
            for name, item in value.items()
        ]
        return dict(entries) if all(isinstance(name, str) for name in value) else {"$items": entries}
    if isinstance(value, list | tuple):
        items = [_split(item, section, f"{key}.{i}" if key else str(i), tensors) for i, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"checkpoint state {section}.{key}: {type(value).__name__} is neither a tensor nor plain data")


def _join(value: Any, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> Any:
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$tensor"}:
        section, key = value["$tensor"]
        return tensors[section][key]
    if value.keys() == {"$tuple"}:
        return tuple(_join(item, tensors) for item in value["$tuple"])
    if value.keys() == {"$items"}:
        return {name: _join(item, tensors) for name, item in value["$items"]}
    return {name: _join(item, tensors) for name, item in value.items()}


class CheckpointStore:
    """The checkpoints of one run: ``root/step-*``; keeps the latest K, the best by a metric and the permanent ones."""

    def __init__(
        self, root: Path, *, keep_latest: int = 2, best_metric: str | None = None, best_mode: str = "max"
    ) -> None:
        self.root = root
        self.keep_latest = keep_latest
        self.best_metric = best_metric
        self.best_mode = best_mode

    def recover(self) -> None:
        """Deal with what a killed attempt left; the process that writes calls it before anything else.

        A checkpoint that was to be replaced gets its name back if its successor never got it; what is half written or
        half removed goes.
        """
        for replaced in self.root.glob(f"{_REPLACED}*"):
            path = self.root / replaced.name.removeprefix(_REPLACED)
            if not path.exists():
                os.replace(replaced, path)
        for garbage in [*self.root.glob(f"{_REPLACED}*"), *self.root.glob(f"{_GARBAGE}*")]:
            shutil.rmtree(garbage, ignore_errors=True)

    def set_aside(self, newer_than: CheckpointInfo | None) -> None:
        """Take away what :meth:`latest` refused: checkpoints of later steps than the one that training goes on from.

        Their manifests may be whole, and would rank them before all that the attempt saves, so that retention would
        remove what can be restored in favour of what cannot. They are kept for inspection, each under its name with
        ``.refused-`` before it, and neither counted nor chosen again. For the process that writes.

        Args:
            newer_than: what ``latest`` returned; ``None``: no checkpoint is valid, all are set aside.
        """
        restored = -1 if newer_than is None else newer_than.step
        for path in sorted(self.root.glob(f"{_PREFIX}*")):
            number = path.name.removeprefix(_PREFIX)
            if not number.isdigit() or int(number) <= restored:
                continue
            refused = path.with_name(f"{_REFUSED}{path.name}")
            if refused.exists():  # of an earlier attempt
                _remove(refused)
            os.replace(path, refused)
            logger.warning("checkpoint %s was refused and is kept as %s for inspection", path, refused.name)

    def save(
        self, state: Mapping[str, Any], *, step: int, metrics: Mapping[str, float], permanent: bool = False
    ) -> Path:
        """Write the checkpoint of ``step``, then apply the retention.

        A permanent one is never removed; one that is saved again, at the end of its epoch for example, stays permanent.
        """
        path = self.root / f"{_PREFIX}{step:08d}"
        permanent = permanent or any(info.path == path and info.permanent for info in self.all())
        save(path, state, step=step, metrics=metrics, permanent=permanent)
        self.retain()
        return path

    def all(self) -> list[CheckpointInfo]:
        """Checkpoints with a readable manifest, oldest first."""
        infos = []
        for path in sorted(self.root.glob(f"{_PREFIX}*")):
            try:
                infos.append(read_info(path))
            except CheckpointError as error:
                logger.warning("%s", error)
        return infos

    def latest(self) -> CheckpointInfo | None:
        """The newest checkpoint that passes verification; a refused one is named in the log.

        One that was being replaced when its process was killed counts, so that a reader, which must not ``recover``,
        finds what the next attempt will find.
        """
        replaced = [
            path
            for path in self.root.glob(f"{_REPLACED}{_PREFIX}*")
            if not (self.root / path.name.removeprefix(_REPLACED)).exists()
        ]
        found = [*self.root.glob(f"{_PREFIX}*"), *replaced]
        return _first_valid(sorted(found, key=lambda path: path.name.removeprefix(_REPLACED), reverse=True))

    def best(self) -> CheckpointInfo | None:
        """The checkpoint with the best value of the metric among those that pass verification, or None.

        Reads the whole checkpoint. Of equal ones the oldest is the best.
        """
        metric = self.best_metric
        if metric is None:
            return None
        scored = [info for info in self.all() if not math.isnan(info.metrics.get(metric, math.nan))]
        scored.sort(key=lambda info: info.metrics[metric], reverse=self.best_mode == "max")
        return _first_valid(info.path for info in scored)

    def retain(self) -> None:
        """Remove what is not among the latest K, best or permanent; ``save`` does it, unless the process is killed."""
        infos = self.all()
        keep = {info.path for info in infos[-self.keep_latest :]} | {info.path for info in infos if info.permanent}
        best = self.best()
        if best is not None:
            keep.add(best.path)
        for info in infos:
            if info.path not in keep:
                _remove(info.path)


def _first_valid(paths: Iterable[Path]) -> CheckpointInfo | None:
    for path in paths:
        try:
            return verify(path)
        except CheckpointError as error:
            logger.warning("refused: %s; trying the next one", error)
    return None
