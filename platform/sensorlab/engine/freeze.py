"""Freezing: which parameters are trained in which epochs, and which norm layers keep their statistics.

What is frozen is a pure function of the epoch, so a resumed run freezes what the uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field, model_validator
from torch import nn

from sensorlab.config import StrictModel
from sensorlab.engine.duration import Duration
from sensorlab.engine.patterns import NamePatterns, near
from sensorlab.errors import UserError


class FreezeRule(StrictModel):
    """Keeps the parameters whose name matches one of the patterns (as in ``optim.groups``) at their values.

    Where several rules match a parameter, the last one alone decides, as in SiamFC++: its rule ``(regex, epoch,
    freezed: false)`` is ``until: <epoch> epochs`` here, and with ``freezed: true`` it is ``start: <epoch> epochs``.

    The running statistics of norm layers still follow the data, as in SiamFC++ and CenterFusion, unless
    ``norm_statistics``: then every norm layer whose ``<layer>.running_mean`` the patterns match works with the
    statistics that it has (``norm_eval`` of mmdetection). ``match: ["backbone.*.running_*"]`` holds them alone.
    """

    match: tuple[str, ...] = Field(min_length=1)
    exclude: tuple[str, ...] = ()  # patterns of what this rule leaves alone
    start: Duration | None = None  # epochs that are trained before; None: none
    until: Duration | None = None  # epochs after which it is trained; None: never
    norm_statistics: bool = False  # hold the running statistics of the norm layers too

    @model_validator(mode="after")
    def _in_epochs(self) -> FreezeRule:
        for key, duration in (("start", self.start), ("until", self.until)):
            if duration is not None and duration.unit != "epochs":
                raise ValueError(f"what is frozen changes between epochs only: give {key} in epochs, not {duration}")
        if not self.first_epoch < self.end_epoch:
            raise ValueError(f"nothing is frozen from {self.start} on until {self.until}; until must be later")
        return self

    @property
    def first_epoch(self) -> int:
        return self.start.count if self.start else 0

    @property
    def end_epoch(self) -> float:
        return self.until.count if self.until else math.inf

    def holds(self, epoch: int) -> bool:
        """Whether the rule freezes what it matches in ``epoch``, counted from 0."""
        return self.first_epoch <= epoch < self.end_epoch


class Freezing:
    """The freezing rules of a training, resolved for its model.

    Parameters that the model itself does not train are left alone. Those that no epoch trains lose ``requires_grad``
    here, so that an optimiser built afterwards does not hold them. The others are in it from the start: while they are
    frozen they have no gradient, so it skips them, without weight decay, and keeps their momentum.

    Raises:
        UserError: a pattern matches nothing, a rule has no effect, or in some epoch nothing would be trained.
    """

    def __init__(self, model: nn.Module, rules: Sequence[FreezeRule]) -> None:
        self._model = model
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        layers = [name for name, module in model.named_modules() if _has_statistics(module)]
        # The name of a layer's running mean stands for its statistics, so that one matcher serves both.
        statistics = {f"{layer}.running_mean" if layer else "running_mean": layer for layer in layers}
        owners = _owners(rules, NamePatterns(model), trained, list(statistics))
        self._parameters = {name: rule for name, rule in owners.items() if name not in statistics}
        self._layers = {statistics[name]: rule for name, rule in owners.items() if name in statistics}
        _check_something_is_trained(rules, trained, self._parameters)
        for name, rule in self._parameters.items():
            if rule.first_epoch == 0 and math.isinf(rule.end_epoch):
                model.get_parameter(name).requires_grad_(False)

    def frozen_parameters(self, epoch: int) -> frozenset[str]:
        """Names of the parameters that ``epoch``, counted from 0, does not train because of a rule."""
        return frozenset(name for name, rule in self._parameters.items() if rule.holds(epoch))

    def held_norms(self, epoch: int) -> frozenset[str]:
        """Names of the norm layers whose running statistics do not move in ``epoch``."""
        return frozenset(name for name, rule in self._layers.items() if rule.holds(epoch))

    def apply(self, epoch: int) -> bool:
        """Freeze and thaw for ``epoch``; to be called after every ``model.train()``, which wakes the held norm layers.

        Returns:
            Whether the set of trained parameters changed. Data parallelism looks at it once, when it wraps a module,
            so the network must then be wrapped anew.
        """
        changed = False
        for name, rule in self._parameters.items():
            parameter, trains = self._model.get_parameter(name), not rule.holds(epoch)
            if parameter.requires_grad != trains:
                changed = True
                parameter.requires_grad_(trains)
                parameter.grad = None  # one that is left over would still be applied
        for name in self.held_norms(epoch):
            self._model.get_submodule(name).eval()
        return changed


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None


def _owners(
    rules: Sequence[FreezeRule], patterns: NamePatterns, trained: Sequence[str], statistics: Sequence[str]
) -> dict[str, FreezeRule]:
    """The rule that decides on each name: the last one that matches it. Names that no rule matches are left out."""
    owners: dict[str, int] = {}
    for index, rule in enumerate(rules):
        names = [*trained, *statistics] if rule.norm_statistics else trained
        for pattern in (*rule.match, *rule.exclude):
            if not any(patterns.matches(name, pattern) for name in names):
                hint = f"the model has {near(pattern, names)}"
                if any(patterns.matches(name, pattern) for name in statistics):
                    hint = "it matches running statistics only, which norm_statistics: true would hold"
                raise UserError(f"train.freeze[{index}]: {pattern!r} matches no trainable parameter; {hint}")
        for name in names:
            if patterns.matches_any(name, rule.match) and not patterns.matches_any(name, rule.exclude):
                owners[name] = index
    for index, rule in enumerate(rules):
        if index not in owners.values():
            raise UserError(
                f"train.freeze[{index}] (match {', '.join(rule.match)}) has no effect: its own exclude or later rules "
                "take away everything that it matches"
            )
    return {name: rules[index] for name, index in owners.items()}


def _check_something_is_trained(
    rules: Sequence[FreezeRule], trained: Sequence[str], owners: dict[str, FreezeRule]
) -> None:
    for epoch in sorted({0, *(rule.first_epoch for rule in rules)}):  # what is frozen grows in these epochs only
        if trained and all(name in owners and owners[name].holds(epoch) for name in trained):
            raise UserError(
                f"train.freeze: epoch {epoch} (counted from 0) would train nothing, all {len(trained)} trainable "
                "parameters are frozen; exclude some, or thaw them earlier"
            )
