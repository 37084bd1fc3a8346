"""HTML and SVG as text that cannot be broken by what it shows: everything is escaped unless it is markup already."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any


class Markup(str):
    """Text that is HTML. Only :func:`el` and :func:`join` make it, and literals of this package."""

    __slots__ = ()


def escaped(value: Any) -> str:
    """``value`` as text of an element or of a quoted attribute."""
    return value if isinstance(value, Markup) else html.escape(_printable(str(value)), quote=True)


def _printable(text: str) -> str:
    """HTML has no control characters, and lone surrogates cannot be written as UTF-8."""
    return "".join(
        char
        if char in "\n\t" or not (ord(char) < 32 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000)
        else "�"
        for char in text
    )


def el(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element. Children that are not markup are escaped; ``None`` among children and attributes is left out.

    Attribute names: ``class_`` is ``class``, ``data_trial`` is ``data-trial``, ``viewBox`` stays.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is not None:
            text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else escaped(value)
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{text}"')
    parts.append(">")
    parts += [escaped(child) for child in children if child is not None]
    if name not in _VOID:
        parts.append(f"</{name}>")
    return Markup("".join(parts))


_VOID = frozenset({"meta", "img", "br", "hr", "col"})


def join(parts: Iterable[Any], separator: str = "") -> Markup:
    """The parts one after the other, escaped where they are not markup."""
    return Markup(separator.join(escaped(part) for part in parts if part is not None))


def table(
    header: Sequence[Any], rows: Iterable[Markup], *, label: str, class_: str = "", sortable: bool = False
) -> Markup:
    """A table that scrolls by itself where it is wider than the page. ``rows``: ``tr`` elements.

    ``label`` names it for those who do not see it. A column whose first cell is a number has its name on the right.
    """
    rows = list(rows)
    first = re.findall(r"<t[hd][^>]*>", rows[0]) if rows else []
    numeric = [index < len(first) and 'class="num"' in first[index] for index in range(len(header))]
    cells = [
        el("th", el("button", name, type="button") if sortable else name, scope="col", class_="num" if right else None)
        for name, right in zip(header, numeric, strict=True)
    ]
    content = [
        el("thead", el("tr", *cells)),
        el("tbody", *rows),
    ]
    marks = " ".join(filter(None, (class_, "sortable" if sortable else "")))
    return el(
        "div",
        el("table", *content, class_=marks or None),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=label,
    )


def number_cell(text: str, value: float | None = None, **attributes: Any) -> Markup:
    """A right-aligned cell; ``value`` is what it sorts by."""
    return el("td", text, class_="num", data_sort=None if value is None else repr(float(value)), **attributes)
