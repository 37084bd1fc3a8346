"""Anchors: areas, ratios, order, counts; what lies in the padding."""

import pytest
import torch

from sensorlab.models.ops.boxes import area
from sensorlab.models.retinanet import AnchorGrid


def test_areas_and_ratios() -> None:
    first = AnchorGrid().first_cell(16)
    sides = (first[:, 2:] - first[:, :2]).double()
    torch.testing.assert_close(
        (sides[:, 1] / sides[:, 0]).view(3, 3), torch.tensor([[0.5], [1], [2]]).expand(3, 3).double()
    )
    octaves = torch.tensor([1.0, 2 ** (1 / 3), 2 ** (2 / 3)])
    torch.testing.assert_close(area(first).view(3, 3), ((64 * octaves) ** 2).expand(3, 3))
    assert (first[:, :2] + first[:, 2:]).abs().max() < 1e-5  # centred at 0


def test_rows_columns_then_shapes() -> None:
    grid = AnchorGrid(strides=(8, 16), ratios=(1.0,), scales_per_octave=1)
    levels = grid.levels((20, 30))
    assert grid.level_sizes((20, 30)) == [(3, 4), (2, 2)]
    assert grid.level_counts((20, 30)) == [len(level) for level in levels] == [12, 4]
    centers = (levels[0][:, :2] + levels[0][:, 2:]) / 2
    assert centers[:5].tolist() == [[0, 0], [8, 0], [16, 0], [24, 0], [0, 8]]


def test_legacy_anchors_are_whole_pixels_around_the_middle_of_the_cell() -> None:
    first = AnchorGrid(legacy=True).first_cell(8)
    assert torch.equal(first, first.round())
    assert ((first[:, :2] + first[:, 2:]) / 2 - 3.5).abs().max() <= 0.5
    assert first[3].tolist() == [-12, -12, 19, 19]  # 32 pixels from the first to the last inside


@pytest.mark.parametrize(("content", "inside"), [((20, 30), 16), ((17, 30), 16), ((16, 30), 4 * 2 + 2), ((8, 8), 2)])
def test_cells_that_begin_in_the_padding_are_outside(content: tuple[int, int], inside: int) -> None:
    grid = AnchorGrid(strides=(8, 16), ratios=(1.0,), scales_per_octave=1)
    assert int(grid.inside((20, 30), content, "cpu").sum()) == inside
