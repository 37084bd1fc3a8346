"""BOHB: Bayesian optimisation on the rungs of HyperBand (Falkner, Klein & Hutter, ICML 2018, arXiv 1807.01774).

A share ``random_fraction`` of the configurations is drawn at random. For the others, the measurements of one rung are
the data: of the highest rung (the end of a training included) that at least ``N_min + 2`` configurations have reached,
with ``N_min = min_points``; while there is none, draws are random too. Of ``N`` configurations

    the best   N_l = max(N_min, top_fraction * N)   give the density l of good values,
    the worst  N_g = max(N_min, N - N_l)            give the density g of bad ones.

``candidates`` points are drawn from l with kernels wider by ``bandwidth_factor``; the one with the greatest l / g is
proposed. A configuration that failed counts as the worst at every rung.

Both densities are sums of product kernels on the places of values in their ranges, 0 to 1 on the range's own scale
(:meth:`Dimension.place`): a Gaussian truncated to [0, 1] for ranges, the kernel of Aitchison and Aitken for choices.
The bandwidth of a number is Scott's ``1.06 * s * n ** (-1 / (4 + d))`` with the standard deviation ``s`` of the ``n``
values; of a choice it is the same with the root of the share of unequal pairs as ``s``, at most ``(c - 1) / c``, where
all ``c`` choices are equally likely. A single value has no deviation: then that of the uniform distribution counts.

This is no wrapper of hpbandster, the authors' package, which is not maintained (last release 2018), nor of Tune's
TuneBOHB, which needs it. Differences:

- the paper's HyperBand waits for the others at each rung; the rungs here are those of the sweep's scheduler, which is
  asynchronous: densities are of what has been measured when a configuration is proposed;
- a conditional dimension that a configuration lacks says nothing about its values: its kernel is the uniform density,
  which makes the densities exact marginals over the active dimensions. hpbandster fills the gap with the value of a
  random other configuration, so that its choice among the candidates depends on values that nobody uses;
- kernels are normalised on [0, 1] also where they are evaluated, not only where they are drawn from;
- candidates are rounded to values of their dimension before they are compared, and configurations that were proposed
  before are passed over: training one again would tell nothing new. Where all were, the next one is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from sensorlab.cluster.search.propose import Outcome, Proposal, Random
from sensorlab.cluster.search.space import is_active, parents_first, same
from sensorlab.cluster.sweep_config import Dimension, SweepConfig, decode_values, encode_choice

_LEAST_BANDWIDTH = 1e-3  # hpbandster's, of equal values: a kernel must not become a point
_LEAST_DENSITY = 1e-32  # hpbandster's, far away from all data
_NORMAL = NormalDist()

Point = Mapping[str, float]
"""Active key to the place of its value in a range, or to the index of its choice."""


class Bohb:
    """``algorithm: bohb``."""

    def __init__(self, sweep: SweepConfig) -> None:
        self._sweep = sweep
        self._config = sweep.bohb
        self._random = Random(sweep)
        self._order = parents_first(sweep.space, sweep.conditions)
        self._min_points = self._config.min_points or len(sweep.space) + 1

    def propose(self, history: Sequence[Outcome]) -> Proposal | None:
        generator = np.random.default_rng((self._sweep.seed, len(history)))
        split = None if generator.random() < self._config.random_fraction else self.split(history)
        if split is None:
            return self._random.propose(history)
        good, bad = (Density(self._sweep.space, [self._point(values) for values in part]) for part in split)
        known = [outcome.proposal.values for outcome in history]
        drawn = [self._draw(good, generator) for _ in range(self._config.candidates)]
        points = [self._point(values) for values in drawn]
        ratios = np.array([good.log(point) - bad.log(point) for point in points])
        for index in np.argsort(-ratios, kind="stable"):
            if not any(same(drawn[index], values) for values in known):
                return Proposal(drawn[index])
        return self._random.propose(history)

    def split(self, history: Sequence[Outcome]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] | None:
        """Values of the good configurations, best first, and of the bad ones; ``None``: too little is measured."""
        worst = -math.inf if self._sweep.mode == "max" else math.inf
        sign = 1.0 if self._sweep.mode == "max" else -1.0
        measured: dict[int, list[tuple[float, Mapping[str, Any]]]] = {}
        for outcome in history:
            for rung, value in outcome.rungs.items():
                if outcome.state != "failed":
                    measured.setdefault(rung, []).append((value, outcome.proposal.values))
        enough = [rung for rung, found in measured.items() if len(found) >= self._min_points + 2]
        if not enough:
            return None
        failed = [(worst, outcome.proposal.values) for outcome in history if outcome.state == "failed"]
        # Of equal ones the earlier counts as better.
        ranked = [values for _, values in sorted(measured[max(enough)] + failed, key=lambda pair: -sign * pair[0])]
        num_good = max(self._min_points, int(self._config.top_fraction * len(ranked)))
        num_bad = max(self._min_points, len(ranked) - num_good)
        return ranked[:num_good], ranked[-num_bad:]

    def _point(self, values: Mapping[str, Any]) -> Point:
        point: dict[str, float] = {}
        for key, value in values.items():
            dimension = self._sweep.space[key]
            if dimension.choice is None:
                point[key] = dimension.place(value)
            else:
                choices = [encode_choice(choice) for choice in dimension.choice]
                point[key] = next(i for i, choice in enumerate(choices) if same(choice, value))
        return point

    def _draw(self, density: Density, generator: np.random.Generator) -> dict[str, Any]:
        """A configuration near to one of those that ``density`` is made of."""
        centre = density.points[int(generator.integers(len(density.points)))]
        values: dict[str, Any] = {}
        for key in self._order:
            if not is_active(key, decode_values(values), self._sweep.conditions):
                continue
            dimension = self._sweep.space[key]
            kernel = density.kernels[key].widened(self._config.bandwidth_factor)
            place = kernel.draw(centre.get(key), generator)
            choices = dimension.choice
            values[key] = dimension.at(place) if choices is None else encode_choice(choices[int(place)])
        return values


@dataclass(frozen=True)
class NumberKernel:
    """A Gaussian truncated to [0, 1]; where its centre is not known, the uniform density."""

    bandwidth: float

    @classmethod
    def of(cls, places: Sequence[float], dimensions: int) -> NumberKernel:
        deviation = float(np.std(places)) if len(places) > 1 else 12**-0.5
        return cls(max(_scott(deviation, len(places), dimensions), _LEAST_BANDWIDTH))

    def widened(self, factor: float) -> NumberKernel:
        return NumberKernel(self.bandwidth * factor)

    def density(self, place: float, centre: float | None) -> float:
        if centre is None:
            return 1.0
        below, above = self._shares(centre)
        return _NORMAL.pdf((place - centre) / self.bandwidth) / (self.bandwidth * (above - below))

    def draw(self, centre: float | None, generator: np.random.Generator) -> float:
        share = generator.random()
        if centre is None:
            return share
        below, above = self._shares(centre)
        share = min(max(below + share * (above - below), 1e-15), 1 - 1e-15)  # the inverse is finite inside of (0, 1)
        return min(max(centre + self.bandwidth * _NORMAL.inv_cdf(share), 0.0), 1.0)

    def _shares(self, centre: float) -> tuple[float, float]:
        """Of the whole Gaussian that lie below 0, and below 1."""
        return _NORMAL.cdf(-centre / self.bandwidth), _NORMAL.cdf((1 - centre) / self.bandwidth)


@dataclass(frozen=True)
class ChoiceKernel:
    """Aitchison & Aitken (Biometrika 63, 1976): ``1 - bandwidth`` for the centre's choice; the others share it."""

    bandwidth: float
    choices: int

    @classmethod
    def of(cls, indices: Sequence[float], choices: int, dimensions: int) -> ChoiceKernel:
        counts = np.bincount(np.asarray(indices, dtype=np.int64), minlength=choices)
        shares = counts / len(indices) if len(indices) > 1 else np.full(choices, 1 / choices)
        deviation = math.sqrt(max(0.0, 1.0 - float(np.sum(shares**2))))
        return cls(max(_scott(deviation, len(indices), dimensions), _LEAST_BANDWIDTH), choices).bounded()

    def bounded(self) -> ChoiceKernel:
        return ChoiceKernel(min(self.bandwidth, (self.choices - 1) / self.choices), self.choices)

    def widened(self, factor: float) -> ChoiceKernel:
        return ChoiceKernel(self.bandwidth * factor, self.choices).bounded()

    def density(self, index: float, centre: float | None) -> float:
        if centre is None:
            return 1.0 / self.choices
        return 1.0 - self.bandwidth if index == centre else self.bandwidth / (self.choices - 1)

    def draw(self, centre: float | None, generator: np.random.Generator) -> int:
        if centre is None:
            return int(generator.integers(self.choices))
        others = [index for index in range(self.choices) if index != centre]
        stays = generator.random() >= self.bandwidth or not others
        return int(centre) if stays else others[generator.integers(len(others))]


class Density:
    """The mean of product kernels around ``points``."""

    def __init__(self, space: Mapping[str, Dimension], points: Sequence[Point]) -> None:
        self.points = points
        self.kernels: dict[str, NumberKernel | ChoiceKernel] = {}
        for key, dimension in space.items():
            known = [point[key] for point in points if key in point]
            if dimension.choice is None:
                self.kernels[key] = NumberKernel.of(known, len(space))
            else:
                self.kernels[key] = ChoiceKernel.of(known, len(dimension.choice), len(space))

    def log(self, point: Point) -> float:
        """Logarithm of the density of a point, over the dimensions that are active there."""
        products = [
            math.prod(self.kernels[key].density(place, centre.get(key)) for key, place in point.items())
            for centre in self.points
        ]
        return math.log(max(sum(products) / len(products), _LEAST_DENSITY))


def _scott(deviation: float, count: int, dimensions: int) -> float:
    """The rule that is best for a Gaussian in ``dimensions`` dimensions."""
    return 1.06 * deviation * max(count, 1) ** (-1.0 / (4 + dimensions))
