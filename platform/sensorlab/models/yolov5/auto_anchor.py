"""Anchors that fit a data set: k-means over the sizes of its boxes, refined by random mutation (YOLOv5's AutoAnchor).

All sizes are (..., 2) widths and heights in pixels of the training images, float64 inside. Results are a function of
the sizes and the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensorlab.errors import UserError

# Anchors with a smaller recall than this are replaced.
MIN_RECALL = 0.98
# Boxes smaller than this, in both directions, take no part in the search; no anchor has a smaller side. Pixels.
MIN_SIDE = 2.0
# The search looks at no more boxes than this, evenly taken: it compares them with all anchors a thousand times.
MAX_BOXES = 50_000

_RESTARTS, _ITERATIONS = 10, 30  # of k-means
_MUTATION_PROBABILITY, _MUTATION_SIGMA = 0.9, 0.1


@dataclass(frozen=True)
class AnchorFit:
    """How well anchors fit boxes."""

    recall: float  # best possible recall: share of boxes that at least one anchor fits
    anchors_per_box: float  # mean number of anchors that fit a box
    fitness: float  # mean over the boxes of the best min(ratio, 1 / ratio), 0 where no anchor fits


@dataclass(frozen=True)
class AnchorCheck:
    """What :func:`check_anchors` decided."""

    anchors: np.ndarray  # (levels, A, 2) float64: those to train with
    before: AnchorFit
    after: AnchorFit
    replaced: bool


def anchor_fit(sizes: np.ndarray, anchors: np.ndarray, max_ratio: float = 4.0) -> AnchorFit:
    """Fit of anchors (..., 2) to boxes (N, 2); both sides must differ by less than ``max_ratio``."""
    closeness = _closeness(_sizes(sizes), anchors)
    fits = closeness > 1 / max_ratio  # (N, K)
    best = closeness.max(axis=1)
    return AnchorFit(
        recall=float((best > 1 / max_ratio).mean()),
        anchors_per_box=float(fits.sum(axis=1).mean()),
        fitness=_fitness(closeness, max_ratio),
    )


def check_anchors(
    sizes: np.ndarray,
    anchors: Sequence[Sequence[Sequence[float]]],
    *,
    max_ratio: float = 4.0,
    generations: int = 1000,
    seed: int = 0,
) -> AnchorCheck:
    """Keep the anchors if they can recall 98 % of the boxes, else look for better ones.

    Args:
        sizes: (N, 2) of all boxes of the training split.
        anchors: (levels, A, 2) the present ones; the finest level first.
        max_ratio: between the sides of a box and of an anchor that it fits.
        generations: of :func:`evolve_anchors`.
        seed: of the search.

    Raises:
        UserError: the anchors do not fit and there are too few boxes to find others.
    """
    present = np.asarray(anchors, np.float64)
    before = anchor_fit(sizes, present, max_ratio)
    if before.recall >= MIN_RECALL:
        return AnchorCheck(present, before, before, replaced=False)
    number = present.shape[0] * present.shape[1]
    found = evolve_anchors(sizes, kmeans_anchors(sizes, number, seed), max_ratio, generations, seed)
    found = found.reshape(present.shape)
    after = anchor_fit(sizes, found, max_ratio)
    if after.recall <= before.recall:
        return AnchorCheck(present, before, before, replaced=False)
    return AnchorCheck(found, before, after, replaced=True)


def kmeans_anchors(sizes: np.ndarray, number: int, seed: int = 0) -> np.ndarray:
    """(number, 2) centres of the sizes, smallest area first: the best of several k-means runs on whitened sizes.

    Raises:
        UserError: fewer different sizes than centres.
    """
    sizes = _searched(sizes)
    scale = sizes.std(axis=0)
    points = np.unique(sizes, axis=0)
    if len(points) < number:
        raise UserError(
            f"{len(points)} different box sizes of at least {MIN_SIDE:g} px are too few for {number} anchors; "
            "give the anchors in the configuration instead"
        )
    scale[scale == 0] = 1
    random = np.random.default_rng(seed)
    runs = [_kmeans(sizes / scale, number, random) for _ in range(_RESTARTS)]
    centers, _ = min(runs, key=lambda run: run[1])
    return _by_area(centers * scale)


def evolve_anchors(
    sizes: np.ndarray, anchors: np.ndarray, max_ratio: float = 4.0, generations: int = 1000, seed: int = 0
) -> np.ndarray:
    """Anchors (K, 2) after random mutation, smallest area first; a mutation that raises the fitness is kept."""
    sizes = _searched(sizes)
    random = np.random.default_rng(seed)
    best = np.maximum(np.asarray(anchors, np.float64), MIN_SIDE)
    fitness = _fitness(_closeness(sizes, best), max_ratio)
    for _ in range(generations):
        mutated = np.maximum(best * _mutation(best.shape, random), MIN_SIDE)
        candidate = _fitness(_closeness(sizes, mutated), max_ratio)
        if candidate > fitness:
            best, fitness = mutated, candidate
    return _by_area(best)


def _mutation(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Factors in [0.3, 3], not all 1; one draw sets how far all of them go."""
    while True:
        chosen = random.random(shape) < _MUTATION_PROBABILITY
        step = random.random() * random.standard_normal(shape) * _MUTATION_SIGMA
        factors = np.clip(1 + chosen * step, 0.3, 3.0)
        if (factors != 1).any():
            return factors


