"""The freezing schedules of SiamFC++, recorded from video_analyst's DynamicFreezer: trained or not, by epoch.

``<backbone>_names`` are the parameters of the tracker, ``<backbone>_requires_grad`` (20 epochs, parameters) is bool.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sensorlab.engine.duration import Duration
from sensorlab.engine.freeze import FreezeRule, Freezing

pytestmark = pytest.mark.golden
DATA = Path(__file__).parent / "data" / "siamfcpp" / "freezing.npz"


def rule(pattern: str, until: str | None = None) -> FreezeRule:
    return FreezeRule(match=(pattern,), until=Duration.parse(until) if until else None)


RULES = {
    "alexnet": (
        rule("basemodel.*.conv.*"),
        rule("basemodel.conv5.conv.*", "5 epochs"),
        rule("basemodel.conv4.conv.*", "10 epochs"),
        rule("basemodel.conv3.conv.*", "15 epochs"),
    ),
    "googlenet": (
        rule("basemodel.*.conv.*"),
        rule("basemodel.Mixed_5*.conv.*", "10 epochs"),
        rule("basemodel.Mixed_6*.conv.*", "10 epochs"),
    ),
}


def model_of(names: list[str]) -> nn.Module:
    """A module whose parameters, one number each, have these names."""
    root = nn.Module()
    for name in names:
        *path, last = name.split(".")
        parent = root
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.register_parameter(last, nn.Parameter(torch.zeros(1)))
    return root


@pytest.mark.parametrize("backbone", RULES)
def test_the_same_parameters_are_trained_in_every_epoch(backbone):
    with np.load(DATA) as file:
        names, expected = file[f"{backbone}_names"].tolist(), file[f"{backbone}_requires_grad"]
    model = model_of(names)
    freezing = Freezing(model, RULES[backbone])
    assert len(expected) == 20
    for epoch, row in enumerate(expected):
        freezing.apply(epoch)
        assert [model.get_parameter(name).requires_grad for name in names] == row.tolist(), epoch
