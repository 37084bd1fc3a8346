"""Patterns for the names of parameters, shared by the parameter groups and the freezing rules."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

from torch import nn

# Patterns by kind instead of by name.
KINDS = ("@norm", "@norm_weight", "@norm_bias", "@bias")

_NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)


class NamePatterns:
    """Matches the tensors of one model.

    A pattern is a glob over the whole name, case-sensitive, whose ``*`` also spans dots; or a kind: ``@norm`` is every
    tensor of a normalisation layer, ``@norm_weight`` and ``@norm_bias`` its parts, ``@bias`` every other bias.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norm_prefixes = frozenset(
            f"{name}." if name else "" for name, module in model.named_modules() if isinstance(module, _NORM_LAYERS)
        )

    def matches(self, name: str, pattern: str) -> bool:
        """Whether ``pattern`` matches the parameter or buffer called ``name``."""
        if not pattern.startswith("@"):
            return fnmatch.fnmatchcase(name, pattern)
        parent, dot, last = name.rpartition(".")
        of_norm = parent + dot in self._norm_prefixes
        if pattern == "@norm":
            return of_norm
        if pattern == "@bias":
            return last == "bias" and not of_norm
        return pattern in KINDS and last == pattern.removeprefix("@norm_") and of_norm

    def matches_any(self, name: str, patterns: Iterable[str]) -> bool:
        """Whether at least one of ``patterns`` matches ``name``."""
        return any(self.matches(name, pattern) for pattern in patterns)


def near(pattern: str, names: Iterable[str]) -> str:
    """A few of ``names`` that a pattern which matches none of them may have meant, for error messages."""
    names = [*KINDS, *names] if pattern.startswith("@") else list(names)
    found = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
    return ", ".join(found or names[:3])


def some(found: Sequence[str], limit: int = 5) -> str:
    """The first few of many things as one text, for error messages."""
    more = f", and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more
