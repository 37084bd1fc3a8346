"""Feature pyramid: levels, sizes of any parity, where each level's information comes from."""

import pytest
import torch

from sensorlab.models.necks.fpn import FeaturePyramid


def features(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.randn(1, 4 * (i + 1), *size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [((8, 12), (4, 6), (2, 3)), ((9, 11), (5, 6), (3, 3))])
def test_levels_have_the_sizes_of_the_inputs_then_halves(sizes: tuple[tuple[int, int], ...]) -> None:
    neck = FeaturePyramid((4, 8, 12), out_channels=16, num_levels=5)
    rows, columns = sizes[-1]
    further = [(-(-rows // 2), -(-columns // 2)), (-(-rows // 4), -(-columns // 4))]
    assert [tuple(level.shape) for level in neck(features(*sizes))] == [(1, 16, *size) for size in (*sizes, *further)]


def test_coarse_maps_reach_the_finer_levels_and_not_the_other_way_round() -> None:
    neck = FeaturePyramid((4, 8, 12), out_channels=16, num_levels=5)
    inputs = [feature.requires_grad_() for feature in features((8, 8), (4, 4), (2, 2))]
    seen = []
    for i in range(5):
        grads = torch.autograd.grad(neck(inputs)[i].sum(), inputs, allow_unused=True)
        seen.append([grad is not None for grad in grads])
    # By level (rows): whether the inputs C3, C4, C5 (columns) are seen.
    assert seen == [[True, True, True], [False, True, True], *[[False, False, True]] * 3]


def test_without_further_levels_there_are_as_many_as_inputs() -> None:
    neck = FeaturePyramid((4, 8), out_channels=16, num_levels=2)
    assert len(neck.fpn_convs) == len(neck(features((4, 4), (2, 2)))) == 2
