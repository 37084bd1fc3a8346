"""Detections: what is selected, suppressed and clipped, and in which pixels."""

import torch
from torch import Tensor

from sensorlab.models.retinanet import AnchorGrid, Detections, SelectionOptions, detections
from sensorlab.models.retinanet.coder import encode

GRID = AnchorGrid(strides=(16,), ratios=(1.0,), scales_per_octave=1)  # squares of 64 px
SIZE = (32, 64)  # 2 x 4 cells


def predicted(boxes: dict[int, list[float]], scores: dict[tuple[int, int], float], grid: AnchorGrid = GRID) -> Tensor:
    """One level of two classes: ``boxes`` by cell, ``scores`` by cell and class, 0 elsewhere."""
    anchors = grid.levels(SIZE)[0]
    level = torch.zeros(len(anchors), 6)
    level[:, 4:] = -20
    for cell, box in boxes.items():
        level[cell, :4] = encode(anchors[cell], torch.tensor(box), grid.offset)
    for (cell, label), score in scores.items():
        level[cell, 4 + label] = torch.tensor(score).logit()
    return level.view(1, 2, 4, 1, 6)


def run(level: Tensor, grid: AnchorGrid = GRID, **kwargs) -> Detections:
    return detections([level], SIZE, anchors=grid, **kwargs)[0]


BOX, SHIFTED, FAR = [10.0, 5, 20, 15], [11.0, 5, 21, 15], [40.0, 5, 50, 15]


def test_best_first_and_classes_do_not_suppress_each_other() -> None:
    level = predicted({0: BOX, 1: SHIFTED, 2: FAR}, {(0, 0): 0.6, (1, 0): 0.9, (1, 1): 0.3, (2, 1): 0.7, (3, 0): 0.01})
    found = run(level)
    torch.testing.assert_close(found.boxes, torch.tensor([SHIFTED, FAR, SHIFTED]), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, 0.3]))
    assert found.classes.tolist() == [0, 1, 1]
    assert len(run(level, options=SelectionOptions(max_detections=2)).scores) == 2
    assert len(run(level, options=SelectionOptions(iou_threshold=0.9)).scores) == 4
    assert run(level, options=SelectionOptions(score_threshold=0.95)).boxes.shape == (0, 4)


def test_candidates_are_pairs_and_in_the_old_generation_anchors() -> None:
    scores = {(0, 0): 0.9, (0, 1): 0.8, (2, 0): 0.7}
    limit = SelectionOptions(max_candidates=2)
    assert (
        run(predicted({0: BOX, 2: FAR}, scores), options=limit).scores.tolist()
        == run(predicted({0: BOX}, {k: v for k, v in scores.items() if k[0] == 0})).scores.tolist()
    )
    legacy = AnchorGrid(strides=(16,), ratios=(1.0,), scales_per_octave=1, legacy=True)
    assert len(run(predicted({0: BOX, 2: FAR}, scores, legacy), legacy, options=limit).scores) == 3


def test_boxes_are_clipped_to_the_content_then_moved_to_the_original() -> None:
    level = predicted({0: [-5.0, -5, 30, 40]}, {(0, 0): 0.9})
    assert run(level).boxes.tolist() == [[0, 0, 30, 32]]
    content = torch.tensor([[20, 25]])
    assert run(level, content_size=content).boxes.tolist() == [[0, 0, 25, 20]]
    scale, offset = torch.tensor([[0.5, 0.25]]), torch.tensor([[5.0, 10.0]])
    moved = run(level, content_size=content, scale=scale, offset=offset)
    assert moved.boxes.tolist() == [[-10, -40, 40, 40]]


def test_boxes_without_area_are_dropped_but_not_in_the_old_generation() -> None:
    outside = [-30.0, 5, -10, 15]
    assert len(run(predicted({0: outside}, {(0, 0): 0.9})).scores) == 0
    legacy = AnchorGrid(strides=(16,), ratios=(1.0,), scales_per_octave=1, legacy=True)
    assert run(predicted({0: outside}, {(0, 0): 0.9}, legacy), legacy).boxes[:, [0, 2]].tolist() == [[0, 0]]


def test_images_do_not_mix() -> None:
    one = predicted({0: BOX}, {(0, 0): 0.6})
    two = predicted({1: SHIFTED}, {(1, 0): 0.9})
    both = detections([torch.cat([one, two])], SIZE, anchors=GRID)
    for found, level in zip(both, (one, two), strict=True):
        assert torch.equal(found.boxes, run(level).boxes)
