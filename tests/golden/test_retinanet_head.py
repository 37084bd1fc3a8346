"""Parity of RetinaNet's anchors, assignment, box coder, losses and detections with mmdetection 3.3 (v3) and 1.0 (v1).

Head level, with 5 classes and predictions that are given: ``data/retinanet`` holds the arrays of the developers' pack.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorlab.models.ops.boxes import giou, iou, pairwise_iof, pairwise_iou
from sensorlab.models.retinanet import (
    AnchorGrid,
    AssignOptions,
    LossOptions,
    SelectionOptions,
    assign_batch,
    count_positives,
    detections,
    retinanet_loss,
)
from sensorlab.models.retinanet.assign import BACKGROUND, IGNORED, assign_image
from sensorlab.models.retinanet.coder import decode, encode
from sensorlab.models.retinanet.decode import _candidates
from sensorlab.models.retinanet.losses import focal_loss, smooth_l1

pytestmark = pytest.mark.golden

DATA = Path(__file__).parent / "data" / "retinanet"
SIZE = (128, 160)
LEVELS = (3, 4, 5, 6, 7)
GRIDS = {"v3": AnchorGrid(), "v1": AnchorGrid(legacy=True)}
LOSSES = {"v3": LossOptions(), "v1": LossOptions(smooth_l1_beta=0.11)}
ERAS = ("v3", "v1")


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def given(name: str) -> Tensor:
    return torch.from_numpy(arrays("inputs")[name].copy())


def expected(era: str, name: str) -> np.ndarray:
    return arrays(f"{era}_head")[name]


def close(found: Tensor, want: np.ndarray, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found.detach().numpy(), want, rtol=rtol, atol=atol)


def by_anchor(maps: Tensor) -> Tensor:
    """(B, 9 * K, H, W) -> (B, H, W, 9, K)."""
    return maps.permute(0, 2, 3, 1).unflatten(-1, (9, -1))


def raw_levels(cls: list[Tensor], reg: list[Tensor]) -> list[Tensor]:
    return [torch.cat([by_anchor(r), by_anchor(c)], -1) for c, r in zip(cls, reg, strict=True)]


def predictions() -> tuple[list[Tensor], list[Tensor]]:
    return [given(f"cls_p{p}") for p in LEVELS], [given(f"reg_p{p}") for p in LEVELS]


def objects(images: tuple[int, ...] = (0, 1)) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, classes and positions of the ground truth of some of the images."""
    boxes = [given(f"gt5_boxes{i}") for i in images]
    classes = [given(f"gt5_labels{i}").long() for i in images]
    box_image = torch.tensor(images).repeat_interleave(torch.tensor([len(each) for each in boxes]))
    return torch.cat(boxes), torch.cat(classes), box_image


@pytest.mark.parametrize("era", ERAS)
def test_anchors(era):
    grid = GRIDS[era]
    for p, stride, level in zip(LEVELS, grid.strides, grid.levels(SIZE), strict=True):
        close(grid.first_cell(stride), expected(era, f"base_anchors_p{p}"), 0, 1e-4)
        close(level, expected(era, f"anchors_p{p}"), 0, 1e-4)


def test_anchors_of_the_legacy_generator_of_v3():
    grid = GRIDS["v1"]
    for p, stride, level in zip(LEVELS, grid.strides, grid.levels(SIZE), strict=True):
        close(grid.first_cell(stride), expected("v3", f"legacy_base_anchors_p{p}"), 0, 1e-4)
        close(level[:9], expected("v3", f"legacy_anchors_p{p}_first9"), 0, 1e-4)


@pytest.mark.parametrize("era", ERAS)
def test_anchors_beyond_the_image_are_flagged(era):
    size = expected(era, "valid_flags_pad_shape_hw").tolist()
    inside = GRIDS[era].inside(SIZE, size, "cpu")
    np.testing.assert_array_equal(inside.numpy(), expected(era, "valid_flags_img1").astype(bool))


CASES: dict[str, tuple[str, str | None, AssignOptions]] = {
    "retina0": ("gt5_boxes0", None, AssignOptions()),
    "retina1": ("gt5_boxes1", None, AssignOptions()),
    "ignore_iof0.5": ("gt5_boxes0", "gt5_ignore0", AssignOptions(ignored_share=0.5)),
    "rpn_like": ("gt5_boxes0", None, AssignOptions(positive_iou=0.7, negative_iou=0.3, best_iou=0.3)),
    "low_quality": ("gtx_boxes", None, AssignOptions()),
    "low_quality_best_only": ("gtx_boxes", None, AssignOptions(all_best=False)),
    "low_quality_min_pos0.3": ("gtx_boxes", None, AssignOptions(best_iou=0.3)),
    "low_quality_off": ("gtx_boxes", None, AssignOptions(best_iou=None)),
}


