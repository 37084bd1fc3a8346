"""Runs that begin while the tracking store is away: they are recorded on disk, and made when it is back.

The store gives a run its id. Until then the recorder has a pending id, which never leaves the run's spool folder. When
the run has been made, :func:`adopt` gives the spool its name, and whoever delivers spools delivers this one as well.
"""

from __future__ import annotations

from pathlib import Path

_MARK = "pending-"


def pending_id(name: str) -> str:
    """The id of a run that is to be made; ``name`` tells it from others in the same folder."""
    return f"{_MARK}{name}"


def is_pending(run_id: str) -> bool:
    return run_id.startswith(_MARK)


def adopt(spool_dir: Path, name: str, run_id: str) -> None:
    """Give what ``pending_id(name)`` has recorded to the run ``run_id``; call it while nobody records either."""
    for kind in ("jsonl", "artifacts"):
        pending, own = (spool_dir / f"{each}.{kind}" for each in (pending_id(name), run_id))
        if pending.exists() and not own.exists():
            pending.rename(own)
