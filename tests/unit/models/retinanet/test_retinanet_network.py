"""The network: sizes of the levels, the start, what is frozen, errors, and that it learns."""

import pytest
import torch

from sensorlab.errors import UserError
from sensorlab.models.retinanet import AnchorGrid, RetinaNet, detections, retinanet_loss


@pytest.mark.parametrize("size", [(64, 96), (70, 90)])
def test_levels_have_the_sizes_of_the_anchors(size: tuple[int, int]) -> None:
    model = RetinaNet(18, num_classes=3).eval()
    with torch.no_grad():
        raw = model(torch.rand(2, 3, *size))
    assert [tuple(level.shape) for level in raw] == [(2, *s, 9, 7) for s in model.anchors.level_sizes(size)]


def test_initial_scores_are_the_prior_and_boxes_the_anchors() -> None:
    model = RetinaNet(18, num_classes=3).eval()
    with torch.no_grad():
        raw = model(torch.rand(1, 3, 64, 64))
    for level in raw:
        assert level[..., 4:].sigmoid().mean().item() == pytest.approx(0.01, rel=0.3)
        assert level[..., :4].abs().max() < 0.5


def test_other_anchors_change_the_head() -> None:
    model = RetinaNet(18, num_classes=2, anchors=AnchorGrid(ratios=(1.0,), scales_per_octave=2))
    assert model.bbox_head.retina_cls.out_channels == 4
    assert model.bbox_head.retina_reg.out_channels == 8


def test_what_is_frozen_stays_frozen_in_training() -> None:
    model = RetinaNet(18, num_classes=2).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))
    }
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    model(torch.rand(1, 3, 64, 64))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.slow
def test_it_learns_one_image() -> None:
    """Neck and head, on the maps of a backbone that is not trained."""
    torch.manual_seed(0)
    model = RetinaNet(18, num_classes=2)
    images = torch.zeros(1, 3, 64, 64)
    images[:, 0, 16:48, 8:40] = 1
    boxes, classes, box_image = torch.tensor([[8.0, 16, 40, 48]]), torch.tensor([1]), torch.tensor([0])
    with torch.no_grad():
        features = model.backbone((images - model.image_mean) / model.image_std)
    optimizer = torch.optim.Adam([*model.neck.parameters(), *model.bbox_head.parameters()], lr=3e-4)
    for _ in range(60):
        raw = model.bbox_head(model.neck(features))
        loss = retinanet_loss(raw, boxes, classes, box_image, (64, 64), anchors=model.anchors)
        optimizer.zero_grad()
        sum(loss.terms.values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = detections(model.eval()(images), (64, 64), anchors=model.anchors)[0]
    assert found.classes[0] == 1
    assert found.scores[0] > 0.8
    assert (found.boxes[0] - boxes[0]).abs().max() < 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "at least one class"),
        ({"depth": 20}, "depth 20"),
        ({"frozen_stages": 5}, "frozen_stages 5 must be from 0"),
    ],
)
def test_arguments_that_make_no_network(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RetinaNet(**{"depth": 18, **arguments})
