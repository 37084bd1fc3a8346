"""How names and values are spelled in the tracking store.

Metric names. MLflow accepts letters, digits and ``_ - . : / space`` and rejects the rest (``mAP@0.5``, ``AP[car]``).
The rule here: every run of other characters (space and colon too, they only make trouble in URLs and searches)
becomes one ``_``; underscores that this puts at the ends of a ``/``-separated segment are dropped, and so are empty
and ``.`` segments and two or more dots at the start of one. So ``val/mAP@0.5`` is stored as ``val/mAP_0.5`` and
``AP[car]`` as ``AP_car``.

Parameters. MLflow stores strings, write-once; the page shows them as they are. Floats are rounded to 6 significant
digits, and a parameter searched on a log scale (``optim.lr``) gets a companion (``optim.log10_lr``), because the axes
of the comparison page are linear only.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

MAX_KEY_LENGTH = 250
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000


def metric_name(name: str) -> str:
    """The stored spelling of a metric name; the identity for names that need no change. Idempotent."""
    segments = []
    for segment in name.split("/"):
        clean = re.sub(r"[^A-Za-z0-9_.\-]+", "_", segment)
        if clean != segment:
            clean = clean.strip("_")
        if clean.startswith(".."):
            clean = clean.lstrip(".")
        if clean not in ("", "."):
            segments.append(clean)
    joined = "/".join(segments) or "unnamed"
    if len(joined) > MAX_KEY_LENGTH:
        joined = f"{joined[: MAX_KEY_LENGTH - 9]}_{_short_hash(joined)}"
    return joined


class MetricNames:
    """Memo of :func:`metric_name` for one run that keeps two metrics apart which would share a spelling.

    The later of two colliding names gets a hash of its original spelling appended: nothing is merged silently.
    """

    def __init__(self) -> None:
        self._stored: dict[str, str] = {}
        self._taken: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        stored = self._stored.get(name)
        if stored is None:
            stored = metric_name(name)
            if self._taken.setdefault(stored, name) != name:
                stored = f"{stored[: MAX_KEY_LENGTH - 9]}_{_short_hash(name)}"
                self._taken[stored] = name
            self._stored[name] = stored
        return stored

    def __len__(self) -> int:
        return len(self._stored)


def param_value(value: Any) -> str:
    """The stored text of a parameter: floats with 6 significant digits, containers as JSON, cut at 6,000 characters."""
    if isinstance(value, bool) or value is None:
        text = str(value).lower() if value is not None else "none"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, (Mapping, list, tuple)):
        text = json.dumps(value, default=str)
    else:
        text = str(value)
    return shortened(text, MAX_PARAM_LENGTH)


def param_values(params: Mapping[str, Any], log_scaled: Collection[str] = ()) -> dict[str, str]:
    """Stored parameters: every value as text, and ``log10_<name>`` for the positive numbers named in ``log_scaled``."""
    stored: dict[str, str] = {}
    for name, value in params.items():
        stored[metric_name(name)] = param_value(value)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in log_scaled and is_number and value > 0:
            stored[log10_name(metric_name(name))] = f"{math.log10(value):.4g}"
    return stored


def log10_name(name: str) -> str:
    """Name of a parameter's logarithm: ``optim.lr`` gives ``optim.log10_lr``."""
    head, dot, leaf = name.rpartition(".")
    return f"{head}{dot}log10_{leaf}"


def shortened(text: str, limit: int) -> str:
    """``text`` cut to ``limit`` characters; a cut text ends in a hash of the whole, so that cut texts differ."""
    if len(text) <= limit:
        return text
    mark = f"... [{len(text)} characters, {_short_hash(text)}]"
    return text[: limit - len(mark)] + mark


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