# mmdetection 1.0 has no switch for the rule of the best anchors.
@pytest.mark.parametrize(
    ("era", "case"), [(era, case) for era in ERAS for case in CASES if (era, case) != ("v1", "low_quality_off")]
)
def test_assignment(era, case):
    boxes_name, ignored_name, options = CASES[case]
    grid = torch.cat(GRIDS[era].levels(SIZE))
    ignored = given(ignored_name) if ignored_name else None
    found = assign_image(grid, given(boxes_name), ignored, options, GRIDS[era].offset)
    sure = expected(era, f"assign_{case}_tie_sensitive") == 0
    assert sure.sum() > 3800
    # There: -1 ignored, 0 background, then objects from 1 on.
    np.testing.assert_array_equal(found.numpy()[sure], (expected(era, f"assign_{case}_gt_inds") - 1)[sure])
    overlap = pairwise_iou(given(boxes_name), grid, GRIDS[era].offset).amax(dim=0)
    want = expected(era, f"assign_{case}_max_overlaps")
    counts = want >= 0  # there anchors in ignored regions get an overlap of -1
    assert (found[torch.from_numpy(~counts)] == IGNORED).all()
    close(overlap[torch.from_numpy(counts)], want[counts], 1e-5, 1e-6)


def test_assignment_without_objects():
    found = assign_image(torch.cat(GRIDS["v3"].levels(SIZE)), torch.zeros(0, 4))
    np.testing.assert_array_equal(found.unique().numpy(), expected("v3", "assign_empty_gt_inds_unique") - 1)


@pytest.mark.parametrize("era", ERAS)
def test_targets(era):
    grid = GRIDS[era]
    boxes, classes, box_image = objects()
    assigned = assign_batch(boxes, box_image, SIZE, batch_size=2, anchors=grid)
    labels, first = expected(era, "target_labels"), 0 if era == "v3" else 1
    background = 5 if era == "v3" else 0
    weights = expected(era, "target_label_weights")
    np.testing.assert_array_equal((assigned != IGNORED).numpy(), weights.astype(bool))
    found = torch.where(assigned >= 0, classes[assigned.clamp(min=0)] + first, background).numpy()
    np.testing.assert_array_equal(found[weights == 1], labels[weights == 1])
    image, anchor = (assigned >= 0).nonzero(as_tuple=True)
    np.testing.assert_array_equal(torch.stack([image, anchor], 1), expected(era, "target_pos_index_img_anchor"))
    deltas = encode(torch.cat(grid.levels(SIZE))[anchor], boxes[assigned[image, anchor]], grid.offset)
    close(deltas, expected(era, "target_pos_deltas"))
    if era == "v3":
        assert count_positives(assigned) == int(expected(era, "avg_factor"))
    else:
        counts = [(assigned >= 0).sum(), (assigned == BACKGROUND).sum()]
        np.testing.assert_array_equal(counts, expected(era, "num_total_pos_neg"))


@pytest.mark.parametrize("era", ERAS)
def test_losses_and_gradients(era):
    cls, reg = predictions()
    for each in (*cls, *reg):
        each.requires_grad_()
    loss = retinanet_loss(raw_levels(cls, reg), *objects(), SIZE, anchors=GRIDS[era], options=LOSSES[era])
    close(loss.level_class, expected(era, "head_loss_cls"), 1e-4, 1e-6)
    close(loss.level_box, expected(era, "head_loss_bbox"), 1e-4, 1e-6)
    sum(loss.terms.values()).backward()
    for i, p in enumerate(LEVELS):
        step = 9 if p == 3 else 3
        close(reg[i].grad, expected(era, f"head_grad_reg_p{p}"), 1e-3, 1e-6)
        close(cls[i].grad.flatten()[::step], expected(era, f"head_grad_cls_p{p}_sub"), 1e-3, 1e-6)
    close(torch.stack([each.grad.norm() for each in cls]), expected(era, "head_grad_norms_cls"), 1e-3, 1e-6)
    close(torch.stack([each.grad.norm() for each in reg]), expected(era, "head_grad_norms_reg"), 1e-3, 1e-6)


