"""A Gaussian process over points whose values drift with time, as PB2 needs it (Bogunovic et al., AISTATS 2016).

The kernel is a squared exponential over the points times a factor that forgets:

    k((x, t), (x', t')) = exp(-|x - x'|^2 / (2 length^2)) * (1 - forgetting)^(|t - t'| / 2)

with a prior variance of 1 and a mean of 0, so that targets are to be standardised. Points are float64 arrays [n, d],
scaled to [0, 1]; times are float64 [n], in generations.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LENGTHS: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
_FORGETTING: Final = (0.0, 0.1, 0.2, 0.4, 0.7)
_NOISES: Final = (0.01, 0.05, 0.2, 0.6)


@dataclass(frozen=True)
class Kernel:
    """Parameters of the process: ``length`` in units of the scaled points, ``forgetting`` per generation in [0, 1),
    ``noise`` as the variance of the targets around the process."""

    length: float
    forgetting: float
    noise: float

    def covariance(self, points: Floats, times: Floats, others: Floats, other_times: Floats) -> Floats:
        """[n, m], without noise."""
        squared = np.square(points[:, None, :] - others[None, :, :]).sum(axis=2)
        ages = np.abs(times[:, None] - other_times[None, :])
        return np.asarray(np.exp(-squared / (2 * self.length**2)) * (1 - self.forgetting) ** (ages / 2))


@dataclass(frozen=True)
class Process:
    """A process that has seen ``targets`` [n] at ``points`` [n, d] and ``times`` [n]; n may be 0."""

    kernel: Kernel
    points: Floats
    times: Floats
    targets: Floats

    def posterior(self, points: Floats, times: Floats) -> tuple[Floats, Floats]:
        """(mean [m], variance [m]) of the process itself, without noise."""
        factor = self._factor()
        cross = self.kernel.covariance(self.points, self.times, points, times)
        whitened = np.linalg.solve(factor, cross)
        mean = whitened.T @ np.linalg.solve(factor, self.targets)
        return mean, np.maximum(1.0 - np.square(whitened).sum(axis=0), 0.0)

    def log_likelihood(self) -> float:
        """Logarithm of the marginal likelihood of the targets."""
        factor = self._factor()
        whitened = np.linalg.solve(factor, self.targets)
        determinant = 2 * np.log(np.diag(factor)).sum()
        return float(-0.5 * (whitened @ whitened + determinant + len(self.targets) * np.log(2 * np.pi)))

    def with_pending(self, points: Floats, times: Floats) -> Process:
        """The process after it has been told its own mean at ``points``: the mean stays, the variance shrinks there
        (Desautels et al., JMLR 2014)."""
        believed, _ = self.posterior(points, times)
        return Process(
            self.kernel,
            np.concatenate([self.points, points]),
            np.concatenate([self.times, times]),
            np.concatenate([self.targets, believed]),
        )

    def _factor(self) -> Floats:
        """Lower Cholesky factor of the targets' covariance."""
        covariance = self.kernel.covariance(self.points, self.times, self.points, self.times)
        return np.asarray(np.linalg.cholesky(covariance + self.kernel.noise * np.eye(len(covariance))))


def fitted(points: Floats, times: Floats, targets: Floats) -> Process:
    """The process under whose kernel, of a small grid, the targets are the most likely; of equals, the first."""
    grid = [Kernel(*each) for each in itertools.product(_LENGTHS, _FORGETTING, _NOISES)]
    processes = [Process(kernel, points, times, targets) for kernel in grid]
    return max(processes, key=Process.log_likelihood)
