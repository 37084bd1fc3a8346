"""Numbers, times and tables as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any


def number(value: Any) -> str:
    """A value as a person reads it: 4 significant digits, lists and mappings compact."""
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value).lower()
    if isinstance(value, float):
        return "nan" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def duration(seconds: float) -> str:
    """``47s``, ``3m12s``, ``2h05m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> str:
    """A header and its rows in columns, aligned to the right, those numbered in ``left`` to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])])


def listed(pairs: Sequence[tuple[str, str]], indent: str = "") -> str:
    """Names and their texts, one pair a line; the texts begin in one column."""
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{indent}{name.ljust(width)}  {text}".rstrip() for name, text in pairs)
