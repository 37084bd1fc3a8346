"""Asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020).

The decisions of :class:`SuccessiveHalving` are those of Ray's own scheduler (a test compares them).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from sensorlab.cluster.ledger import TrialRecord
from sensorlab.cluster.search.stopping import EarlyStopping
from sensorlab.cluster.sweep_config import AshaConfig


def rung_epochs(config: AshaConfig, max_epochs: int) -> list[int]:
    """Epochs after which trials are compared, ascending; all before the last epoch, where nothing is left to save."""
    powers = (round(config.grace_epochs * config.reduction**k) for k in itertools.count())
    return list(itertools.takewhile(lambda epoch: epoch < max_epochs, powers))


def survives(value: float, earlier: list[float], reduction: float, mode: str) -> bool:
    """Whether ``value`` is among the top ``1 / reduction`` of what reached its rung before. The first always is.

    An objective that was no number arrives as infinite: it is behind every number, and no number is behind it.
    """
    if not math.isfinite(value):
        return not any(map(math.isfinite, earlier))
    if not earlier:
        return True
    sign = 1.0 if mode == "max" else -1.0
    with np.errstate(invalid="ignore"):
        cutoff = np.percentile([sign * other for other in earlier], (1 - 1 / reduction) * 100)
    return bool(np.isnan(cutoff) or sign * value >= cutoff)  # NaN: between two that were no numbers


class SuccessiveHalving(EarlyStopping):
    """Stops a trial that falls behind at a rung."""

    def __init__(self, sweep_dir: str, config: AshaConfig, max_epochs: int, mode: str, repeats: bool = False) -> None:
        super().__init__(sweep_dir, mode, repeats)
        self._reduction = config.reduction
        self._rungs = rung_epochs(config, max_epochs)

    def fell_behind(self, record: TrialRecord, rivals: Sequence[TrialRecord], epoch: int, value: float) -> int | None:
        return self._lost(self._rungs, record, rivals, epoch, value)

    def _lost(
        self, rungs: Sequence[int], record: TrialRecord, rivals: Sequence[TrialRecord], epoch: int, value: float
    ) -> int | None:
        reached = [rung for rung in rungs if rung <= epoch]
        # The highest rung counts, once: a trial that starts again reports epochs that were compared before.
        if not reached or str(reached[-1]) in record.rungs:
            return None
        rung = str(reached[-1])
        record.rungs[rung] = value
        earlier = [other.rungs[rung] for other in rivals if rung in other.rungs]
        return None if survives(value, earlier, self._reduction, self._mode) else reached[-1]


class HyperBand(SuccessiveHalving):
    """Successive halving in several brackets, which begin to stop trials at different rungs (Li et al., JMLR 18, 2018).

    The first bracket has all rungs, each further one a rung less, the last one none: it trains to the end whatever it
    is given. Trials are compared within their bracket. HyperBand gives bracket ``s``, with ``s`` rungs of ``S``,
    ``(S + 1) / (s + 1) * reduction ** s`` configurations; here each new configuration goes where the fewest of these
    are, so a sweep of any size has them in about this proportion.

    The brackets are asynchronous, as those of ASHA: HyperBand itself lets all trials of a bracket wait at a rung for
    the last one. That needs trials that are paused and go on in another process, and a driver that knows who waits;
    in exchange, asynchronous brackets keep some trials that the slower rule would have stopped.
    """

    def enter(self, leader: TrialRecord, rivals: Sequence[TrialRecord]) -> None:
        if leader.bracket is None:
            leader.bracket = self._next_bracket([other.bracket for other in rivals if other.bracket is not None])

    def fell_behind(self, record: TrialRecord, rivals: Sequence[TrialRecord], epoch: int, value: float) -> int | None:
        within = [other for other in rivals if other.bracket == record.bracket]
        return self._lost(self._rungs[record.bracket :], record, within, epoch, value)

    def _next_bracket(self, taken: Sequence[int]) -> int:
        """The bracket that lacks the most, given those of the other configurations."""
        rungs = len(self._rungs)
        halvings = range(rungs, -1, -1)  # of the brackets, in their order
        shares = [(rungs + 1) / (number + 1) * self._reduction**number for number in halvings]
        return min(range(rungs + 1), key=lambda bracket: (taken.count(bracket) + 1) / shares[bracket])
