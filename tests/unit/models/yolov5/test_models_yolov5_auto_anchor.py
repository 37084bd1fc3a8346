"""The search for anchors: fit by hand, quality, determinism, too few boxes."""

from __future__ import annotations

import numpy as np
import pytest

from sensorlab.errors import UserError
from sensorlab.models.yolov5 import COCO_ANCHORS, auto_anchor, check_anchors
from sensorlab.models.yolov5.anchors import anchor_tensor
from sensorlab.models.yolov5.auto_anchor import anchor_fit, evolve_anchors, kmeans_anchors


def clusters(seed: int = 0) -> np.ndarray:
    """(450, 2) around nine sizes that COCO's anchors fit badly: very long boxes."""
    random = np.random.default_rng(seed)
    centers = np.array([[w, w / 12] for w in (40, 60, 90, 130, 180, 240, 310, 400, 500)])
    return np.concatenate([center * random.uniform(0.95, 1.05, (50, 2)) for center in centers])


def test_fit_worked_out_by_hand():
    sizes = np.array([[10.0, 10.0], [20.0, 30.0], [100.0, 10.0], [0.0, 5.0]])  # the last has no area: not counted
    fit = anchor_fit(sizes, np.array([[10.0, 10.0], [20.0, 20.0]]))
    assert fit.recall == pytest.approx(2 / 3)
    assert fit.anchors_per_box == pytest.approx(4 / 3)  # both anchors fit the first two boxes
    assert fit.fitness == pytest.approx((1 + 2 / 3) / 3)


def test_anchors_that_fit_are_kept():
    sizes = np.array(COCO_ANCHORS).reshape(-1, 2) * 1.5
    check = check_anchors(sizes, COCO_ANCHORS)
    assert not check.replaced
    assert check.before == check.after
    assert check.anchors.tolist() == np.array(COCO_ANCHORS).tolist()


def test_anchors_that_do_not_fit_are_replaced_in_order_of_area():
    check = check_anchors(clusters(), COCO_ANCHORS, generations=100)
    assert check.replaced
    assert check.before.recall < 0.98
    assert check.after.recall == 1
    assert check.after.fitness > 0.9
    assert check.anchors.shape == (3, 3, 2)
    assert (np.diff(check.anchors.prod(axis=2).ravel()) >= 0).all()
    anchor_tensor(check.anchors.tolist())  # fit to build a model


def test_clusters_are_found():
    found = kmeans_anchors(clusters(), 9)
    np.testing.assert_allclose(found[:, 0], (40, 60, 90, 130, 180, 240, 310, 400, 500), rtol=0.05)


def test_evolution_only_improves():
    start = kmeans_anchors(clusters(), 6)
    before = anchor_fit(clusters(), start).fitness
    after = anchor_fit(clusters(), evolve_anchors(clusters(), start, generations=200)).fitness
    assert after > before
    assert anchor_fit(clusters(), evolve_anchors(clusters(), start, generations=0)).fitness == before


def test_the_seed_decides():
    sizes = np.random.default_rng(0).uniform(2, 20, (100, 2))
    one, same, other = (check_anchors(sizes, COCO_ANCHORS, generations=20, seed=s).anchors for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_worse_anchors_are_not_taken(monkeypatch):
    monkeypatch.setattr(auto_anchor, "evolve_anchors", lambda *arguments: np.full((9, 2), 2.0))
    assert not check_anchors(clusters(), COCO_ANCHORS).replaced


def test_only_so_many_boxes_are_searched(monkeypatch):
    monkeypatch.setattr(auto_anchor, "MAX_BOXES", 90)
    found = kmeans_anchors(clusters(), 9)
    np.testing.assert_allclose(found[:, 0], (40, 60, 90, 130, 180, 240, 310, 400, 500), rtol=0.05)


def test_too_few_sizes():
    with pytest.raises(UserError, match="2 different box sizes of at least 2 px are too few for 9 anchors"):
        check_anchors(np.array([[500.0, 5.0], [5.0, 500.0], [5.0, 500.0]]), COCO_ANCHORS)
    with pytest.raises(UserError, match="no boxes with an area"):
        check_anchors(np.zeros((3, 2)), COCO_ANCHORS)
