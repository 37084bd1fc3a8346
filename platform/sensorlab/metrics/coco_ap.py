"""Average precision and recall as COCO defines them (pycocotools COCOeval, "bbox"), over all thresholds at once.

The definition: within one image and class, detections in score order each take the free truth of the highest overlap
that reaches the threshold; truths that count are preferred to ignored ones. An ignored truth is a crowd (it is matched
by the share of the detection inside, any number of times) or a box outside the range of areas (by IoU, once); what
matches one is not counted, and neither is an unmatched detection outside the range. Precision is read at 101 recalls
off its upper envelope.

pycocotools walks over areas, thresholds, detections and truths in Python. Here the step is the rank of a detection in
its group: the best candidates of all groups take their truths together, for all areas and thresholds, then all second
ones. Only pairs that reach the lowest threshold exist, so a step is small.

Axes: T thresholds, R recalls, C classes, A areas, L limits (maximal detections), N truths, M detections, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sensorlab.metrics.box_sets import Detections, Pairs, Truths, group_numbers, overlapping_pairs, rank_in_group, take

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALLS = np.linspace(0.0, 1.0, 101)
SMALL, LARGE = 32.0**2, 96.0**2  # px^2
AREAS = {"all": (0.0, 1e10), "small": (0.0, SMALL), "medium": (SMALL, LARGE), "large": (LARGE, 1e10)}  # both inclusive
LIMITS = (1, 10, 100)
HIGHEST = 1 - 1e-10  # the strictest threshold that an overlap of two equal boxes surely reaches


@dataclass(frozen=True)
class COCOResult:
    """Precision and recall on all axes; NaN where a class has no truth in the range of areas."""

    precision: np.ndarray  # (T, R, C, A) float64, with the last limit
    recall: np.ndarray  # (T, C, A, L) float64
    counts: np.ndarray  # (C, A) int64 truths that count
    thresholds: tuple[float, ...]  # T
    areas: tuple[str, ...]  # A names
    limits: tuple[int, ...]  # L

    def ap(self, threshold: float | None = None, area: str = "all") -> np.ndarray:
        """(C,) average precision: mean over recalls, and over thresholds unless one is named; NaN without truths."""
        chosen = slice(None) if threshold is None else [_position(self.thresholds, threshold)]
        return self.precision[chosen, :, :, self.areas.index(area)].mean(axis=(0, 1))

    def ar(self, limit: int | None = None, area: str = "all") -> np.ndarray:
        """(C,) recall with at most ``limit`` detections of a class in an image, mean over thresholds."""
        position = -1 if limit is None else self.limits.index(limit)
        return self.recall[:, :, self.areas.index(area), position].mean(axis=0)

    @property
    def pr_curve(self) -> np.ndarray:
        """(C, R) precision at the recalls and the first threshold, all sizes."""
        return self.precision[0, :, :, 0].T

    def truths(self) -> np.ndarray:
        """(C,) int64 truths of all sizes that count."""
        return self.counts[:, 0]

    def per_class(self) -> dict[str, np.ndarray]:
        """The numbers of :meth:`summary` for each class, (C,) each."""
        last, sizes = self.limits[-1], self.areas[1:]
        numbers = {"ap": self.ap()}
        numbers |= {f"ap{100 * t:.0f}": self.ap(t) for t in (0.5, 0.75) if np.isclose(self.thresholds, t).any()}
        numbers |= {f"ap_{area}": self.ap(area=area) for area in sizes}
        numbers |= {f"ar{limit}": self.ar(limit) for limit in self.limits}
        return numbers | {f"ar_{area}": self.ar(last, area) for area in sizes}

    def summary(self) -> dict[str, float]:
        """The twelve COCO numbers by name (with other thresholds and limits: those there are); NaN for no truths."""
        return {name: mean_or_nan(values) for name, values in self.per_class().items()}


def coco_ap(
    detections: Detections,
    truths: Truths,
    num_classes: int,
    *,
    thresholds: tuple[float, ...] = IOU_THRESHOLDS,
    limits: tuple[int, ...] = LIMITS,
    areas: dict[str, tuple[float, float]] | None = None,
    crowds: bool = True,
) -> COCOResult:
    """Precision and recall of all classes, IoU thresholds, ranges of areas and limits.

    Args:
        detections: in any order; of equal scores in one image and class the earlier one comes first.
        truths: in any order; those with ``ignore`` set never count.
        num_classes: C; classes are 0 .. C-1.
        thresholds: of the overlap, ascending.
        limits: maximal detections of a class in an image, ascending.
        areas: name to (lowest, highest) area in px^2, both inclusive; the first is that of all sizes.
        crowds: ignored truths are crowds, as COCO has them; else single objects.
    """
    ranges = AREAS if areas is None else areas
    detections = detections.ranked()
    rank = rank_in_group(group_numbers(detections, truths)[0])
    kept = rank < limits[-1]
    detections, rank = take(detections, kept), rank[kept]
    levels = np.minimum(thresholds, HIGHEST)
    bounds = np.asarray(list(ranges.values()))  # (A, 2)
    ignored = truths.ignore | ~_inside(truths.area, bounds)  # (A, N)
    crowd = truths.ignore if crowds else np.zeros(len(truths), bool)
    pairs = overlapping_pairs(detections, truths, float(levels[0]), crowd=crowd)
    matched, excused = match(pairs, rank, levels, ignored, crowd)  # (A, T, M)
    # The sizes of detections as pycocotools has them: width times height.
    size = (detections.boxes[:, 2:] - detections.boxes[:, :2]).prod(axis=1)
    excused |= ~matched & ~_inside(size, bounds)[:, None]
    counts = np.stack([np.bincount(truths.classes[~row], minlength=num_classes) for row in ignored], axis=1)  # (C, A)
    precision = np.full((len(levels), len(RECALLS), num_classes, len(ranges)), np.nan)
    recall = np.full((len(levels), num_classes, len(ranges), len(limits)), np.nan)
    ends = np.searchsorted(detections.classes, np.arange(num_classes + 1))
    for number in np.flatnonzero(counts.any(axis=1)):
        members = slice(ends[number], ends[number + 1])  # m detections of the class, image by image
        found = matched[:, :, members] & ~excused[:, :, members]  # (A, T, m)
        wrong = ~matched[:, :, members] & ~excused[:, :, members]
        recall[:, number] = _recall(found, rank[members], counts[number], limits)
        order = np.argsort(-detections.scores[members], kind="stable")  # of equal scores the lower image first
        precision[:, :, number] = _precision(found[:, :, order], wrong[:, :, order], counts[number])
    return COCOResult(precision, recall, counts, thresholds, tuple(ranges), limits)


def match(
    pairs: Pairs, rank: np.ndarray, levels: np.ndarray, ignored: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections take a truth, and which of them one that is ignored.

    Args:
        pairs: all pairs that reach the lowest level.
        rank: (M,) place of each detection in its group, in score order.
        levels: (T,) thresholds.
        ignored: (A, N) bool.
        crowd: (N,) bool: truths that any number of detections may take.

    Returns:
        matched, excused: (A, T, M) bool.
    """
    shape = len(ignored), len(levels)
    taken = np.zeros((*shape, ignored.shape[1]), bool)  # (A, T, N)
    matched, excused = np.zeros((2, *shape, len(rank)), bool)
    num_pairs = len(pairs.overlap)
    # One whole number orders the candidates of a detection: counting before ignored, then the overlap, then (as
    # pycocotools has it) the later truth of equal ones. It is unique, so the largest names the pair.
    by_overlap = np.lexsort((pairs.truth, pairs.overlap))
    preference = np.empty(num_pairs, np.int64)
    preference[by_overlap] = np.arange(num_pairs)
    for step in _by_rank(rank[pairs.detection]):  # positions of the pairs of this rank, sorted by detection
        truth = pairs.truth[step]
        free = ~taken[:, :, truth] | crowd[truth]  # (A, T, p)
        possible = free & (pairs.overlap[step] >= levels[:, None])
        value = preference[step] + num_pairs * ~ignored[:, truth]  # (A, p)
        detection, start = np.unique(pairs.detection[step], return_index=True)  # (d,)
        best = np.maximum.reduceat(np.where(possible, value[:, None], -1), start, axis=2)  # (A, T, d)
        area, level, column = np.nonzero(best >= 0)
        winner = best[area, level, column]
        taken[area, level, pairs.truth[by_overlap[winner % num_pairs]]] = True
        matched[area, level, detection[column]] = True
        excused[area, level, detection[column]] = winner < num_pairs
    return matched, excused


