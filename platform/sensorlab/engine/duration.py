"""Lengths of training: ``12 epochs``, ``500 steps``, ``100000 samples``, and what happens every so often."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from sensorlab.config import Text

Unit = Literal["epochs", "steps", "samples"]
_TEXT = re.compile(r"\s*([0-9][0-9_]*)\s*(epoch|step|sample)s?\s*")


class Progress(NamedTuple):
    """How far a training is, in every unit."""

    epochs: int  # finished
    steps: int  # optimiser steps done
    samples: int  # samples read, over all workers


@dataclass(frozen=True)
class Duration(Text):
    """A number of epochs, optimiser steps or samples."""

    count: int
    unit: Unit

    def __post_init__(self) -> None:
        if self.count < 1 or self.unit not in get_args(Unit):
            raise ValueError(f"a duration is at least 1 of epochs, steps or samples, not {self.count} {self.unit}")

    @classmethod
    def parse(cls, value: str | Duration) -> Duration:
        """Read ``"1 epoch"``, ``"500 steps"``, ``"100_000 samples"``. Raises ``ValueError``."""
        if isinstance(value, Duration):
            return value
        match = _TEXT.fullmatch(value) if isinstance(value, str) else None
        if match is None or int(match[1]) < 1:
            raise ValueError("write a duration as a number of epochs, steps or samples, for example 12 epochs")
        return cls(int(match[1]), f"{match[2]}s")  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.count} {self.unit if self.count != 1 else self.unit[:-1]}"

    def plain(self) -> str:
        return str(self)

    def passed(self, before: Progress, after: Progress) -> bool:
        """Whether a multiple of this duration was reached on the way from ``before`` to ``after``."""
        start, end = getattr(before, self.unit), getattr(after, self.unit)
        return bool(end // self.count > start // self.count)


@dataclass(frozen=True)
class Every(Text):
    """When something recurs: at the multiples of one duration, or of each of several."""

    durations: tuple[Duration, ...]

    @classmethod
    def parse(cls, value: str | Duration | Iterable[str | Duration] | Every) -> Every:
        """Read ``"1 epoch"`` or ``["1 epoch", "500 steps"]``. Raises ``ValueError``."""
        if isinstance(value, Every):
            return value
        parts = value if isinstance(value, list | tuple) else [value]
        if not parts:
            raise ValueError("write null for never")
        return cls(tuple(Duration.parse(part) for part in parts))  # type: ignore[arg-type]

    def __str__(self) -> str:
        return " and ".join(map(str, self.durations))

    def plain(self) -> str | list[str]:
        texts = [str(duration) for duration in self.durations]
        return texts[0] if len(texts) == 1 else texts

    def passed(self, before: Progress, after: Progress) -> bool:
        """Whether it is due on the way from ``before`` to ``after``."""
        for duration in self.durations:  # noqa: SIM110  (on the path of every step, where a generator costs twice)
            if duration.passed(before, after):
                return True
        return False
