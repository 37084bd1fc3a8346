"""The attempts of a run: each start and each resume, with host, time, step and reason.

They are kept in ``attempts.json`` of the run's directory, outside of the checkpoints: a checkpoint knows nothing of the
attempts that died after it.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "attempts.json"


@dataclass
class Attempt:
    """One process's work on a run. Times are seconds since 1970."""

    number: int  # from 1
    host: str  # hash of the host's name
    started: float
    first_step: int  # optimiser steps that were done before, by the checkpoint it went on from
    reason: str  # why it began
    outcome: str = "running"  # then "finished", "killed", "failed: why" or "died"
    ended: float | None = None
    last_step: int | None = None


class Attempts:
    """The attempts of the run in ``directory``; every change is on disk when a method returns."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self.all: list[Attempt] = [Attempt(**entry) for entry in self._read()]

    def begin(self, step: int, host: str) -> Attempt:
        """An attempt starts at ``step``. One before it that never said how it ended has died."""
        before = self.all[-1] if self.all else None
        if before is None:
            reason = "start" if step == 0 else "start from another run's checkpoint"
        else:
            if before.outcome == "running":
                before.outcome = "died"
            reason = f"resumed: attempt {before.number} {_past(before.outcome)}"
        self.all.append(Attempt(len(self.all) + 1, host, time.time(), step, reason))
        self._write()
        return self.all[-1]

    def end(self, step: int, outcome: str) -> None:
        """The latest attempt ends after ``step`` optimiser steps."""
        attempt = self.all[-1]
        attempt.ended, attempt.last_step, attempt.outcome = time.time(), step, outcome
        self._write()

    def as_dict(self) -> dict[str, Any]:
        return {"attempts": [asdict(attempt) for attempt in self.all]}

    def _read(self) -> list[dict[str, Any]]:
        try:
            return list(json.loads(self._path.read_text(encoding="utf-8"))["attempts"])
        except (OSError, ValueError, KeyError):
            return []

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{FILE}.{os.getpid()}")
        temporary.write_text(json.dumps(self.as_dict(), indent=1), encoding="utf-8")
        os.replace(temporary, self._path)


def _past(outcome: str) -> str:
    kind, colon, why = outcome.partition(": ")
    verb = {"finished": "had finished", "killed": "was killed"}.get(kind, kind)
    return f"{verb}{colon}{why}"