def _by_rank(rank: np.ndarray) -> list[np.ndarray]:
    """Positions of the elements of each rank that occurs, ranks ascending, positions ascending within them."""
    order = np.argsort(rank, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(rank[order])) + 1) if len(rank) else []


def _precision(found: np.ndarray, wrong: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(T, R, A) precision of one class at the recalls; NaN without truths.

    The envelope at recall r is the precision at the first detection with which c truths are found, c the smallest
    number of truths that reaches r: whole numbers are compared, not quotients.

    Args:
        found, wrong: (A, T, m) bool, detections in score order.
        counts: (A,) truths.
    """
    num_areas, num_levels, _ = found.shape
    precision = np.full((num_levels, len(RECALLS), num_areas), np.nan)
    hits = np.cumsum(found, axis=2)
    shares = hits / np.maximum(hits + np.cumsum(wrong, axis=2), 1)
    envelope = np.maximum.accumulate(shares[:, :, ::-1], axis=2)[:, :, ::-1]
    for area in np.flatnonzero(counts):
        needed = np.searchsorted(np.arange(counts[area] + 1) / counts[area], RECALLS)  # (R,) truths
        for level in range(num_levels):
            first = np.searchsorted(hits[area, level], needed)  # (R,) positions; the end where never reached
            precision[level, :, area] = np.append(envelope[area, level], 0.0)[first]
    return precision


def _recall(found: np.ndarray, rank: np.ndarray, counts: np.ndarray, limits: tuple[int, ...]) -> np.ndarray:
    """(T, A, L) recall of one class, from ``found`` (A, T, m), the ranks (m,) and the truths (A,); NaN without them."""
    hits = np.stack([found[:, :, rank < limit].sum(axis=2) for limit in limits], axis=-1)  # (A, T, L)
    total = np.where(counts > 0, counts, np.nan)[:, None, None]
    return (hits / total).transpose(1, 0, 2)


def _inside(area: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(A, n) bool: areas (n,) within the bounds (A, 2), both inclusive."""
    return (area >= bounds[:, :1]) & (area <= bounds[:, 1:])


def _position(thresholds: tuple[float, ...], threshold: float) -> int:
    near = np.flatnonzero(np.isclose(thresholds, threshold))
    if not len(near):
        raise ValueError(f"IoU {threshold:g} is none of the thresholds {', '.join(f'{t:g}' for t in thresholds)}")
    return int(near[0])


def mean_or_nan(values: np.ndarray) -> float:
    """Mean of the values that are numbers; NaN if none is."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
