"""Whether two configurations differ by more than their seeds do.

The spread between the seeds of one configuration is what a difference of means is measured against. Two or three
repeats say little about their own spread, so the repeats of all configurations are pooled, as the analysis of variance
does: variance ``s2 = sum((x - mean_i)^2) / nu`` with ``nu = sum(n_i - 1)`` degrees of freedom, and
``t = (mean_a - mean_b) / sqrt(s2 (1/n_a + 1/n_b))``, two-sided. This assumes that configurations spread alike; where
both have ``WELCH_FROM`` repeats or more, Welch's test (Biometrika 34, 1947) is used instead, which does not.

The best is compared with every other configuration that trained for as many epochs. A shorter training has another
mean and another spread, so it is neither tested nor pooled. Of many comparisons some look large by chance, so p values
are corrected after Holm (Scandinavian Journal of Statistics 6, 1979), which bounds the chance of a single false
"different" by ``ALPHA``. Repeats that are all equal (a saturated objective, or seeds without effect) have no spread
to measure by, and no verdict. What the tests cannot see: each trial's objective is its best epoch on the validation
data, and the best configuration was chosen on the same data. New data will show less.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

ALPHA = 0.05
NO_SPREAD = "no test: all repeats of a configuration gave the same number, so nothing says what their seeds do"
WELCH_FROM = 5  # repeats of either configuration from which its own variance is good enough


@dataclass(frozen=True)
class Difference:
    """The best configuration against another one.

    Attributes:
        gap: difference of the means, in units of the objective.
        p: corrected two-sided p value; ``None`` where no test is possible.
        test: name of the test, with its degrees of freedom; or why there is none.
    """

    gap: float
    p: float | None
    test: str
    is_rival: bool = True  # it trained as long as the best
    is_longer: bool = False  # it trained for more epochs

    @property
    def is_clear(self) -> bool:
        return self.p is not None and self.p < ALPHA


def differences(samples: Sequence[Sequence[float]], epochs: Sequence[int]) -> list[Difference]:
    """The first sample against each of the others.

    Args:
        samples: objectives of the repeats of each configuration, the best one's first; none is empty.
        epochs: how long each configuration trained.
    """
    if not samples:
        return []
    rivals = [sample for sample, length in zip(samples, epochs, strict=True) if length == epochs[0]]
    variance, freedom = pooled_variance(rivals)
    found = []
    for sample, length in zip(samples[1:], epochs[1:], strict=True):
        gap = float(np.mean(samples[0]) - np.mean(sample))
        if length != epochs[0]:
            test = f"no test: {length} epochs, the best has {epochs[0]}"
            found.append(Difference(gap, None, test, is_rival=False, is_longer=length > epochs[0]))
        elif min(len(samples[0]), len(sample)) >= WELCH_FROM and np.ptp(samples[0]) + np.ptp(sample) > 0:
            found.append(Difference(gap, *_welch(samples[0], sample)))
        elif freedom and not any(np.ptp(rival) > 0 for rival in rivals):
            found.append(Difference(gap, None, NO_SPREAD))
        elif freedom:
            error = math.sqrt(variance * (1 / len(samples[0]) + 1 / len(sample)))
            test = f"t-test, pooled variance, {freedom} d.o.f."
            found.append(Difference(gap, _two_sided(gap, error, freedom), test))
        else:
            found.append(Difference(gap, None, "no test: nothing was repeated"))
    corrected = iter(holm([difference.p for difference in found if difference.p is not None]))
    return [d if d.p is None else replace(d, p=next(corrected)) for d in found]


def pooled_variance(samples: Sequence[Sequence[float]]) -> tuple[float, int]:
    """(variance within the samples, its degrees of freedom); (NaN, 0) if no sample has two values."""
    freedom = sum(len(sample) - 1 for sample in samples)
    if freedom == 0:
        return math.nan, 0
    return sum(float(np.var(sample)) * len(sample) for sample in samples) / freedom, freedom


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number, in the order given."""
    corrected = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected


def _welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, str]:
    parts = [float(np.var(sample, ddof=1)) / len(sample) for sample in (a, b)]
    total = sum(parts)
    gap = float(np.mean(a) - np.mean(b))
    freedom = total**2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (a, b), strict=True))
    return _two_sided(gap, math.sqrt(total), freedom), f"Welch's t-test, {freedom:.1f} d.o.f."


def _two_sided(gap: float, error: float, freedom: float) -> float:
    return student_tail(abs(gap) / error, freedom)


def student_tail(t: float, freedom: float) -> float:
    """Chance that Student's distribution is farther from 0 than ``t`` >= 0, on either side.

    With ``t = sqrt(nu) tan(a)`` its density becomes ``cos(a)^(nu - 1)``, which Gauss-Legendre nodes integrate well.
    """
    begin = math.atan(t / math.sqrt(freedom))
    nodes, weights = _nodes()
    half = (math.pi / 2 - begin) / 2
    area = half * float(np.sum(weights * np.cos(begin + half * (nodes + 1)) ** (freedom - 1)))
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return min(1.0, 2 * constant * area)


@functools.cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return nodes, weights