def _kmeans(points: np.ndarray, number: int, random: np.random.Generator) -> tuple[np.ndarray, float]:
    """Lloyd's algorithm from k-means++ starts (Arthur and Vassilvitskii 2007): centres (number, 2), mean distance."""
    centers = points[random.integers(len(points), size=1)]
    while len(centers) < number:
        distance = _squared_distances(points, centers).min(axis=1)
        centers = np.concatenate([centers, points[random.choice(len(points), 1, p=distance / distance.sum())]])
    for _ in range(_ITERATIONS):
        nearest = _squared_distances(points, centers).argmin(axis=1)
        counts = np.bincount(nearest, minlength=number)
        sums = np.stack([np.bincount(nearest, points[:, axis], number) for axis in range(2)], axis=1)
        # A centre that lost all its points stays where it is.
        moved = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers, float(np.sqrt(_squared_distances(points, centers).min(axis=1)).mean())


def _squared_distances(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """(N, K)."""
    return np.square(points[:, None] - centers[None]).sum(axis=2)


def _closeness(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(N, K): the smaller of ratio and inverse ratio of the sides, the worse side counts. 1: equal sizes."""
    ratio = sizes[:, None] / anchors.reshape(1, -1, 2)  # (N, K, 2)
    return np.minimum(ratio, 1 / ratio).min(axis=2)


def _fitness(closeness: np.ndarray, max_ratio: float) -> float:
    best = closeness.max(axis=1)
    return float((best * (best > 1 / max_ratio)).mean())


def _sizes(sizes: np.ndarray) -> np.ndarray:
    """(N, 2) float64 of the boxes with an area.

    Raises:
        UserError: there is none.
    """
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    sizes = sizes[(sizes > 0).all(axis=1)]
    if not len(sizes):
        raise UserError("anchors cannot be compared with the data: it has no boxes with an area")
    return sizes


def _searched(sizes: np.ndarray) -> np.ndarray:
    """The sizes that a search looks at: not tiny, not too many."""
    sizes = _sizes(sizes)
    sizes = sizes[(sizes >= MIN_SIDE).any(axis=1)]
    if len(sizes) <= MAX_BOXES:
        return sizes
    return sizes[np.linspace(0, len(sizes) - 1, MAX_BOXES).astype(np.int64)]


def _by_area(anchors: np.ndarray) -> np.ndarray:
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]
