"""Small JSON files through which the processes of a run tell each other where they are.

They live in the run's directory, which all of its processes share anyway for the checkpoints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPORT = "report.json"  # the latest report of the run: epoch, objective, metrics, digest
RESULT = "result.json"  # written once, when the training has come to its end
STOPPED = "stopped.json"  # written by the sweep when its scheduler has ended the trial
ERROR = "error.txt"  # traceback of the latest crash
PROGRESS = "progress.json"  # rewritten every few seconds while training


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace ``path`` in one step: a reader sees the old content or the new, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of ``path``; ``None`` if it is not there (yet) or not readable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
