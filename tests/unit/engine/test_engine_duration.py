"""Lengths and recurrences in epochs, steps and samples."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sensorlab.config import StrictModel, as_dict
from sensorlab.engine.duration import Duration, Every, Progress


@pytest.mark.parametrize(
    ("text", "count", "unit", "written"),
    [
        ("12 epochs", 12, "epochs", "12 epochs"),
        ("1 epoch", 1, "epochs", "1 epoch"),
        ("1 epochs", 1, "epochs", "1 epoch"),
        ("500 steps", 500, "steps", "500 steps"),
        (" 100_000  samples ", 100_000, "samples", "100000 samples"),
        ("7step", 7, "steps", "7 steps"),
    ],
)
def test_a_duration_is_read_and_written(text, count, unit, written):
    duration = Duration.parse(text)
    assert (duration.count, duration.unit) == (count, unit)
    assert str(duration) == duration.plain() == written
    assert Duration.parse(written) == Duration.parse(duration) == duration


@pytest.mark.parametrize("text", ["", "12", "epochs", "0 epochs", "-1 steps", "1.5 epochs", "3 hours", "1e3 steps", 12])
def test_what_is_no_duration_is_explained(text):
    with pytest.raises(ValueError, match="for example 12 epochs"):
        Duration.parse(text)


@pytest.mark.parametrize(("count", "unit"), [(0, "epochs"), (-2, "steps"), (1, "hours")])
def test_an_impossible_duration_cannot_be_made(count, unit):
    with pytest.raises(ValueError, match="at least 1"):
        Duration(count, unit)


def test_a_recurrence_is_one_duration_or_a_list():
    assert Every.parse("1 epoch").plain() == "1 epoch"
    both = Every.parse(["1 epoch", "500 steps"])
    assert both.plain() == ["1 epoch", "500 steps"]
    assert str(both) == "1 epoch and 500 steps"
    assert Every.parse(both.plain()) == both
    with pytest.raises(ValueError, match="null for never"):
        Every.parse([])
    with pytest.raises(ValueError, match="12 epochs"):
        Every.parse(["1 epoch", "often"])


class Config(StrictModel):
    length: Duration
    every: Every | None = None


def test_configurations_hold_them_as_text():
    config = Config.model_validate({"length": "3 epochs", "every": ["1 epoch", "2 steps"]})
    assert as_dict(config) == {"length": "3 epochs", "every": ["1 epoch", "2 steps"]}
    assert Config.model_validate(as_dict(config)) == config
    with pytest.raises(ValidationError, match="for example 12 epochs"):
        Config.model_validate({"length": "3"})


# Steps of an epoch of 10 global batches of 4 samples with up to 3 passes each.
STEPS = [
    Progress(0, 0, 0),
    Progress(0, 1, 12),
    Progress(0, 2, 24),
    Progress(0, 3, 36),
    Progress(0, 4, 40),  # after the last step of the epoch, which is not counted as finished yet
    Progress(1, 4, 40),  # when it is
    Progress(1, 5, 52),
]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1 step", [1, 2, 3, 4, 6]),
        ("2 steps", [2, 4]),
        ("3 steps", [3]),
        ("1 epoch", [5]),
        ("2 epochs", []),
        ("12 samples", [1, 2, 3, 6]),  # 12, 24, 36, and 48 is passed at 52
        ("40 samples", [4]),
        ("50 samples", [6]),
        ("4 samples", [1, 2, 3, 4, 6]),  # several multiples in one step: once
    ],
)
def test_multiples_are_passed_once(text, at):
    passed = [i for i in range(1, len(STEPS)) if Duration.parse(text).passed(STEPS[i - 1], STEPS[i])]
    assert passed == at
    assert passed == [i for i in range(1, len(STEPS)) if Every.parse(text).passed(STEPS[i - 1], STEPS[i])]


def test_a_list_recurs_at_the_multiples_of_each():
    every = Every.parse(["1 epoch", "2 steps"])
    assert [i for i in range(1, len(STEPS)) if every.passed(STEPS[i - 1], STEPS[i])] == [2, 4, 5]


def test_nothing_passes_where_nothing_happens():
    assert not any(Every.parse(["1 epoch", "1 step", "1 sample"]).passed(point, point) for point in STEPS)
