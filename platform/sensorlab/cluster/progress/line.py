"""A line of text that fits: what it says in full, and in a terminal what of it there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TextIO

SEPARATOR = " | "
_MIN_BAR, _MAX_BAR = 8, 30  # characters of the bar, without its ends
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Part(NamedTuple):
    """A piece of a line; the piece with the highest ``rank`` goes first when there is no room."""

    text: str
    rank: int = 0


@dataclass(frozen=True)
class Line:
    """``head``, a bar if there is a ``fraction``, then ``parts``."""

    head: str
    parts: tuple[Part, ...] = ()
    fraction: float | None = None  # of the bar that is filled, 0 to 1

    def text(self) -> str:
        """All of it, without a bar."""
        return SEPARATOR.join([self.head, *(part.text for part in self.parts)])

    def fitted(self, width: int, unicode: bool = True) -> str:
        """At most ``width`` characters, with a bar. ``unicode=False``: the bar is ASCII."""
        parts = list(self.parts)
        room = 0 if self.fraction is None else _MIN_BAR + len(SEPARATOR)
        while parts and len(self._joined(parts)) + room > width:
            parts.remove(max(reversed(parts), key=lambda part: part.rank))
        if self.fraction is None or len(self.head) + room > width:
            return self._joined(parts)[:width]
        cells = min(_MAX_BAR, width - len(self._joined(parts)) - len(SEPARATOR))
        drawn = _bar(self.fraction, cells, unicode)
        tail = SEPARATOR.join(part.text for part in parts)
        return f"{self.head} |{drawn}| {tail}" if tail else f"{self.head} |{drawn}|"

    def _joined(self, parts: Sequence[Part]) -> str:
        return SEPARATOR.join([self.head, *(part.text for part in parts)])


class Frame(NamedTuple):
    """What is to be shown at one moment."""

    live: Line | None  # how it is now; ``None``: nothing that ``finished`` does not say
    finished: tuple[Line, ...] = ()  # what ended since the last frame; these lines stay


def encodable(text: str, stream: TextIO) -> str:
    """``text`` with a ``?`` for each character that ``stream`` has no code for."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _bar(fraction: float, cells: int, unicode: bool) -> str:
    fraction = min(max(fraction, 0.0), 1.0)
    if not unicode:
        return ("#" * int(fraction * cells)).ljust(cells, "-")
    full, eighths = divmod(int(fraction * cells * 8), 8)
    return (_EIGHTHS[8] * full + (_EIGHTHS[eighths] if full < cells else "")).ljust(cells)
