"""Orders that draw samples by the classes of their objects. Pure functions, each epoch of the same length.

How often each sample comes is drawn anew for every epoch, from a generator keyed by (purpose, dataset digest, seed,
epoch); where the copies lie in the epoch is decided by :func:`sensorlab.data.order.epoch_order`, as in a plain shuffle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sensorlab.data.order import OrderPolicy, Scores, SplitFacts, epoch_order
from sensorlab.data.random_streams import keyed_generator
from sensorlab.data.sampling_tables import ClassTable, SampleGroups
from sensorlab.errors import UserError


@dataclass(frozen=True)
class ClassBalancedOrder:
    """CBGS (Zhu et al. 2019, arXiv 1908.09492): each class gets the same number of draws from its samples.

    With C classes and n_c samples that hold class c, every class gets ``sum(n_c) // C`` draws, so an epoch is longer
    than the split (4.5 times on nuScenes). As published, samples without any object never come, and a sample of several
    classes is drawn for each of them. Unlike in the published code the draws of a class are spread evenly (two samples
    of it never differ by more than one draw), and every epoch draws anew instead of repeating the first choice.
    """

    table: ClassTable
    window_row_groups: int

    adaptive: ClassVar[bool] = False

    @property
    def draws_per_class(self) -> int:
        return len(self.table.rows) // len(self.table.classes)

    def length(self, facts: SplitFacts) -> int:
        return self.draws_per_class * len(self.table.classes)

    def order(self, facts: SplitFacts, seed: int, epoch: int, scores: Scores | None = None) -> np.ndarray:
        copies = np.zeros(self.table.num_samples, np.int64)
        by_class = np.argsort(self.table.labels, kind="stable")
        starts = np.cumsum(self.table.samples_per_class)[:-1]
        for label, entries in enumerate(np.split(by_class, starts)):
            generator = keyed_generator("class_balanced", facts.digest, seed, epoch, self.table.classes[label])
            share = np.full(len(entries), self.draws_per_class / len(entries))
            # A sample has one entry of a class, so no row is written twice.
            copies[self.table.rows[entries]] += rounded(share, self.draws_per_class, generator)
        return epoch_order(facts.row_groups, facts.digest, seed, epoch, self.window_row_groups, copies)


@dataclass(frozen=True)
class RepeatFactorOrder:
    """Repeat-factor sampling (Gupta et al. 2019, LVIS, arXiv 1908.03195).

    Sample i comes ``r_i = max(1, sqrt(threshold / f_c) for its classes c)`` times on average, where f_c is the share of
    the samples that hold class c. Fractions are rounded at random in every epoch, and together: the epoch always has
    ``ceil(sum(r_i))`` rows, and each sample comes floor(r_i) or ceil(r_i) times (one more at most where the split is so
    small that rounding the sum matters).
    """

    table: ClassTable
    threshold: float
    window_row_groups: int

    adaptive: ClassVar[bool] = False

    @property
    def factors(self) -> np.ndarray:
        """(N,) float64 r_i."""
        share = self.table.samples_per_class / self.table.num_samples
        of_class = np.maximum(1.0, np.sqrt(self.threshold / share))
        factors = np.ones(self.table.num_samples)
        np.maximum.at(factors, self.table.rows, of_class[self.table.labels])
        return factors

    def length(self, facts: SplitFacts) -> int:
        return math.ceil(math.fsum(self.factors))

    def order(self, facts: SplitFacts, seed: int, epoch: int, scores: Scores | None = None) -> np.ndarray:
        generator = keyed_generator("repeat_factor", facts.digest, seed, epoch)
        factors = self.factors
        whole = np.floor(factors).astype(np.int64)
        copies = whole + rounded(factors - whole, self.length(facts) - int(whole.sum()), generator)
        return epoch_order(facts.row_groups, facts.digest, seed, epoch, self.window_row_groups, copies)


@dataclass(frozen=True)
class ImageWeightsOrder:
    """YOLOv5's image weights: samples are drawn with replacement, those of rare and of difficult classes more often.

    ``weight of class c = (1 / objects of c, normalised to sum 1) * (1 - score_c)^2``, and a sample has the sum of the
    weights of its objects. Scores are 0 before the first evaluation; a class without a score (or with one that is not
    finite) has the mean of the others. An epoch has as many draws as the split has samples; as in the original, a
    sample without objects never comes. Where every score is 1 and all weights vanish, the scores are left out.
    """

    table: ClassTable
    window_row_groups: int

    adaptive: ClassVar[bool] = True

    def class_weights(self, scores: Scores | None) -> np.ndarray:
        """(C,) float64.

        Raises:
            UserError: a score outside [0, 1], or scores of other classes than those of the samples.
        """
        inverse = 1.0 / self.table.objects_per_class
        frequency = inverse / math.fsum(inverse)
        weights = frequency * (1.0 - self._scores(scores)) ** 2
        return weights if weights.any() else frequency

    def _scores(self, scores: Scores | None) -> np.ndarray:
        known = {name: score for name, score in (scores or {}).items() if math.isfinite(score)}
        if not known:
            return np.zeros(len(self.table.classes))
        if not set(known) & set(self.table.classes):
            raise UserError(
                "data.sampling.name=image_weights needs scores of the classes of the training samples: the task "
                f"scores {sorted(known)}, and counts {list(self.table.classes)} in the samples"
            )
        if outside := {name: score for name, score in known.items() if not 0.0 <= score <= 1.0}:
            raise UserError(f"data.sampling.name=image_weights needs class scores in [0, 1], found {outside}")
        mean = math.fsum(known[name] for name in sorted(known)) / len(known)
        return np.array([known.get(name, mean) for name in self.table.classes])

    def length(self, facts: SplitFacts) -> int:
        return facts.num_samples

    def order(self, facts: SplitFacts, seed: int, epoch: int, scores: Scores | None = None) -> np.ndarray:
        weights = self.table.weighted_objects(self.class_weights(scores))
        ends = np.cumsum(weights)
        draws = keyed_generator("image_weights", facts.digest, seed, epoch).random(self.length(facts)) * ends[-1]
        # "right": a row whose weight is 0 has an empty interval. Rounding may put a draw at the very end.
        drawn = np.minimum(np.searchsorted(ends, draws, side="right"), np.flatnonzero(weights)[-1])
        copies = np.bincount(drawn, minlength=self.table.num_samples)
        return epoch_order(facts.row_groups, facts.digest, seed, epoch, self.window_row_groups, copies)


@dataclass(frozen=True)
class GroupedOrder:
    """The rows of another policy, arranged so that each global batch holds samples of one group (aspect ratio).

    Rows keep their order; a batch comes where its last row would (as with detectron2's and mmdetection's samplers that
    collect a batch of each group). What is left of the groups at the end of an epoch:

    - ``drop``: there are as many batches as without groups. The largest left-overs are filled up to whole batches with
      rows from the start of the group, the others are left out.
    - ``pad``: every row comes: each left-over is filled up. An epoch has one batch more per further group than without
      groups, whether this epoch's draws need it (it repeats rows of the largest group if not).
    """

    policy: OrderPolicy
    groups: SampleGroups
    global_batch: int
    pad: bool

    @property
    def adaptive(self) -> bool:
        return self.policy.adaptive

    def batches(self, facts: SplitFacts) -> int:
        whole, rest = divmod(self.policy.length(facts), self.global_batch)
        further = np.count_nonzero(self.groups.sizes) - 1
        return whole + (rest > 0) + further if self.pad else whole

    def length(self, facts: SplitFacts) -> int:
        return self.batches(facts) * self.global_batch

    def order(self, facts: SplitFacts, seed: int, epoch: int, scores: Scores | None = None) -> np.ndarray:
        rows = self.policy.order(facts, seed, epoch, scores)
        return rows[grouped_batches(self.groups.of_row[rows], self.global_batch, self.batches(facts))].reshape(-1)


def grouped_batches(group: np.ndarray, size: int, count: int) -> np.ndarray:
    """Positions (``count``, ``size``) of the elements of each batch, each batch of one group.

    Args:
        group: (L,) int64 group of each position.
        count: number of batches; at least that of the whole ones.
    """
    members = [np.flatnonzero(group == value) for value in np.unique(group)]
    whole = np.concatenate([own[: len(own) // size * size].reshape(-1, size) for own in members])
    whole = whole[np.argsort(whole[:, -1], kind="stable")]
    # Most left-over rows first, and then the largest group again and again.
    filled = [(len(own) % size, len(own), np.concatenate([own[len(own) // size * size :], own])) for own in members]
    filled.sort(key=lambda entry: (-entry[0], -entry[1]))
    missing = count - len(whole)
    rests = [np.resize(rows, size) for left, _, rows in filled if left][:missing]
    rests += [np.resize(max(members, key=len), size)] * (missing - len(rests))
    return np.concatenate([whole, np.array(rests, np.int64).reshape(-1, size)])


def rounded(expected: np.ndarray, total: int, generator: np.random.Generator) -> np.ndarray:
    """Random integers (M,) with the given means that add up to ``total`` exactly.

    Systematic sampling: the intervals of the means, in random order, are laid side by side and counted by equidistant
    marks with one random offset, so that each integer is its mean rounded up or down.

    Args:
        expected: (M,) float64 means, at least 0; scaled so that they add up to ``total``.
    """
    if total == 0:
        return np.zeros(len(expected), np.int64)
    order = np.argsort(generator.random(len(expected)), kind="stable")
    ends = np.cumsum(expected[order])
    ends = ends / ends[-1] * total
    ends[-1] = total  # the marks must not miss the end by a rounding error
    marks = np.floor(ends + generator.random()).astype(np.int64)
    counts = np.empty(len(expected), np.int64)
    counts[order] = np.diff(marks, prepend=0)
    return counts
