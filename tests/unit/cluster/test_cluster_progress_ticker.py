"""Frames on a screen: plain lines in a file, one rewritten line in a real (pseudo-)terminal."""

from __future__ import annotations

import fcntl
import io
import itertools
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest

from sensorlab.cluster.progress.line import Frame, Line, Part
from sensorlab.cluster.progress.ticker import LineScreen, Ticker, can_rewrite


def live(text: str, fraction: float | None = 0.5) -> Frame:
    return Frame(Line(text, (), fraction))


def test_a_file_gets_plain_whole_lines(tmp_path):
    path = tmp_path / "log.txt"
    with path.open("w") as stream:
        frames = iter([live("a"), Frame(Line("b"), (Line("epoch 1", (Part("loss 1"),)),))])
        with Ticker(lambda: next(frames), stream, every_s=60.0):
            time.sleep(0.05)
    assert path.read_text() == "epoch 1 | loss 1\nb\n"


def test_the_live_line_comes_every_five_seconds_then_more_and_more_seldom():
    now = [0.0]
    stream = io.StringIO()
    screen = LineScreen(stream, lambda: now[0])
    screen.open()
    times = []
    for second in range(2 * 3600):
        now[0] = float(second)
        before = stream.tell()
        screen.show(live(f"at {second}"))
        if stream.tell() > before:
            times.append(second)
    assert times[:4] == [5, 10, 15, 20]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps == sorted(gaps)
    assert max(gaps) == 60
    assert len(times) < 300


def test_what_ended_is_printed_at_once_and_the_last_line_not_twice():
    stream = io.StringIO()
    screen = LineScreen(stream, lambda: 0.0)
    screen.show(Frame(Line("x"), (Line("ended"),)))
    screen.show(live("x"), is_last=True)
    screen.show(live("x"), is_last=True)
    assert stream.getvalue() == "ended\nx\n"


def test_a_view_that_fails_does_not_end_what_is_watched(caplog):
    def view():
        raise KeyError("a bug")

    with Ticker(view, io.StringIO(), every_s=0.01):
        time.sleep(0.05)
    assert "the progress cannot be shown" in caplog.text


def test_a_closed_pipe_does_not_end_what_is_watched():
    stream = io.StringIO()
    with Ticker(lambda: live("x"), stream, every_s=0.01):
        stream.close()
        time.sleep(0.05)


# The rest runs in a terminal of its own, 60 columns wide.

_CHILD = """
import logging, sys, time
from sensorlab.cluster.progress.line import Frame, Line, Part
from sensorlab.cluster.progress.ticker import Ticker
logging.getLogger("early").addHandler(logging.StreamHandler())  # holds the standard error of now
count = 0
finished = []
def view():
    global count
    count += 1
    ended, finished[:] = tuple(finished), []
    return Frame(Line("epoch 1/2 train", (Part(f"{count}/9"), Part("loss 0.5"), Part("x" * 70, 9)), count / 9), ended)
def wait(frames=3):
    until = count + frames
    while count < until:
        time.sleep(0.005)
out, err = sys.stdout, sys.stderr
"""


def in_terminal(body: str, **environment: str) -> str:
    """What a program writes to a terminal."""
    main, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "TERM")}
    env = inherited | {"TERM": "xterm", "PYTHONUTF8": "1"} | environment
    command = [sys.executable, "-c", _CHILD + body]
    child = subprocess.Popen(command, stdin=secondary, stdout=secondary, stderr=secondary, env=env)
    os.close(secondary)
    output = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        output += piece
    os.close(main)
    assert child.wait(timeout=20) == 0, output.decode()
    return output.decode()


def screen_of(output: str) -> list[str]:
    """Lines of the terminal in the end; only what the bar needs is known here."""
    lines, column = [""], 0
    for character in output:
        if character == "\r":
            column = 0
        elif character == "\n":
            lines.append("")
        else:
            assert character.isprintable(), f"{character!r} in {output!r}"
            lines[-1] = lines[-1][:column].ljust(column) + character + lines[-1][column + 1 :]
            column += 1
            assert column < 60, "the line wraps"
    return [line.rstrip() for line in lines]


def test_the_bar_is_rewritten_and_ends_as_a_line():
    output = in_terminal("""
with Ticker(view, every_s=0.02):
    wait()
    finished.append(Line("epoch 1/2 train", (Part("9/9"), Part("took 1s"))))
    wait()
assert sys.stdout is out and sys.stderr is err
print("after")
""")
    screen = screen_of(output)
    assert screen[0] == "epoch 1/2 train | 9/9 | took 1s"
    assert screen[1].startswith("epoch 1/2 train | ")
    assert screen[1].endswith("/9 | loss 0.5")
    assert screen[2:] == ["after", ""]
    assert output.count("█") > 3  # it was drawn more than once


def test_what_others_print_stays_whole_above_the_bar():
    output = in_terminal("""
with Ticker(view, every_s=0.01):
    wait()
    print("printed", "by", "others")
    logging.getLogger("early").warning("logged by others")
    logging.getLogger("late").warning("last resort")
    print("an error", file=sys.stderr)
    for index in range(20):
        print("line", index)
    print("half", end="", flush=True)
    wait()
    print(" and half")
    wait()
""")
    screen = screen_of(output)
    assert screen[:4] == ["printed by others", "logged by others", "last resort", "an error"]
    assert screen[4:24] == [f"line {index}" for index in range(20)]
    assert screen[24] == "half and half"
    assert screen[25].startswith("epoch 1/2 train | ")
    assert screen[26:] == [""]


def test_an_interrupt_leaves_a_clean_line():
    output = in_terminal("""
try:
    with Ticker(view, every_s=0.01):
        wait()
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("interrupted")
""")
    screen = screen_of(output)
    assert screen[0].endswith("/9 | loss 0.5")
    assert screen[1:] == ["interrupted", ""]


def test_ascii_where_the_terminal_is_not_utf8():
    output = in_terminal(
        """
with Ticker(view, every_s=0.02):
    finished.append(Line("caf\\u00e9"))
    wait()
""",
        PYTHONUTF8="0",
        PYTHONIOENCODING="ascii",
    )
    assert "caf?" in output
    assert "###" in output
    assert output.isascii()


def test_there_are_no_escape_codes_without_colours():
    assert "\x1b" not in in_terminal("with Ticker(view, every_s=0.02): wait()\n", NO_COLOR="1")


def test_a_dumb_terminal_gets_plain_lines():
    output = in_terminal("with Ticker(view, every_s=0.02): wait()\n", TERM="dumb")
    assert "\r" not in output.replace("\r\n", "\n")
    assert "#" not in output
    assert "█" not in output
    assert output.replace("\r\n", "\n").endswith(f"/9 | loss 0.5 | {'x' * 70}\n")


def test_messages_past_python_are_not_lost():
    output = in_terminal("""
import os
with Ticker(view, every_s=60.0):
    while not count:
        time.sleep(0.005)
    time.sleep(0.1)
    os.write(2, b"raylet\\n")
""")
    assert "raylet\r\n" in output


@pytest.mark.parametrize(
    ("tty", "term", "expected"), [(True, "xterm", True), (True, "dumb", False), (False, "xterm", False)]
)
def test_when_a_line_can_be_rewritten(monkeypatch, tty, term, expected):
    monkeypatch.setenv("TERM", term)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: tty, raising=False)
    assert can_rewrite(stream) is expected
