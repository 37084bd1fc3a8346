"""The last line of a terminal, rewritten in place, below whatever else is printed meanwhile."""

from __future__ import annotations

import logging
import shutil
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TextIO, cast

from sensorlab.cluster.progress.line import Frame, encodable


class BarScreen:
    """Lines of what ended stay; the live one is rewritten below them, and is a plain line when all is over.

    The only control character is the carriage return: no colours, nothing to restore when the process is killed.

    While it is open, what others write to the standard streams appears above the bar: ``sys.stdout``, ``sys.stderr``
    and the log handlers that hold them get writers that take the bar away, write, and draw it again. That leaves out
    who writes to the file descriptor past Python: such a message begins behind the bar, and nothing is lost.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._unicode = encodable("▏█", stream) == "▏█"
        self._lock = threading.RLock()
        self._bar = ""  # as it stands in the terminal
        self._wanted = ""  # as it should stand there
        self._in_line = False  # others have begun a line and not ended it: the bar must wait
        self._replaced: list[_Replaced] = []

    def open(self) -> None:
        with self._lock:
            for name in ("stdout", "stderr"):
                original = getattr(sys, name)
                if original is self._stream or (original is not None and original.isatty()):
                    self._replaced.append(_Replaced.put(name, original, _Above(self, original)))

    def show(self, frame: Frame, is_last: bool = False) -> None:
        width = shutil.get_terminal_size().columns - 1  # a full line would move the cursor to the next
        lines = [line.fitted(width, self._unicode) for line in frame.finished]
        live = "" if frame.live is None else frame.live.fitted(width, self._unicode)
        if is_last and frame.live is not None:
            lines, live = [*lines, replace(frame.live, fraction=None).fitted(width)], ""
        with self._lock:
            self._wanted = encodable(live, self._stream)
            self._draw([encodable(line, self._stream) for line in lines])

    def close(self) -> None:
        with self._lock:
            for replaced in reversed(self._replaced):
                replaced.undo()
            self._replaced.clear()
            self._wanted = ""
            self._erase()

    def write_above(self, original: TextIO, text: str) -> int:
        """Write for somebody else."""
        with self._lock:
            self._erase()
            written = original.write(text)
            if text:
                self._in_line = not text.endswith("\n")
            if self._wanted and not self._in_line:
                original.flush()
                self._draw()
            return written

    def _draw(self, lines: Sequence[str] = ()) -> None:
        """``lines``, and the bar below them, in one piece: nothing flickers."""
        if self._in_line and not lines:
            return
        pieces = ["\n"] if self._in_line else []
        self._in_line = False
        for line in lines:
            pieces.append(f"\r{line.ljust(len(self._bar))}\n" if self._bar else f"{line}\n")
            self._bar = ""
        if self._wanted or self._bar:
            pieces.append("\r" + self._wanted.ljust(len(self._bar)) + ("" if self._wanted else "\r"))
        self._bar = self._wanted
        self._stream.write("".join(pieces))
        self._stream.flush()

    def _erase(self) -> None:
        if self._bar:
            self._stream.write("\r" + " " * len(self._bar) + "\r")
            self._stream.flush()
            self._bar = ""


class _Above:
    """Stands for a standard stream while there is a bar."""

    def __init__(self, screen: BarScreen, original: TextIO) -> None:
        self._screen = screen
        self._original = original

    def write(self, text: str) -> int:
        return self._screen.write_above(self._original, text)

    def writelines(self, lines: Sequence[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


@dataclass(frozen=True)
class _Replaced:
    """A standard stream that was replaced, with the log handlers that held it."""

    name: str
    original: TextIO
    writer: TextIO
    handlers: tuple[logging.StreamHandler, ...]

    @classmethod
    def put(cls, name: str, original: TextIO, above: _Above) -> _Replaced:
        writer = cast(TextIO, above)
        handlers = tuple(handler for handler in _stream_handlers() if handler.stream is original)
        for handler in handlers:
            handler.setStream(writer)
        setattr(sys, name, writer)
        return cls(name, original, writer, handlers)

    def undo(self) -> None:
        """Put back what nobody has replaced again."""
        if getattr(sys, self.name) is self.writer:
            setattr(sys, self.name, self.original)
        for handler in self.handlers:
            if handler.stream is self.writer:
                handler.setStream(self.original)


def _stream_handlers() -> list[logging.StreamHandler]:
    known = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    handlers = [handler for logger in known if isinstance(logger, logging.Logger) for handler in logger.handlers]
    return [handler for handler in dict.fromkeys(handlers) if isinstance(handler, logging.StreamHandler)]
