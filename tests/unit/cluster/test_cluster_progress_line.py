"""Lines that fit a width, with a bar."""

import io

import pytest

from sensorlab.cluster.progress.line import Line, Part, encodable

LINE = Line("[  5s] epoch 1/3", (Part("3/7"), Part("loss 0.4"), Part("box 0.1", 6), Part("ETA 9s", 1)), 0.5)


def test_all_is_said_where_there_is_no_width():
    assert LINE.text() == "[  5s] epoch 1/3 | 3/7 | loss 0.4 | box 0.1 | ETA 9s"


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("fraction", [None, -1.0, 0.0, 0.31, 0.999, 1.0, 7.0])
def test_no_width_is_exceeded(unicode, fraction):
    line = Line(LINE.head, LINE.parts, fraction)
    for width in range(1, 120):
        assert len(line.fitted(width, unicode)) <= width


def test_the_least_important_goes_first_and_the_bar_last():
    assert "box" in LINE.fitted(80)
    assert "box" not in LINE.fitted(58)
    assert "ETA" in LINE.fitted(58)
    assert "ETA" not in LINE.fitted(45)
    assert LINE.fitted(30).startswith("[  5s] epoch 1/3 |")  # nothing but the bar
    assert LINE.fitted(20) == "[  5s] epoch 1/3"


@pytest.mark.parametrize(
    ("fraction", "unicode", "bar"),
    [
        (0.5, True, "|" + "█" * 15 + " " * 15 + "|"),
        (0.5, False, "|" + "#" * 15 + "-" * 15 + "|"),
        (31 / 240, True, "|███▉" + " " * 26 + "|"),  # eighths of a cell
        (1.0, True, "|" + "█" * 30 + "|"),
        (0.999, False, "|" + "#" * 29 + "-|"),  # full means done
    ],
)
def test_bar(fraction, unicode, bar):
    assert Line("x", (Part("end"),), fraction).fitted(200, unicode) == f"x {bar} end"


def test_what_a_stream_cannot_encode_is_replaced():
    ascii_stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert encodable("a█ü", ascii_stream) == "a??"
    assert encodable("a█ü", io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) == "a█ü"
