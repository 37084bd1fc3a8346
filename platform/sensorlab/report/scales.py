"""From values to coordinates, and the values at which an axis has its ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_MANTISSAS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """``low`` ... ``high`` of the values, linear or logarithmic, to ``start`` ... ``end`` of the drawing."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (self._axis(number) for number in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def _axis(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def ticks(self, about: int = 5) -> list[tuple[float, str]]:
        """Round values inside of the range, with their labels."""
        values = _log_ticks(self.low, self.high, about) if self.is_log else []
        if len(values) < 2:  # less than a decade holds too few round powers
            values = _linear_ticks(self.low, self.high, about)
        return [(value, label(value)) for value in values]


def scale_of(values: Iterable[float], start: float, end: float, *, is_log: bool = False, margin: float = 0.05) -> Scale:
    """The scale that shows all ``values``, with a margin on both sides; any range if there are none."""
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)]
    if not finite:
        return Scale(0.1 if is_log else 0.0, 1.0, start, end, is_log)
    low, high = min(finite), max(finite)
    if is_log:
        spread = max(math.log10(high / low), 0.1) * margin
        return Scale(low / 10**spread, high * 10**spread, start, end, True)
    spread = (high - low) * margin or max(abs(high) * 0.1, 1e-9)
    return Scale(low - spread, high + spread, start, end)


def _linear_ticks(low: float, high: float, about: int) -> list[float]:
    rough = (high - low) / max(about, 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(mantissa * power for mantissa in _MANTISSAS if mantissa * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in (_MANTISSAS[:3], (1.0, 3.0), (1.0,)):
        found = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(found) <= about + 2:
            return found
    return found[:: math.ceil(len(found) / about)]


def label(value: float) -> str:
    """A tick's value, short: ``0.05``, ``12``, ``1e-5``."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def spread_out(positions: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """The positions moved apart to at least ``distance``, in their order, within ``low`` ... ``high`` if they fit."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    moved = list(positions)
    edge = low - distance
    for index in order:
        edge = moved[index] = max(moved[index], edge + distance)
    edge = high + distance
    for index in reversed(order):
        edge = moved[index] = min(moved[index], edge - distance)
    return moved
