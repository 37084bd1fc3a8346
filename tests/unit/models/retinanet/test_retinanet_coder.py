"""The box coder: there and back, and its limits."""

import math

import pytest
import torch

from sensorlab.models.retinanet.coder import decode, encode

ANCHORS = torch.tensor([[0.0, 0, 10, 20], [5, 5, 6, 9]])


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_decoding_inverts_encoding(offset: float) -> None:
    boxes = torch.tensor([[3.0, 4, 8, 40], [-20, 3, 9, 4]])
    torch.testing.assert_close(decode(ANCHORS, encode(ANCHORS, boxes, offset), offset), boxes)


def test_displacements_are_in_sides_of_the_anchor() -> None:
    moved = encode(ANCHORS[:1], torch.tensor([[5.0, 10, 15, 50]]))
    torch.testing.assert_close(moved, torch.tensor([[0.5, 1.0, 0.0, math.log(2)]]))


def test_sides_grow_and_shrink_by_a_limited_factor() -> None:
    box = decode(ANCHORS[:1], torch.tensor([[0.0, 0.0, 100.0, -100.0]]))
    sides = box[:, 2:] - box[:, :2]
    torch.testing.assert_close(sides, torch.tensor([[625.0, 0.32]]))
