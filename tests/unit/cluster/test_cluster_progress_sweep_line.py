"""What the driver shows of a sweep."""

import time
from dataclasses import replace

import pytest

from sensorlab.cluster.ledger import Ledger
from sensorlab.cluster.progress import SweepLine
from sensorlab.cluster.progress.state import Phase, Progress
from sensorlab.cluster.progress.sweep_line import makespan

PHASE = Phase(2, "train", 1, done=5, total=10, data_wait_s=0.07, step_s=0.93, samples_per_s=12.34)
HALFWAY = Progress(attempt=1.0, time=1.0, step=5, total_steps=30, epoch=0.5, total_epochs=3, phase=PHASE, eta_s=25.0)


@pytest.fixture
def ledger(tmp_path):
    """Two trials done in 40 s each, one stopped after 10 s, one failed."""
    ledger = Ledger(tmp_path / "ledger.json", "max")
    for index, (state, value, seconds) in enumerate(
        [("done", 0.6, 40.0), ("stopped", 0.1, 10.0), ("failed", 0.9, 1.0), ("done", 0.8, 40.0)]
    ):
        name = f"t{index}"
        ledger.start(name, {"optim.lr": 0.001 * (index + 1)}, "d", tmp_path / name).started = None
        ledger.report(name, {"epoch": 2, "objective": value})
        ledger.end(name, state, "ValueError: boom\nat line 3" if state == "failed" else "")
        ledger.trials[name].seconds = seconds
    return ledger


def test_the_line_says_everything(ledger, tmp_path):
    view = SweepLine(ledger, "val/iou", total_trials=8, concurrent=2)
    ledger.start("t4", {}, "d", tmp_path / "t4")
    view()
    HALFWAY.write(tmp_path / "t4")
    frame = view()
    assert frame.live.text()[9:] == (
        "4/8 trials | 1 FAILED | 1 running, 2 done, 1 stopped, 3 waiting | epochs #4 0.5 of 3 | 12.3 samples/s"
        " | data wait 7% | best val/iou 0.8 (#3) | ETA 1m00s"
    )
    assert frame.finished == ()  # these ended under another driver
    assert frame.live.fraction == pytest.approx((4 + 5 / 30) / 8)
    short = frame.live.fitted(79)
    for part in ("4/8 trials", "1 FAILED", "best val/iou 0.8 (#3)", "ETA 1m00s"):
        assert part in short


def test_a_trial_that_ends_leaves_a_line(ledger, tmp_path):
    view = SweepLine(Ledger(tmp_path / "none.json", "max"), "val/iou", total_trials=8, concurrent=2)
    view._ledger = ledger
    lines = [line.text()[9:] for line in view().finished]
    assert lines[0] == "trial #0 done | val/iou 0.6 at epoch 2 | 2 epochs in 40s | optim.lr=0.001"
    assert lines[2] == "trial #2 failed | ValueError: boom at line 3 | 2 epochs in 1s | optim.lr=0.003"
    assert len(lines) == 4
    assert view().finished == ()


def test_time_left_before_and_after_there_are_estimates(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json", "max")
    view = SweepLine(ledger, "val/iou", total_trials=3, concurrent=1)
    assert view().live.text().endswith("ETA ?")
    record = ledger.start("a", {}, "d", tmp_path / "a")
    assert view().live.text().endswith("ETA ?")
    record.started = time.time() - 15
    replace(HALFWAY, eta_s=None).write(tmp_path / "a")
    assert view().live.text().endswith("ETA ?")
    HALFWAY.write(tmp_path / "a")
    assert view().live.text().endswith("ETA 1m45s")  # 25 s, and twice 15 + 25 s


def test_time_left_of_levels_that_have_not_begun_is_a_bound(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json", "max")
    view = SweepLine(ledger, "val/iou", total_trials=7, concurrent=2, levels=(4, 2, 1))

    def end(name, level, seconds):
        ledger.start(name, {}, "d", tmp_path / name).fidelity = level
        ledger.end(name, "done")
        ledger.trials[name].seconds = seconds

    for name in ("a", "b", "c"):
        end(name, 0, 10.0)
    assert view().live.text().endswith("0 running, 3 done, 0 stopped, 4 waiting | ETA >30s")  # 10 s at each level
    end("d", 0, 10.0)
    end("e", 1, 40.0)
    assert view().live.text().endswith("2 waiting | ETA >1m20s")
    ledger.start("f", {}, "d", tmp_path / "f").fidelity = 2  # its level has begun: level 1 had a single survivor
    assert view().live.text().endswith("1 running, 5 done, 0 stopped, 0 waiting | ETA >40s")
    HALFWAY.write(tmp_path / "f")
    assert view().live.text().endswith("ETA 25s")


def test_rates_are_of_runs_that_write(ledger, tmp_path):
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()
    HALFWAY.write(tmp_path / "t4")  # by an attempt that is over
    view = SweepLine(ledger, "val/iou", total_trials=8, concurrent=2, clock=clock)
    ledger.start("t4", {}, "d", tmp_path / "t4")
    assert "samples/s" not in view().live.text()
    replace(HALFWAY, time=2.0).write(tmp_path / "t4")
    assert "samples/s" in view().live.text()
    clock.now += 31
    assert "samples/s" not in view().live.text()


@pytest.mark.parametrize(
    ("running", "waiting", "slots", "expected"),
    [
        ([], [], 2, 0.0),
        ([5.0, 3.0], [], 2, 5.0),
        ([5.0, 3.0], [10.0], 2, 13.0),
        ([5.0], [10.0, 10.0], 2, 15.0),
        ([], [10.0, 10.0, 10.0], 2, 20.0),
    ],
)
def test_makespan(running, waiting, slots, expected):
    assert makespan(running, waiting, slots) == expected
