"""Values of one searched key.

    optim.lr: {loguniform: [1.0e-4, 1.0e-2]}
    train.ema.decay: {uniform: [0.99, 0.9999], when: {...}}
    task.model.latent_dim: {qinteger: [32, 256, 32]}

Every range exists plain and quantised: ``q`` before its name, and the quantum as its third number. Then the values are
the multiples of the quantum within the bounds, whether or not the bounds are multiples themselves. A multiple is the
number that its decimal digits say: 0.3, not 3 * 0.1 = 0.30000000000000004.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
from pydantic import model_validator

from sensorlab.config import StrictModel, canonical_json

_ROUNDING = 1e-9  # 0.3 / 0.1 is a little less than 3


class Dimension(StrictModel):
    """Values of one searched key: exactly one kind of them; ``when`` makes it conditional."""

    choice: tuple[Any, ...] | None = None  # one of the listed values
    uniform: tuple[float, float] | None = None  # [low, high)
    loguniform: tuple[float, float] | None = None  # [low, high), uniform in the logarithm
    integer: tuple[int, int] | None = None  # low ... high, both included
    loginteger: tuple[int, int] | None = None  # low ... high, uniform in the logarithm
    quniform: tuple[float, float, float] | None = None  # low, high, multiples of the third number
    qloguniform: tuple[float, float, float] | None = None  # low, high, quantum; uniform in the logarithm
    qinteger: tuple[int, int, int] | None = None  # low, high, quantum
    qloginteger: tuple[int, int, int] | None = None  # low, high, quantum; uniform in the logarithm
    when: Mapping[str, Any] = {}  # searched only where these other searched keys have these values

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        names = [name for name in type(self).model_fields if name != "when"]
        kinds = [name for name in names if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"give exactly one of {', '.join(names)}; found {', '.join(kinds) or 'none'}")
        values = getattr(self, kinds[0])
        if self.choice is not None:
            if not values:
                raise ValueError("choice needs at least one value")
            if len({canonical_json(_one_spelling(value)) for value in values}) < len(values):
                raise ValueError("choice lists a value twice")
        elif values[0] >= values[1]:
            raise ValueError(f"{kinds[0]}: the lower bound {values[0]} is not below the upper bound {values[1]}")
        elif self.is_log and values[0] <= 0:
            raise ValueError(f"{kinds[0]}: bounds must be positive")
        elif self.quantum is not None and self.quantum <= 0:
            raise ValueError(f"{kinds[0]}: the quantum {self.quantum} is not positive")
        elif self.quantum is not None and len(self.indices) < 2:
            raise ValueError(
                f"{kinds[0]}: {len(self.indices) or 'no'} multiple of the quantum {self.quantum} lies within "
                f"[{values[0]}, {values[1]}]; a search needs two or more"
            )
        return self

    @property
    def kind(self) -> str:
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def is_log(self) -> bool:
        return self.kind.removeprefix("q").startswith("log")

    @property
    def is_integer(self) -> bool:
        return self.kind.endswith("integer")

    @property
    def quantum(self) -> float | None:
        """Distance of the values of a quantised range; ``None`` of the other kinds."""
        return getattr(self, self.kind)[2] if self.kind.startswith("q") else None

    @property
    def indices(self) -> range:
        """The values of a quantised range are the multiples of its quantum by these."""
        low, high, quantum = getattr(self, self.kind)
        return range(math.ceil(low / quantum - _ROUNDING), math.floor(high / quantum + _ROUNDING) + 1)

    def multiple(self, index: int) -> float:
        """The value of a quantised range that is ``index`` times its quantum, without rounding errors."""
        quantum = self.quantum
        return int(index * quantum) if isinstance(quantum, int) else float(Decimal(repr(quantum)) * index)

    @property
    def bounds(self) -> tuple[Any, Any]:
        """The smallest and the largest value of a range."""
        if self.quantum is not None:
            return self.multiple(self.indices[0]), self.multiple(self.indices[-1])
        low, high = getattr(self, self.kind)
        return low, high

    def samples(self) -> tuple[Any, ...]:
        """Values that stand for all others when the dimension is checked: every choice, or both ends."""
        return self.choice if self.choice is not None else self.bounds

    def nearest(self, number: float) -> float:
        """The value of a range that is nearest to ``number``."""
        if self.quantum is not None:
            index = round(number / self.quantum)
            return self.multiple(min(max(index, self.indices[0]), self.indices[-1]))
        low, high = self.bounds
        clipped = min(max(number, low), high)
        return round(clipped) if self.is_integer else float(clipped)

    def place(self, value: float) -> float:
        """Where a value of a range lies in it, from 0 to 1, on its own scale. Each discrete value is the middle of a
        stretch of its own, so that places that are drawn uniformly give equal chances to all."""
        low, high = self._ends
        return (self._scaled(value) - low) / (high - low)

    def at(self, place: float) -> float:
        """The value of a range at a place; the inverse of :meth:`place`."""
        low, high = self._ends
        scaled = low + place * (high - low)
        return self.nearest(math.exp(scaled) if self.is_log else scaled)

    @property
    def _ends(self) -> tuple[float, float]:
        low, high = self.bounds
        margin = 0.5 if self.is_integer and self.quantum is None else (self.quantum or 0.0) / 2
        return self._scaled(low - margin), self._scaled(high + margin)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.is_log else float(value)


def _one_spelling(value: Any) -> Any:
    """1 for 1.0, also inside of lists and mappings: a key reads them as the same value."""
    if isinstance(value, Mapping):
        return {key: _one_spelling(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_one_spelling(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Multiples:
    """The domain of a quantised range, beside those of Tune: its rounding leaves half a chance to the ends."""

    def __init__(self, dimension: Dimension) -> None:
        self._dimension = dimension

    def sample(self, *, random_state: np.random.Generator) -> float:
        return self._dimension.at(random_state.random())
