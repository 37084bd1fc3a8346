"""Experiments that need evaluations and have none are refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from sensorlab.errors import UserError
from sensorlab.experiment import experiment_from


def tree(every: Any, sampling: str = "shuffled", early_stop: bool = False) -> dict[str, Any]:
    return {
        "name": "one",
        "task": {"name": "bev_segmentation"},
        "data": {"path": "here", "sampling": {"name": sampling}},
        "train": {"duration": "3 epochs", "early_stop": {"patience": "1 epoch"} if early_stop else None},
        "eval": {"every": every},
    }


@pytest.mark.parametrize(
    ("asked_for", "message"),
    [
        ({"sampling": "image_weights"}, "data.sampling.name=image_weights .* would never change: set eval.every"),
        ({"early_stop": True}, "train.early_stop judges evaluations, .*: set eval.every"),
    ],
)
def test_what_follows_evaluations_is_refused_without_them(asked_for, message):
    with pytest.raises(UserError, match=message):
        experiment_from(tree(None, **asked_for))
    experiment_from(tree("2 epochs", **asked_for))


@pytest.mark.parametrize("sampling", ["shuffled", "class_balanced", "repeat_factor"])
def test_all_else_may_be_evaluated_at_the_end_alone(sampling):
    assert experiment_from(tree(None, sampling)).eval.every is None
