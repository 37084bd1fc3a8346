"""Writing the report, and putting it where the sweep's own run shows it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sensorlab.errors import UserError

if TYPE_CHECKING:
    from sensorlab.runs.recorder import RunRecorder

logger = logging.getLogger(__name__)

FILE = "report.html"
_ARTIFACTS = "report"  # folder of the file among the artifacts of the sweep's run


def write_report(directory: Path, out: Path, *, ended: bool = False, use_tracking: bool = True) -> Path:
    """Make the report of the sweep in ``directory`` and write it to ``out``, in one step.

    Raises:
        UserError: there is no sweep in ``directory``, or ``out`` cannot be written.
    """
    from sensorlab.report.gather import gather
    from sensorlab.report.page import render

    text = render(gather(directory, ended=ended, use_tracking=use_tracking))
    temporary = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"cannot write the report {out}: {error.strerror or error}") from error
    return out


def attach_report(sweep_dir: Path, recorder: RunRecorder | None = None) -> Path | None:
    """Write ``report.html`` into a sweep's directory as the sweep ends, and hand it to the recorder of the sweep's run.

    Call it when no trial runs any more, and before the recorder is closed. It never raises: a sweep does not fail
    because of its report, which ``sensorlab report`` can make again.

    Returns:
        The file; ``None`` if it could not be made (a warning says why).
    """
    try:
        path = write_report(sweep_dir, sweep_dir / FILE, ended=True)
        if recorder is not None:
            recorder.log_artifact(path, _ARTIFACTS)
    except Exception as error:
        logger.warning("the report of %s could not be made (%s: %s)", sweep_dir, type(error).__name__, error)
        return None
    return path
