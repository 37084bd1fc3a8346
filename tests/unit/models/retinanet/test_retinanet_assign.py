"""Assignment of anchors to objects: thresholds, best anchors, regions that do not count, batches."""

import torch
from torch import Tensor

from sensorlab.models.retinanet import BACKGROUND, IGNORED, AnchorGrid, AssignOptions, assign_batch, count_positives
from sensorlab.models.retinanet.assign import assign_image

OBJECT = torch.tensor([[0.0, 0.0, 10.0, 10.0]])


def strips(*widths: float) -> Tensor:
    """Anchors inside of OBJECT whose IoU with it is width / 10."""
    return torch.tensor([[0.0, 0.0, width, 10.0] for width in widths])


def test_thresholds_belong_to_the_upper_side() -> None:
    assigned = assign_image(strips(10, 5, 4.5, 4, 3.9), OBJECT)
    assert assigned.tolist() == [0, 0, IGNORED, IGNORED, BACKGROUND]


def test_an_object_takes_all_its_best_anchors_however_bad() -> None:
    anchors = strips(2, 2, 1)
    assert assign_image(anchors, OBJECT).tolist() == [0, 0, BACKGROUND]
    assert assign_image(anchors, OBJECT, options=AssignOptions(all_best=False)).tolist() == [0, BACKGROUND, BACKGROUND]
    assert assign_image(anchors, OBJECT, options=AssignOptions(best_iou=0.3)).tolist() == [BACKGROUND] * 3
    assert assign_image(anchors, OBJECT, options=AssignOptions(best_iou=None)).tolist() == [BACKGROUND] * 3


def test_of_objects_with_one_best_anchor_the_last_takes_it() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    assert assign_image(strips(10), boxes).tolist() == [1]
    # Without that rule, the one that it overlaps most.
    assert assign_image(strips(10), boxes, options=AssignOptions(best_iou=None)).tolist() == [0]


def test_objects_that_overlap_no_anchor_get_none() -> None:
    far_and_empty = torch.tensor([[50.0, 50, 60, 60], [5, 5, 5, 5]])
    assert assign_image(strips(10, 5), far_and_empty).tolist() == [BACKGROUND] * 2


def test_anchors_in_ignored_regions_do_not_count_and_are_nobodys_best() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [8, 0, 18, 10], [100, 0, 110, 10]])
    region = torch.tensor([[-5.0, -5.0, 7.0, 15.0]])  # covers 70 % of the first, nothing of the second
    assert assign_image(anchors, OBJECT, region).tolist() == [IGNORED, 0, BACKGROUND]
    assert assign_image(anchors, OBJECT, region, AssignOptions(ignored_share=0.7)).tolist()[0] == 0
    assert assign_image(anchors, OBJECT, region, AssignOptions(ignored_share=None)).tolist()[0] == 0
    assert assign_image(anchors, OBJECT[:0], region).tolist() == [IGNORED, BACKGROUND, BACKGROUND]


def test_a_batch_is_its_images_with_rows_of_the_batch() -> None:
    grid, size = AnchorGrid(), (64, 96)
    boxes = torch.tensor([[10.0, 10, 50, 40], [30, 5, 60, 60], [0, 0, 33, 33]])
    box_image = torch.tensor([2, 0, 2])  # in any order; image 1 is empty
    assigned = assign_batch(boxes, box_image, size, batch_size=3, anchors=grid)
    anchors = torch.cat(grid.levels(size))
    alone = assign_image(anchors, boxes[[0, 2]])
    expected = torch.where(alone == 1, 2, alone)
    assert torch.equal(assigned[2], expected)
    assert set(assigned[0].tolist()) == {1, BACKGROUND, IGNORED}
    assert assigned[1].unique().tolist() == [BACKGROUND]
    positives = [(assigned[i] >= 0).sum().item() for i in range(3)]
    assert positives[1] == 0
    assert count_positives(assigned) == positives[0] + 1 + positives[2]
    assert count_positives(assigned).dtype == torch.float32


def test_padding_does_not_count() -> None:
    grid, size = AnchorGrid(), (64, 96)
    boxes, box_image = torch.tensor([[60.0, 10, 90, 40]]), torch.tensor([1])
    content = torch.tensor([[64, 96], [64, 48]])
    assigned = assign_batch(boxes, box_image, size, batch_size=2, anchors=grid, content_size=content)
    inside = grid.inside(size, (64, 48), "cpu")
    assert (assigned[0] == BACKGROUND).all()
    assert (assigned[1][~inside] == IGNORED).all()
    assert torch.equal(assigned[1][inside] >= 0, assign_image(torch.cat(grid.levels(size))[inside], boxes) >= 0)


def test_regions_belong_to_their_image() -> None:
    everywhere = torch.tensor([[-1e3, -1e3, 1e3, 1e3]])
    assigned = assign_batch(
        OBJECT[:0],
        torch.zeros(0, dtype=torch.int64),
        (32, 32),
        batch_size=2,
        anchors=AnchorGrid(),
        ignored=everywhere,
        ignored_image=torch.tensor([1]),
    )
    assert (assigned[0] == BACKGROUND).all()
    assert (assigned[1] == IGNORED).all()
