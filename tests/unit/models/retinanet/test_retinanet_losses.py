"""The losses: workers, ignored anchors, batches without objects, precision."""

import pytest
import torch
from torch import Tensor

from sensorlab.models.retinanet import AnchorGrid, LossOptions, assign_batch, count_positives, retinanet_loss
from sensorlab.models.retinanet.losses import focal_loss, smooth_l1

GRID, SIZE, CLASSES = AnchorGrid(), (32, 64), 3
BOXES = torch.tensor([[5.0, 3, 40, 28], [10, 10, 30, 30], [20, 0, 60, 32]])
LABELS = torch.tensor([2, 0, 1])
IMAGE = torch.tensor([0, 0, 1])


def predictions(batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(batch, *size, 9, 4 + CLASSES) for size in GRID.level_sizes(SIZE)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def nothing() -> tuple[Tensor, Tensor, Tensor]:
    return BOXES[:0], LABELS[:0], IMAGE[:0]


def test_workers_with_the_mean_count_average_to_the_gradient_of_the_global_batch() -> None:
    raw = predictions(2)
    loss = retinanet_loss(raw, BOXES, LABELS, IMAGE, SIZE, anchors=GRID)
    whole = torch.autograd.grad(sum(loss.terms.values()), raw)
    counts, parts = [], []
    for i in range(2):
        mine = i == IMAGE
        counts.append(count_positives(assign_batch(BOXES[mine], IMAGE[mine] - i, SIZE, batch_size=1, anchors=GRID)))
    assert counts[0] != counts[1]
    for i in range(2):
        mine = i == IMAGE
        part = [level[i : i + 1].detach().requires_grad_() for level in raw]
        loss = retinanet_loss(
            part,
            BOXES[mine],
            LABELS[mine],
            IMAGE[mine] - i,
            SIZE,
            anchors=GRID,
            normalizer=torch.stack(counts).mean(),
        )
        parts.append(torch.autograd.grad(sum(loss.terms.values()), part))
    for level, expected in enumerate(whole):
        averaged = torch.cat([parts[i][level] for i in range(2)]) / 2
        torch.testing.assert_close(averaged, expected)


def test_what_is_known_about_the_assignment_is_used() -> None:
    raw = predictions(2)
    assigned = assign_batch(BOXES, IMAGE, SIZE, batch_size=2, anchors=GRID)
    loss = retinanet_loss(raw, BOXES, LABELS, IMAGE, SIZE, anchors=GRID)
    again = retinanet_loss(raw, BOXES, LABELS, IMAGE, SIZE, anchors=GRID, assigned=assigned)
    assert torch.equal(loss.level_class, again.level_class)
    assert loss.num_positives == (assigned >= 0).sum()
    background = retinanet_loss(raw, BOXES, LABELS, IMAGE, SIZE, anchors=GRID, assigned=torch.full_like(assigned, -1))
    assert background.terms["box"] == 0


def test_regions_that_do_not_count_have_no_gradient() -> None:
    raw = predictions(2)
    everywhere = torch.tensor([[-1e3, -1e3, 1e3, 1e3]])
    loss = retinanet_loss(raw, *nothing(), SIZE, anchors=GRID, ignored=everywhere, ignored_image=torch.tensor([1]))
    sum(loss.terms.values()).backward()
    for level in raw:
        assert level.grad[0].abs().sum() > 0
        assert level.grad[1].abs().sum() == 0


def test_a_batch_without_objects_trains_the_background_and_reaches_every_prediction() -> None:
    raw = predictions(2)
    loss = retinanet_loss(raw, *nothing(), SIZE, anchors=GRID)
    assert loss.num_positives == 0
    assert loss.terms["box"] == 0
    assert loss.terms["class"] > 0
    sum(loss.terms.values()).backward()
    assert all(level.grad is not None and level.grad.isfinite().all() for level in raw)


def test_gains_and_beta() -> None:
    raw = predictions(2)
    plain = retinanet_loss(raw, BOXES, LABELS, IMAGE, SIZE, anchors=GRID)
    gained = retinanet_loss(
        raw, BOXES, LABELS, IMAGE, SIZE, anchors=GRID, options=LossOptions(box_gain=2.0, class_gain=3.0)
    )
    torch.testing.assert_close(gained.terms["box"], 2 * plain.terms["box"])
    torch.testing.assert_close(gained.terms["class"], 3 * plain.terms["class"])
    smooth = retinanet_loss(raw, BOXES, LABELS, IMAGE, SIZE, anchors=GRID, options=LossOptions(smooth_l1_beta=0.11))
    assert plain.terms["box"] * 0.9 < smooth.terms["box"] < plain.terms["box"]


def test_half_precision_predictions_are_summed_in_single_precision() -> None:
    raw = [level.detach().bfloat16() for level in predictions(2)]
    loss = retinanet_loss(raw, BOXES, LABELS, IMAGE, SIZE, anchors=GRID)
    same = retinanet_loss([level.float() for level in raw], BOXES, LABELS, IMAGE, SIZE, anchors=GRID)
    assert loss.terms["class"].dtype == torch.float32
    assert torch.equal(loss.terms["class"], same.terms["class"])


def test_focal_loss_without_focus_is_half_the_cross_entropy() -> None:
    logits, targets = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([1.0, 0.0, 1.0])
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(focal_loss(logits, targets, alpha=0.5, gamma=0.0), entropy / 2)
    assert focal_loss(torch.tensor([5.0]), torch.tensor([1.0])) < entropy[2] / 1000  # what is right hardly counts


def test_smooth_l1_of_both_sides_of_beta() -> None:
    found = smooth_l1(torch.tensor([0.05, -1.0]), torch.zeros(2), 0.1)
    assert found.tolist() == pytest.approx([0.0125, 0.95])
