"""Shows frames while something runs: one line that is rewritten in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from sensorlab.cluster.progress.line import Frame, encodable
from sensorlab.cluster.progress.terminal import BarScreen

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0  # runs write as often
_PLAIN_EVERY_S, _PLAIN_AT_MOST_S, _PLAIN_SHARE = 5.0, 60.0, 1 / 60


class Screen(Protocol):
    """Where frames go."""

    def open(self) -> None: ...

    def show(self, frame: Frame, is_last: bool = False) -> None: ...

    def close(self) -> None: ...


class LineScreen:
    """Every line stays: those of what ended at once, the live one every 5 s, after 5 minutes less and less often (once
    a minute in the end), so that the log of a long job can be read."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._started = self._printed = clock()
        self._last = ""

    def open(self) -> None:
        self._started = self._printed = self._clock()

    def show(self, frame: Frame, is_last: bool = False) -> None:
        lines = [line.text() for line in frame.finished]
        now = self._clock()
        pause = min(max((now - self._started) * _PLAIN_SHARE, _PLAIN_EVERY_S), _PLAIN_AT_MOST_S)
        if frame.live is not None and (is_last or now - self._printed >= pause):
            self._printed = now
            lines += [text for text in (frame.live.text(),) if text != self._last]
            self._last = frame.live.text()
        if lines:
            self._stream.write(encodable("".join(f"{line}\n" for line in lines), self._stream))
            self._stream.flush()

    def close(self) -> None: ...


class Ticker:
    """Context in which the frames of ``view`` are shown, from a thread.

    Args:
        view: called about once a second, and once more at the end.
        stream: where to; default: the standard output.
        screen: how; default: as a bar if ``stream`` is a terminal that can rewrite a line.
        every_s: seconds between two looks.
    """

    def __init__(
        self,
        view: Callable[[], Frame],
        stream: TextIO | None = None,
        screen: Screen | None = None,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        stream = stream or sys.stdout
        self._view = view
        self._screen = screen or (BarScreen(stream) if can_rewrite(stream) else LineScreen(stream))
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Ticker:
        self._screen.open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10 * self._every_s)
        self._show(is_last=True)
        self._screen.close()

    def _run(self) -> None:
        while not self._stop.is_set() and self._show():
            self._stop.wait(self._every_s)

    def _show(self, is_last: bool = False) -> bool:
        """``False`` if it cannot be shown, which must not end what is being watched."""
        try:
            self._screen.show(self._view(), is_last)
        except (OSError, ValueError):  # the terminal or the pipe is gone
            return False
        except Exception:
            logger.exception("the progress cannot be shown")
            return False
        return True


def can_rewrite(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal in which a line can be written again."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"
