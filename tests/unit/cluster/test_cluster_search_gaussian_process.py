"""The Gaussian process of PB2 against what can be written down."""

import numpy as np
import pytest

from sensorlab.cluster.search.gaussian_process import Kernel, Process, fitted


def process(kernel, rows):
    points, times, targets = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    return Process(kernel, points[:, None], times, targets)


def test_the_kernel_is_a_squared_exponential_that_forgets():
    kernel = Kernel(length=0.5, forgetting=0.19, noise=0.1)
    points = np.array([[0.0, 0.0], [0.3, 0.4]])
    found = kernel.covariance(points, np.array([0.0, 4.0]), points, np.array([0.0, 4.0]))
    # |x - x'|^2 = 0.25, length^2 = 0.25; 0.81^(4 / 2) = 0.6561
    np.testing.assert_allclose(found, [[1, np.exp(-0.5) * 0.6561], [np.exp(-0.5) * 0.6561, 1]], rtol=1e-12)


def test_without_data_it_is_the_prior():
    prior = Process(Kernel(0.2, 0.1, 0.1), np.empty((0, 2)), np.empty(0), np.empty(0))
    mean, variance = prior.posterior(np.random.default_rng(0).random((3, 2)), np.zeros(3))
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_array_equal(variance, 1)
    assert prior.log_likelihood() == 0


def test_the_posterior_of_one_point():
    one = process(Kernel(0.5, 0.36, 0.25), [(0.2, 1, 2.0)])
    mean, variance = one.posterior(np.array([[0.2], [0.7]]), np.array([1.0, 2.0]))
    k = np.array([1.0, np.exp(-0.5) * 0.8])
    np.testing.assert_allclose(mean, k * 2.0 / 1.25)
    np.testing.assert_allclose(variance, 1 - k**2 / 1.25)
    assert one.log_likelihood() == pytest.approx(-0.5 * (4 / 1.25 + np.log(1.25) + np.log(2 * np.pi)))


def test_the_posterior_of_two_points_with_the_inverse_written_out():
    a, b, k, noise = 1.0, -0.5, np.exp(-0.5 * (0.6 / 0.4) ** 2), 0.1
    two = process(Kernel(0.4, 0.0, noise), [(0.1, 0, a), (0.7, 5, b)])
    d = 1 + noise
    determinant = d * d - k * k
    p, q = np.exp(-0.5 * (0.2 / 0.4) ** 2), np.exp(-0.5 * (0.4 / 0.4) ** 2)  # to x = 0.3
    mean, variance = two.posterior(np.array([[0.3]]), np.array([9.0]))
    assert mean[0] == pytest.approx((p * (d * a - k * b) + q * (d * b - k * a)) / determinant)
    assert variance[0] == pytest.approx(1 - (p * (d * p - k * q) + q * (d * q - k * p)) / determinant)
    quadratic = (d * a * a - 2 * k * a * b + d * b * b) / determinant
    assert two.log_likelihood() == pytest.approx(-0.5 * (quadratic + np.log(determinant)) - np.log(2 * np.pi))


def test_pending_points_shrink_the_variance_and_leave_the_mean():
    rng = np.random.default_rng(1)
    seen = Process(Kernel(0.3, 0.2, 0.05), rng.random((8, 2)), np.arange(8.0), rng.standard_normal(8))
    everywhere, now = rng.random((20, 2)), np.full(20, 8.0)
    pending = rng.random((2, 2))
    told = seen.with_pending(pending, np.full(2, 8.0))
    np.testing.assert_allclose(told.posterior(everywhere, now)[0], seen.posterior(everywhere, now)[0], atol=1e-12)
    assert (told.posterior(everywhere, now)[1] <= seen.posterior(everywhere, now)[1] + 1e-12).all()
    assert (told.posterior(pending, now[:2])[1] < 0.6 * seen.posterior(pending, now[:2])[1]).all()


@pytest.mark.parametrize("truth", [Kernel(0.1, 0.0, 0.01), Kernel(0.8, 0.0, 0.01), Kernel(0.4, 0.7, 0.01)])
def test_the_likelihood_finds_what_made_the_data(truth):
    rng = np.random.default_rng(2)
    points, times = rng.random((60, 1)), np.repeat(np.arange(10.0), 6)
    covariance = truth.covariance(points, times, points, times) + truth.noise * np.eye(60)
    targets = np.linalg.cholesky(covariance) @ rng.standard_normal(60)
    found = fitted(points, times, targets).kernel
    assert abs(np.log2(found.length / truth.length)) <= 1
    assert (found.forgetting >= 0.4) == (truth.forgetting > 0)
    assert found.noise <= 0.05
    assert fitted(points, times, rng.standard_normal(60)).kernel.noise >= 0.2


def test_equal_targets_are_no_obstacle():
    flat = fitted(np.random.default_rng(0).random((5, 3)), np.zeros(5), np.zeros(5))
    mean, variance = flat.posterior(np.random.default_rng(1).random((4, 3)), np.ones(4))
    np.testing.assert_array_equal(mean, 0)
    assert np.isfinite(variance).all()
