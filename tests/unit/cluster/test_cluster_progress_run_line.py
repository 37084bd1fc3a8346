"""What the driver shows of a run, from its file."""

from dataclasses import replace

import pytest

from sensorlab.cluster.files import PROGRESS, write_json
from sensorlab.cluster.progress import RunLine
from sensorlab.cluster.progress.run_line import eta
from sensorlab.cluster.progress.state import Phase, Progress, ProgressReader

TRAINING = Phase(
    number=2,
    name="train",
    epoch=3,
    done=12,
    total=24,
    seconds=30.0,
    values={"loss": 0.41234, "box": 0.1},
    lr=1.2e-3,
    data_wait_s=0.004,
    step_s=1.25,
    samples_per_s=34.46,
)
NOW = Progress(
    attempt=1.0,
    time=7.0,
    step=60,
    total_steps=120,
    epoch=2.5,
    total_epochs=5,
    phase=TRAINING,
    eta_s=190.0,
    memory_gib=1.26,
    memory_of="process",
)
VALIDATED = Phase(3, "val", 3, done=4, total=4, seconds=5.0, values={"val/iou": 0.5, "val/loss": 0.25})


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def view(tmp_path, clock):
    return RunLine(tmp_path, clock)


def test_every_figure_that_was_asked_for(tmp_path, view, clock):
    assert view().live.text() == "[    0s] starting"
    clock.now += 65
    NOW.write(tmp_path)
    frame = view()
    assert frame.live.text() == (
        "[ 1m05s] epoch 3/5 train | 12/24 | step 60/120 | loss 0.4123 | box 0.1 | lr 0.0012 | data 4.0 ms, step 1.25 s"
        " | 34.5 samples/s | process 1.3 GiB | ETA 3m10s"
    )
    assert frame.live.fraction == 0.5
    assert frame.finished == ()
    for figure in ("12/24", "loss 0.4123", "ETA 3m10s"):
        assert figure in frame.live.fitted(79)


def test_phases_that_ended_are_told_once_and_in_order(tmp_path, view):
    NOW.write(tmp_path)
    assert view().finished == ()
    done = replace(TRAINING, done=24, values={"loss": 0.4})
    saving = Phase(4, "checkpoint", 3)
    replace(NOW, phase=saving, finished=(done, VALIDATED)).write(tmp_path)
    frame = view()
    assert [line.text()[9:] for line in frame.finished] == [
        "epoch 3/5 train | 24/24 | loss 0.4 | lr 0.0012 | data 4.0 ms, step 1.25 s | 34.5 samples/s | process 1.3 GiB"
        " | took 30s",
        "epoch 3/5 val | 4/4 | val/iou 0.5 | val/loss 0.25 | took 5.00 s",
    ]
    assert frame.live.text()[9:] == "epoch 3/5 checkpoint | step 60/120 | process 1.3 GiB | ETA 3m10s"
    assert view().finished == ()


def test_the_end_says_nothing_twice(tmp_path, view):
    replace(NOW, phase=Phase(5, "done", 5), finished=(VALIDATED,)).write(tmp_path)
    frame = view()
    assert frame.live is None
    assert len(frame.finished) == 1


def test_what_an_earlier_attempt_left_is_no_news(tmp_path, clock):
    replace(NOW, attempt=0.5, finished=(VALIDATED,)).write(tmp_path)
    view = RunLine(tmp_path, clock)
    assert view().live.text() == "[    0s] starting"
    NOW.write(tmp_path)
    assert "epoch 3/5 train" in view().live.text()


def test_workers_that_start_again_are_told(tmp_path, view):
    replace(NOW, finished=(VALIDATED,)).write(tmp_path)
    view()
    replace(NOW, attempt=2.0, step=50, phase=Phase(0, "start", 1), finished=(replace(VALIDATED, number=2),)).write(
        tmp_path
    )
    frame = view()
    assert [line.text()[9:] for line in frame.finished] == [
        "the training started again | step 50",
        "epoch 3/5 val | 4/4 | val/iou 0.5 | val/loss 0.25 | took 5.00 s",
    ]
    assert frame.live.text()[9:] == "starting | step 50/120"


def test_a_silent_run_shows_no_rate(tmp_path, view, clock):
    NOW.write(tmp_path)
    view()
    clock.now += 29
    assert "samples/s" in view().live.text()
    clock.now += 16
    text = view().live.text()
    assert "no news for 45s" in text
    assert "samples/s" not in text
    replace(NOW, time=8.0).write(tmp_path)
    assert "samples/s" in view().live.text()


def test_eta():
    assert eta(None) == "ETA ?"
    assert eta(61.0) == "ETA 1m01s"
    assert eta(61.0, is_bound=True) == "ETA >1m01s"


def test_files_of_other_versions_are_not_understood(tmp_path):
    for content in ({"step": 1}, {"phase": 3, "finished": []}, {"phase": {"x": 1}, "finished": []}):
        write_json(tmp_path / PROGRESS, content)
        assert Progress.read(tmp_path) is None
        assert ProgressReader(tmp_path).poll() is None


def test_the_file_keeps_everything(tmp_path):
    progress = replace(NOW, finished=(TRAINING, VALIDATED), eta_is_bound=True)
    progress.write(tmp_path)
    assert Progress.read(tmp_path) == progress
