"""Tests of the markup's escaping and of scales."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorlab.report.charts import within_sight
from sensorlab.report.markup import Markup, el, join, number_cell, table
from sensorlab.report.scales import Scale, label, scale_of, spread_out
from sensorlab.report.style import CSS

HOSTILE = "\"><script>alert(1)</script>&'\x00\ud800"


def test_text_is_escaped_and_markup_is_not():
    assert el("p", HOSTILE, el("b", "x")) == (
        "<p>&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#x27;��<b>x</b></p>"
    )
    assert "<script>" not in el("td", "x", title=HOSTILE, data_config=HOSTILE)
    assert join([HOSTILE]).startswith("&quot;")


@given(st.text())
def test_whatever_is_shown_can_be_written(text):
    el("p", text, title=text).encode("utf-8")


def test_attributes():
    assert el("svg", viewBox="0 0 1 1", class_="a", data_trial="t", title=None, x=1.50) == (
        '<svg viewBox="0 0 1 1" class="a" data-trial="t" x="1.5"></svg>'
    )
    assert el("img", src="x") == '<img src="x">'
    assert el("meta", name="viewport") == '<meta name="viewport">'


def test_a_column_of_numbers_has_its_name_on_the_right():
    made = table(["a", "b"], [el("tr", el("td", "x"), number_cell("1", 1.0))], label="t", sortable=True)
    assert '<th scope="col"><button' in made
    assert '<th scope="col" class="num"><button' in made
    assert isinstance(made, Markup)


@pytest.mark.parametrize(
    ("low", "high", "is_log"),
    [
        *((0.0, 1.0, False), (-3.0, 1e-3, False), (1e-9, 2e-9, False), (5.0, 5e6, False)),
        *((1e-9, 2e-9, True), (5.0, 5e6, True), (1e-12, 1e12, True), (0.0101, 0.0102, True)),
    ],
)
def test_ticks_lie_inside_of_the_range(low, high, is_log):
    scale = Scale(low, high, 0.0, 100.0, is_log)
    ticks = scale.ticks(5)
    assert 2 <= len(ticks) <= 12
    assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value, _ in ticks)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=6), st.booleans())
def test_any_values_give_a_scale(values, is_log):
    scale = scale_of(values, 0.0, 100.0, is_log=is_log)
    for value in values:
        if math.isfinite(value) and (value > 0 or not is_log):
            assert -1e-3 <= scale(value) <= 100 + 1e-3
    assert scale.ticks()


def test_labels():
    assert [label(value) for value in (0.0, 0.05, 12.0, 1e-5, 2.5e-4, 250000.0)] == [
        "0",
        "0.05",
        "12",
        "1e-5",
        "2.5e-4",
        "2.5e5",
    ]


def test_spread_out_keeps_the_order_and_the_distance():
    moved = spread_out([50.0, 51.0, 10.0, 99.0], 15.0, 0.0, 100.0)
    assert moved[2] < moved[0] < moved[1] < moved[3]
    ordered = sorted(moved)
    assert all(b - a >= 15 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert ordered[0] >= 0
    assert ordered[-1] <= 100


def test_a_diverged_loss_does_not_flatten_the_others():
    values = [0.5 + 0.01 * n for n in range(20)] + [1e6]
    assert max(within_sight(values)) < 1.0
    assert within_sight([1.0, 1e6]) == [1.0, 1e6]  # too few to know which one is odd
    assert within_sight([0.5] * 20) == [0.5] * 20


def _contrast(first: str, second: str) -> float:
    """Ratio of WCAG 2 between two colours ``#rrggbb``."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("ink", ["ink", "soft", "accent", *(f"s{n}" for n in range(5))])
def test_texts_have_enough_contrast(theme, ink):
    blocks = re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)
    colours = dict(re.findall(r"--(\w[\w-]*): (#[0-9a-f]{6})", blocks[theme]))
    assert _contrast(colours[ink], colours["card"]) >= 4.5
    assert _contrast(colours["warn-ink"], colours["warn-bg"]) >= 4.5
