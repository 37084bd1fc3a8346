"""Trials to configurations to rankings.

Trials whose values are equal but for ``seed`` are repeats of one configuration; a configuration has the mean of its
repeats. Only repeats that trained equally long are averaged: where the scheduler has ended one of them early, it is
named, but left out. Repeats with the same seed are one measurement, because training is reproducible.

Objectives that were measured by different protocols are different quantities. Every protocol has a ranking of its
own, the one of most trials first, and there is no order between them.

Where a sweep promotes configurations along a key (:mod:`sensorlab.cluster.search.fidelity`), every level has rankings
of its own too: a cheap trial says which configurations are worth a dearer one, and is no rival of it. The highest level
at which a trial was trained to its end comes first, so the sweep's best does not change into one that has just begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sensorlab.report.content import Mode, Sweep, Trial, text_key
from sensorlab.report.distinguish import Difference, differences

SEED = "seed"
UNTIL, FORK, INIT = "train.until", "train.fork.checkpoint", "train.init"
ASSIGNED = frozenset({SEED, UNTIL, FORK, INIT})
"""What a sweep itself gives to a trial: its repeat, and its part of a training."""


def searched(values: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values without its part of a training, which says where it is in the sweep and not what was tried."""
    return {key: value for key, value in values.items() if key not in (UNTIL, FORK, INIT)}


@dataclass(frozen=True)
class Configuration:
    """Repeats of one configuration under one protocol.

    Attributes:
        trials: all of them, in the order of their start.
        compared: those whose objectives are averaged: as long as the longest, each seed once.
    """

    trials: tuple[Trial, ...]
    compared: tuple[Trial, ...]

    @property
    def label(self) -> str:
        """``#3``: the number of its first trial, which the terminal and MLflow show too."""
        return f"#{self.trials[0].number}"

    @property
    def values(self) -> dict[str, Any]:
        return {key: value for key, value in self.trials[0].values.items() if key not in ASSIGNED}

    @property
    def objectives(self) -> list[float]:
        return [trial.objective for trial in self.compared if trial.objective is not None]

    @property
    def epoch(self) -> int:
        """Epochs that the compared repeats trained for."""
        return self.compared[0].epoch

    @property
    def mean(self) -> float:
        return float(np.mean(self.objectives))

    @property
    def deviation(self) -> float | None:
        """Standard deviation between the repeats (n - 1); ``None`` for a single one."""
        return float(np.std(self.objectives, ddof=1)) if len(self.compared) > 1 else None

    @property
    def typical(self) -> Trial:
        """The repeat that is nearest to the mean."""
        return min(self.compared, key=lambda trial: abs((trial.objective or 0.0) - self.mean))

    @property
    def seconds(self) -> float:
        """Mean wall time of the compared repeats."""
        return float(np.mean([trial.seconds for trial in self.compared]))


@dataclass(frozen=True)
class Ranking:
    """Configurations of one protocol and one level, best first.

    Attributes:
        fidelity: level of all its trials; ``None`` where a sweep has no levels.
    """

    protocol: str
    configurations: tuple[Configuration, ...]
    fidelity: int | None = None

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """The best against ``configurations[1:]``, one each; who asks for the best alone does without these tests."""
        samples = [configuration.objectives for configuration in self.configurations]
        return tuple(differences(samples, [configuration.epoch for configuration in self.configurations]))

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(trial for configuration in self.configurations for trial in configuration.trials)

    @property
    def rivals(self) -> tuple[tuple[Configuration, Difference], ...]:
        """The configurations that trained as long as the best, next best first."""
        pairs = zip(self.configurations[1:], self.differences, strict=True)
        return tuple((other, difference) for other, difference in pairs if difference.is_rival)

    @property
    def unclear(self) -> tuple[Configuration, ...]:
        """Configurations that a test was made for and that it cannot tell from the best."""
        return tuple(other for other, difference in self.rivals if difference.p is not None and not difference.is_clear)

    def difference(self, position: int) -> Difference | None:
        """The best against the configuration at ``position``; ``None`` for the best itself."""
        return self.differences[position - 1] if position else None

    def definition(self, objective: str) -> dict[str, Any]:
        """What the protocol consists of, as far as a checkpoint of one of its trials says."""
        return next((dict(t.protocols[objective]) for t in self.trials if objective in t.protocols), {})


def rankings(sweep: Sweep) -> list[Ranking]:
    """One ranking per level and protocol; the first is the one that the sweep's best is from.

    The highest level at which a trial is done is the first one, then come the others, highest first; within a level
    the protocol of most trials. Empty if no trial has an objective.
    """
    groups: dict[tuple[int | None, str], list[Trial]] = {}
    for trial in sweep.trials:
        if trial.measured:
            groups.setdefault((trial.fidelity, trial.protocol), []).append(trial)
    done = {trial.fidelity for trial in sweep.trials if trial.measured and trial.state == "done"}
    first = max((level for level in done if level is not None), default=None)

    def order(group: tuple[tuple[int | None, str], list[Trial]]) -> tuple[bool, int, int]:
        (level, _), trials = group
        return level != first, -1 if level is None else -level, -len(trials)

    ordered = sorted(groups.items(), key=order)  # stable: first seen wins a tie
    return [_ranking(protocol, trials, sweep.mode, level) for (level, protocol), trials in ordered]


def leading(found: Iterable[Ranking]) -> list[Ranking]:
    """The first ranking of each level: what compares at all, within its level."""
    by_level: dict[int | None, Ranking] = {}
    for ranking in found:
        by_level.setdefault(ranking.fidelity, ranking)
    return list(by_level.values())


def _ranking(protocol: str, trials: Sequence[Trial], mode: Mode, fidelity: int | None) -> Ranking:
    repeats: dict[str, list[Trial]] = {}
    for trial in trials:
        repeats.setdefault(identity(trial), []).append(trial)
    sign = -1.0 if mode == "max" else 1.0
    configurations = [_configuration(group) for group in repeats.values()]
    configurations.sort(key=lambda configuration: (sign * configuration.mean, configuration.trials[0].number))
    return Ranking(protocol, tuple(configurations), fidelity)


def identity(trial: Trial) -> str:
    """Equal for repeats of one configuration. Each part of a training stands for itself."""
    return text_key({key: value for key, value in trial.values.items() if key != SEED})


def _configuration(trials: Iterable[Trial]) -> Configuration:
    ordered = sorted(trials, key=lambda trial: trial.number)
    longest = max(trial.epoch for trial in ordered)
    compared: dict[int | None, Trial] = {}
    for trial in ordered:
        if trial.epoch == longest:
            compared.setdefault(trial.seed, trial)
    return Configuration(tuple(ordered), tuple(compared.values()))


def varying(trials: Iterable[Trial]) -> list[str]:
    """Searched keys in alphabetical order."""
    return sorted({key for trial in trials for key in trial.values} - ASSIGNED)


def unranked(sweep: Sweep) -> list[tuple[Trial, str]]:
    """Trials without a place in any ranking, and why."""
    return [(trial, _why(trial, sweep.objective)) for trial in sweep.trials if not trial.measured]


def _why(trial: Trial, objective: str) -> str:
    if trial.state == "failed":
        return f"failed: {trial.reason or 'no reason was recorded'}"
    if trial.epoch:
        return f"{objective} was never a finite number in {trial.epoch} epochs"
    return f"{trial.state} before its first evaluation"
