from __future__ import annotations

import argparse
import itertools

import pytest

from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.errors import UserError
from sensorlab.selftest import commands, resume
from sensorlab.selftest.resume import Attempt, cost_of_kills, result_digest, run_attempt
from sensorlab.selftest.training import stripes_experiment, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of two seeds, and one of the first seed again."""
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        result = train(stripes_experiment(seed), root / name, JsonLog())
        assert result.steps == resume.NUM_STEPS
    return root


def test_the_network_learns(runs):
    steps = result_lines(runs / "a", "val/accuracy")
    assert steps[-1] > 0.7  # four classes


def result_lines(run_dir, name):
    import json

    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_digests_are_equal_for_equal_runs_only(runs):
    assert result_digest(runs / "a") == result_digest(runs / "again")
    assert not result_digest(runs / "a").items() & result_digest(runs / "b").items()


def test_the_digest_covers_the_log(runs):
    log = runs / "again" / "metrics.jsonl"
    text = log.read_text()
    expected = result_digest(runs / "again")
    try:
        log.write_text(text.replace('"step": 4,', '"step": 5,', 1))
        found = result_digest(runs / "again")
    finally:
        log.write_text(text)
    assert [name for name in expected if expected[name] != found[name]] == ["log"]


def test_cost_of_a_kill_in_steps_and_seconds():
    first = Attempt(0.0, first_step=0, step_at={step: float(step) for step in range(1, 6)}, saved=3, killed_at=5.5)
    second = Attempt(6.0, first_step=3, step_at={4: 8.0}, saved=0, killed_at=8.5)
    third = Attempt(9.0, first_step=0, step_at={step: 10.0 + step for step in range(1, 10)}, saved=9)
    one, two = cost_of_kills([first, second, third])
    assert (one.step, one.resumed_from, one.steps_repeated, one.lost_beyond_checkpoint) == (5, 3, 2, 0)
    assert (one.seconds_to_first_step, one.seconds_to_new_step) == (2.5, None)
    assert (two.steps_repeated, two.lost_beyond_checkpoint) == (4, 3)  # it ignored a complete checkpoint
    assert two.seconds_to_new_step == 16.0 - 8.5


def test_a_killed_child_is_resumed_and_one_that_fails_is_reported(tmp_path):
    killed = run_attempt(tmp_path / "run", seed=0, kill_after_step=7)
    assert killed.killed_at is not None
    assert killed.last_step >= 7
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"exit code .*\n(.|\n)*cannot write the run directory"):
        run_attempt(tmp_path / "file" / "run", seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_a_group_of_workers_is_killed_and_resumed(capsys, workers):
    assert resume.report(2, 1, workers)
    assert f"on {workers} workers" in capsys.readouterr().out


@pytest.mark.parametrize("different", [True, False])
def test_the_verdict(monkeypatch, capsys, different):
    """The verdict over attempts as they might have been; real kills are in the README's command."""
    straight = Attempt(0.0, 0, {1: 1.0}, 1)
    killed = [Attempt(0.0, 0, {1: 1.0, 2: 2.0}, 1, killed_at=2.5), Attempt(3.0, 1, {2: 4.0, 3: 5.0}, 3)]
    digests = itertools.cycle([{"model": "a", "log": "c"}, {"model": "b" if different else "a", "log": "c"}])
    monkeypatch.setattr(resume, "run_attempt", lambda *_: straight)
    monkeypatch.setattr(resume, "kill_and_resume", lambda *_: killed)
    monkeypatch.setattr(resume, "result_digest", lambda _: next(digests))
    assert commands.run_resume(argparse.Namespace(kills=1, seed=0, workers=1)) == int(different)
    assert ("FAILED" if different else "passed: 1 kills") in capsys.readouterr().out


def test_an_impossible_number_of_kills_is_refused():
    with pytest.raises(UserError, match="--kills"):
        resume.report(0, 0)
