"""Tests of the statistics behind "not distinguishable"."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sensorlab.report.distinguish import differences, holm, pooled_variance, student_tail


@pytest.mark.parametrize("freedom", [1, 2, 3.7, 12, 150])
@pytest.mark.parametrize("t", [0.0, 0.3, 2.0, 9.0])
def test_the_tail_of_students_distribution_is_that_of_scipy(t, freedom):
    stats = pytest.importorskip("scipy.stats")
    assert student_tail(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-6, abs=1e-12)


def test_two_pooled_configurations_are_the_classical_t_test():
    stats = pytest.importorskip("scipy.stats")
    a, b = [0.50, 0.52, 0.49], [0.46, 0.47]
    (found,) = differences([a, b], [9, 9])
    assert found.p == pytest.approx(stats.ttest_ind(a, b, equal_var=True).pvalue, rel=1e-6)
    assert found.gap == pytest.approx(np.mean(a) - np.mean(b))
    assert "3 d.o.f." in found.test


def test_many_repeats_use_welchs_test():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = list(0.5 + 0.01 * rng.normal(size=6)), list(0.49 + 0.05 * rng.normal(size=5))
    (found,) = differences([a, b], [9, 9])
    assert found.p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-6)
    assert found.test.startswith("Welch")


def test_the_spread_of_all_configurations_tells_what_two_alone_cannot():
    repeats = [[0.50, 0.51], [0.47, 0.48]]
    (alone,) = differences(repeats, [9, 9])
    pooled = differences([*repeats, [0.30, 0.31], [0.20, 0.21], [0.1, 0.11]], [9] * 5)
    assert not alone.is_clear  # 2 degrees of freedom
    assert pooled[0].is_clear


def test_a_single_training_is_compared_with_the_spread_of_the_others():
    found = differences([[0.5], [0.495, 0.455], [0.49, 0.46]], [9] * 3)
    assert [difference.is_clear for difference in found] == [False, False]
    assert all(difference.p is not None for difference in found)


def test_without_repeats_there_is_no_test():
    (found,) = differences([[0.9], [0.1]], [9, 9])
    assert found.p is None
    assert not found.is_clear
    assert "nothing was repeated" in found.test


def test_shorter_trainings_are_neither_tested_nor_pooled():
    equal = differences([[0.50, 0.52], [0.49, 0.51]], [9, 9])
    mixed = differences([[0.50, 0.52], [0.49, 0.51], [0.1, 0.1001]], [9, 9, 1])
    assert mixed[0] == equal[0]  # the tiny spread after one epoch has not been taken for that of nine
    assert mixed[1].p is None
    assert not mixed[1].is_rival


@pytest.mark.parametrize("repeats", [2, 3, 6])
def test_repeats_without_any_spread_give_no_verdict(repeats):
    samples = [[value] * repeats for value in (0.3, 0.3, 0.1)]  # the mean of three times 0.1 is not 0.1
    for difference in differences(samples, [9] * 3):
        assert difference.p is None
        assert not difference.is_clear
        assert "gave the same number" in difference.test
    samples.append([0.2, *[0.21] * (repeats - 1)])
    assert all(difference.p is not None for difference in differences(samples, [9] * 4))  # one spread is known


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_false_alarms_stay_below_the_level():
    """Ten equal configurations with two seeds each: "the best differs from some other" must be rare."""
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(200):
        samples = [list(rng.normal(size=2)) for _ in range(10)]
        alarms += any(difference.is_clear for difference in differences(samples, [1] * 10))
    assert alarms / 200 < 0.10  # 5%, and the noise of 200 repetitions


def test_no_configurations():
    assert differences([], []) == []
    assert math.isnan(pooled_variance([[1.0], [2.0]])[0])