def test_losses_and_gradients_where_an_image_is_empty():
    cls, reg = predictions()
    for each in (*cls, *reg):
        each.requires_grad_()
    loss = retinanet_loss(raw_levels(cls, reg), *objects((0,)), SIZE, anchors=GRIDS["v3"])
    close(loss.level_class, expected("v3", "head_empty_loss_cls"), 1e-4, 1e-6)
    close(loss.level_box, expected("v3", "head_empty_loss_bbox"), 1e-4, 1e-6)
    sum(loss.terms.values()).backward()
    close(torch.stack([each.grad.norm() for each in cls]), expected("v3", "head_empty_grad_norms_cls"), 1e-3, 1e-6)
    close(torch.stack([each.grad.norm() for each in reg]), expected("v3", "head_empty_grad_norms_reg"), 1e-3, 1e-6)


CONTENT = torch.tensor([[128, 160], [108, 147]])
SELECTIONS = {
    "default": SelectionOptions(),
    "rescale": SelectionOptions(),
    "nms_pre60": SelectionOptions(max_candidates=60),
    "max15": SelectionOptions(max_detections=15),
    "score0.3": SelectionOptions(score_threshold=0.3),
}


@pytest.mark.parametrize("case", SELECTIONS)
@pytest.mark.parametrize("era", ERAS)
def test_detections(era, case):
    scale = torch.full((2, 2), 1.6) if case == "rescale" else None
    raw = raw_levels(*predictions())
    found = detections(raw, SIZE, anchors=GRIDS[era], options=SELECTIONS[case], content_size=CONTENT, scale=scale)
    for i, image in enumerate(found):
        want = expected(era, f"pred_{case}_img{i}")
        want = want[np.argsort(-want[:, 4], kind="stable")]  # mmdetection 1.0 orders by class where it does not cut
        np.testing.assert_array_equal(image.classes, want[:, 5])
        close(image.scores, want[:, 4], 0, 1e-5)
        close(image.boxes, want[:, :4], 1e-4, 2e-3)


@pytest.mark.parametrize("era", ERAS)
def test_number_of_candidates(era):
    raw = raw_levels(*predictions())
    for i in range(2):
        pairs = zip(raw, GRIDS[era].levels(SIZE), strict=True)
        found = [len(_candidates(level[i], grid, GRIDS[era], SelectionOptions()).scores) for level, grid in pairs]
        assert sum(found) == int(expected(era, f"candidates_img{i}"))


@pytest.mark.parametrize(("era", "prefix", "offset"), [("v3", "", 0), ("v3", "legacy_", 1), ("v1", "", 1)])
def test_box_coder(era, prefix, offset):
    anchors, boxes, deltas = given("coder_anchors"), given("coder_gts"), given("coder_deltas")
    close(encode(anchors, boxes, offset), expected(era, f"{prefix}encode"))
    decoded = decode(anchors, deltas, offset)
    if prefix:  # 3.3's coder for old networks keeps the +1 of the sides and not the half pixels of the corners
        decoded = decoded + torch.tensor([-0.5, -0.5, 0.5, 0.5])
    close(decoded, expected(era, f"{prefix}decode"), 1e-4, 2e-3)
    height, width = SIZE
    limits = torch.tensor([width, height, width, height]) - offset
    close(decoded.clamp(min=0).minimum(limits), expected(era, f"{prefix}decode_clip"), 1e-4, 2e-3)


def test_overlaps():
    anchors, boxes = given("coder_anchors"), given("coder_gts")
    close(pairwise_iou(anchors, boxes), expected("v3", "iou_matrix"), 1e-5, 1e-6)
    close(pairwise_iof(anchors, boxes), expected("v3", "iof_matrix"), 1e-5, 1e-6)
    close(giou(anchors[:, None], boxes), expected("v3", "giou_matrix"), 1e-5, 1e-6)
    close(iou(anchors[:, None], boxes, 1), expected("v1", "iou_matrix"), 1e-5, 1e-6)


@pytest.mark.parametrize("era", ERAS)
def test_element_losses(era):
    logits, labels = given("focal_logits").requires_grad_(), given("focal_labels").long()
    targets = torch.nn.functional.one_hot(labels, 6)[:, :5].float()
    loss = focal_loss(logits, targets)
    close(loss, expected(era, "focal"), 1e-4, 1e-7)
    loss.sum().backward()
    close(logits.grad, expected(era, "focal_grad"), 1e-4, 1e-7)
    predicted, target = given("l1_pred"), given("l1_target")
    for beta in (0.11, 1.0):
        close(smooth_l1(predicted, target, beta), expected(era, f"smooth_l1_beta{beta}"))
    if era == "v3":
        close(smooth_l1(predicted, target), expected(era, "l1"))
