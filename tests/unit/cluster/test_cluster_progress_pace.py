"""Rates and time left, against sums done by hand."""

import pytest

from sensorlab.cluster.progress.pace import HALF_LIFE_S, Interruption, Pace


def test_nothing_is_known_before_the_second_step():
    pace = Pace()
    pace.settle()
    assert (pace.wall_s, pace.samples_per_s, pace.step_s, pace.data_wait_s) == (None,) * 4
    pace.add(8, 20.0, 40.0, 60.0)  # compiles, fills caches
    pace.settle()
    assert pace.wall_s is None
    pace.add(8, 0.5, 1.5, 2.5)
    pace.settle()
    assert (pace.wall_s, pace.samples_per_s, pace.step_s, pace.data_wait_s) == (2.5, 4.0, 1.5, 0.5)


def test_the_past_weighs_half_after_a_half_life():
    pace = Pace()
    pace.add(1, 0.0, 1.0, 1.0)
    for _ in range(10):
        pace.add(1, 0.0, 1.0, 1.0)
    pace.settle()
    pace.add(1, 0.0, HALF_LIFE_S, HALF_LIFE_S)  # one step of a half-life
    pace.settle()
    assert pace.wall_s == pytest.approx((0.5 * 10 * 1.0 + HALF_LIFE_S) / (0.5 * 10 + 1))


def test_settling_often_or_seldom_makes_no_difference_while_the_speed_is_constant():
    often, seldom = Pace(), Pace()
    for step in range(100):
        for pace in (often, seldom):
            pace.add(4, 0.1, 0.4, 0.6)
        often.settle()
        if step % 50 == 49:
            seldom.settle()
    assert often.wall_s == pytest.approx(seldom.wall_s) == pytest.approx(0.6)
    assert often.samples_per_s == pytest.approx(8.0)


def test_interruptions_are_paid_until_the_end():
    evaluations = Interruption(since=0)
    assert evaluations.left_s(100) == 0.0  # none was timed
    evaluations.add(10, 5.0)
    evaluations.add(20, 7.0)
    assert evaluations.left_s(100) == 8 * 6.0  # at 30, 40, ... 100
    assert evaluations.left_s(20) == 0.0


def test_a_resumed_run_does_not_take_its_first_evaluation_for_the_usual_distance():
    evaluations = Interruption(since=90)
    evaluations.add(100, 6.0)  # two steps after a resume at 98, but ten after the evaluation before
    assert evaluations.left_s(200) == 10 * 6.0


def test_one_that_goes_on_is_counted_with_its_expected_length():
    evaluations = Interruption(since=0)
    expecting = evaluations.expecting(10, 4.0)
    assert expecting.left_s(30) == 2 * 4.0
    assert evaluations.left_s(30) == 0.0


def test_two_at_the_same_step_do_not_divide_by_zero():
    checkpoints = Interruption(since=5)
    checkpoints.add(5, 1.0)
    assert checkpoints.left_s(10) == 0.0
