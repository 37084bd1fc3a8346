"""Tune's state of a sweep in one file, so that a driver that is killed at any moment leaves a whole one.

Tune writes the list of trials, the searcher and its wrapper one after the other, and copies them to the sweep's
directory in the background, file by file and in place. What a kill leaves there may be torn, or of two moments: then a
restored Tune starts all over, or waits for ever for a trial that only one of the files knows. A copy of the three,
taken when they have just been written and replaced in one step, has neither fault.

Tune takes the newest of its files by the time in their names, so a clock that was set back would bring back an old
state. Here the latest that was kept is the one that comes back.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

FILE = "tune_state.zip"
_PARTS = ("experiment_state-*", "searcher-state-*", "search_gen_state-*")  # as Tune names them, before the session


def keep(written: Path, session: str, sweep_dir: Path) -> None:
    """Keep what Tune's ``session`` has just written into the directory ``written``.

    Raises:
        OSError: the disk is full or gone; what was kept before is still there.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for part in _PARTS:
            for file in written.glob(part.replace("*", f"{session}.*")):
                archive.writestr(file.name, file.read_bytes())
    temporary = sweep_dir / f".{FILE}.{os.getpid()}"
    temporary.write_bytes(content.getvalue())
    os.replace(temporary, sweep_dir / FILE)


def bring_back(sweep_dir: Path, folder: Path) -> bool:
    """Put the state that was kept last in the place of Tune's own files in ``folder``.

    Returns:
        Whether there is a state to go on from. A sweep of an earlier version has Tune's own files alone.
    """
    kept = sweep_dir / FILE
    if kept.is_file():
        for part in _PARTS:
            for file in folder.glob(part):
                file.unlink()
        with zipfile.ZipFile(kept) as archive:
            archive.extractall(folder)
    return any(folder.glob(_PARTS[0]))
