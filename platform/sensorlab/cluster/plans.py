"""Where runs and sweeps are written down, and how one is found again by its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorlab.cluster.files import read_json
from sensorlab.errors import UserError


@dataclass(frozen=True)
class Kind:
    """``root/folder/<name>/file`` is the plan of one."""

    name: str
    folder: str
    file: str


RUN = Kind("run", "runs", "run.json")
SWEEP = Kind("sweep", "sweeps", "sweep.json")


def load_plan(kind: Kind, root: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Directory and content of the plan that ``name`` (a name under ``root``, a directory, or ``latest``) means.

    Raises:
        UserError: there is none (the latest names are listed), or it cannot be read.
    """
    directory = _find(kind, root, name)
    content = read_json(directory / kind.file)
    if content is None:
        raise UserError(
            f"{directory / kind.file} is missing or damaged: this {kind.name} cannot go on; start a new one"
        )
    return directory, content


def _find(kind: Kind, root: Path, name: str) -> Path:
    as_path = Path(name).expanduser()
    if (as_path / kind.file).is_file():
        return as_path.resolve()
    known = sorted((root / kind.folder).glob(f"*/{kind.file}"), key=lambda path: path.stat().st_mtime)
    names = [path.parent.name for path in known]
    if name == "latest" and known:
        return known[-1].parent
    if name in names:
        return root / kind.folder / name
    listed = f"there are: {', '.join(reversed(names[-10:]))}" if names else "there are none yet"
    raise UserError(f"there is no {kind.name} {name!r} in {root / kind.folder}; {listed}")
