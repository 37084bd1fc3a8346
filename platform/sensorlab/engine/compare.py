"""Two runs compared number by number: ``sensorlab compare-losses A B``."""

from __future__ import annotations

import json
import math
from pathlib import Path

from sensorlab.errors import UserError

COMPARED = ("train/", "val/")  # what the arithmetic decides; times and machine use differ in every run

Series = dict[tuple[int, str], float]


def read_series(path: Path) -> Series:
    """(step, name) -> value of the ``train/*`` and ``val/*`` numbers in a ``metrics.jsonl`` or the run's directory.

    ``null`` is a value that was not finite, and becomes NaN.

    Raises:
        UserError: no such file, a line that is not JSON, a number twice, or nothing to compare.
    """
    file = path / "metrics.jsonl" if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}; give a run's directory or its metrics.jsonl") from error
    series: Series = {}
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            step = int(values["step"])
            found = {
                name: math.nan if value is None else float(value)
                for name, value in values.items()
                if name.startswith(COMPARED)
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}, line {number}: not a line of metrics ({error})") from error
        for name, value in found.items():
            if (step, name) in series:
                raise UserError(f"{file}, line {number}: {name} of step {step} is there twice")
            series[step, name] = value
    if not series:
        raise UserError(f"{file} has no number under {' or '.join(COMPARED)}")
    return series


def losses_of(series: Series) -> Series:
    """The losses, rates and epochs of a series, which move smoothly with the weights.

    Other numbers jump where a weight moves by a rounding error (a metric counts what is above a threshold) or multiply
    it (the norm of the gradients), so they repeat on one machine only.
    """
    trained = {name for _, name in series if name.startswith("train/")} - {"train/grad_norm"}
    kept = trained | {f"val/{name.removeprefix('train/')}" for name in trained}
    return {key: value for key, value in series.items() if key[1] in kept}


def first_difference(left: Series, right: Series, tolerance: float = 0.0) -> str | None:
    """Where two series part, in words; ``None`` if they are equal.

    Numbers are equal within ``tolerance``, absolute for magnitudes up to 1 and relative above. NaN equals NaN.
    """
    order = {key: position for position, key in reversed(list(enumerate([*left, *right])))}
    for step, name in sorted(order, key=lambda key: (key[0], order[key])):
        key = (step, name)
        if key not in left or key not in right:
            return f"step {step}: {name} is only in the {'first' if key in left else 'second'}"
        a, b = left[key], right[key]
        if math.isnan(a) and math.isnan(b):
            continue
        if a != b and not math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance):
            return f"step {step}: {name} is {a!r} in the first, {b!r} in the second (difference {b - a:.3g})"
    return None
