"""The least squares on moments against least squares on the samples themselves."""

import numpy as np
import pytest

from onnxmerge.algorithms.adjusted_targets import adjusted_target
from onnxmerge.algorithms.least_squares import (
    LARGEST_SYSTEM,
    RidgeSystem,
    fits_in_memory,
    mixed_weight,
    mixing,
    variance_correction,
)
from onnxmerge.algorithms.moments import MomentSums


def data(seed=0, count=300, d=7, o=4, noise=0.3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    return x, x @ rng.normal(size=(d, o)) + noise * rng.normal(size=(count, o)) + rng.normal(size=o)


def solve(moments, prior, ridge=1e-3, correction_exponent=0.5, independent=True):
    target = moments.covariance()
    return RidgeSystem(target.xx, target.count, prior, ridge, independent).solve(target, correction_exponent)


def oracle(x, y):
    """Weight (o, d) and bias (o,) by lstsq with a column of ones."""
    best = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    return best[:-1].T, best[-1]


@pytest.mark.parametrize("prior", [0.0, 3.0])
def test_without_ridge_it_is_lstsq(prior):
    x, y = data()
    weight, bias = solve(MomentSums.of(x, y), np.full((4, 7), prior), ridge=0.0, correction_exponent=0.0)
    expected, offset = oracle(x, y)
    np.testing.assert_allclose(weight, expected, atol=1e-8)
    np.testing.assert_allclose(bias, offset, atol=1e-8)


def test_ridge_pulls_to_the_prior_as_extra_samples_would():
    x, y = data()
    prior = np.random.default_rng(1).normal(size=(4, 7))
    xc, yc = x - x.mean(0), y - y.mean(0)
    strength = 0.2 * np.mean(xc.var(0)) * len(x)
    rows = np.r_[xc, np.sqrt(strength) * np.eye(7)]
    expected = np.linalg.lstsq(rows, np.r_[yc, np.sqrt(strength) * prior.T], rcond=None)[0].T
    np.testing.assert_allclose(solve(MomentSums.of(x, y), prior, ridge=0.2, correction_exponent=0.0)[0], expected, atol=1e-8)
    np.testing.assert_allclose(solve(MomentSums.of(x, y), prior, ridge=1e12, correction_exponent=0.0)[0], prior, atol=1e-8)


def test_centred_is_what_numpy_says():
    x, y = data()
    covariance = MomentSums.of(x, y).covariance()
    np.testing.assert_allclose(covariance.xx, np.cov(x.T, bias=True), atol=1e-10)
    np.testing.assert_allclose(covariance.xy, np.cov(x.T, y.T, bias=True)[:7, 7:], atol=1e-10)
    np.testing.assert_allclose(covariance.variance_y, y.var(0), atol=1e-10)


@pytest.mark.parametrize("correction_exponent", [0.5, 1.0])
def test_correction_restores_the_standard_deviation(correction_exponent):
    x, y = data(noise=2.0)
    plain = solve(MomentSums.of(x, y), np.zeros((4, 7)), correction_exponent=0.0)[0]
    weight, bias = solve(MomentSums.of(x, y), np.zeros((4, 7)), correction_exponent=correction_exponent)
    fitted, shrunk = (x @ weight.T + bias).std(0), (x @ plain.T).std(0)
    np.testing.assert_allclose(fitted, shrunk ** (1 - correction_exponent) * y.std(0) ** correction_exponent, rtol=1e-8)
    np.testing.assert_allclose((x @ weight.T + bias).mean(0), y.mean(0), atol=1e-9)


def test_correction_is_limited_and_leaves_dead_outputs_alone():
    np.testing.assert_allclose(variance_correction([100.0, 1e-6, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0], 1.0), [2.0, 0.5, 1.0, 1.0])


def test_mixing_is_least_squares_and_exact_for_multiples():
    x, _ = data(d=6)
    x = np.c_[x, 2.0 * x[:, 1] + 5.0]
    kept = np.array([0, 1, 4])
    mixed = mixing(np.cov(x.T, bias=True), kept, ridge=0.0)
    np.testing.assert_allclose(mixed, oracle(x[:, kept], x)[0][[2, 3, 5, 6]], atol=1e-8)
    np.testing.assert_allclose(mixed[3], [0.0, 2.0, 0.0], atol=1e-8)


@pytest.mark.parametrize("kernel", [(), (3,), (3, 2), (2, 1, 2)], ids=str)
def test_mixed_weight_reads_the_mixture(kernel):
    rng = np.random.default_rng(2)
    weight, mixed, kept = rng.normal(size=(5, 4, *kernel)), rng.normal(size=(2, 2)), rng.normal(size=(2, *kernel))
    full = np.tensordot(np.stack([mixed[0], [1.0, 0.0], mixed[1], [0.0, 1.0]]), kept, 1)
    axes = tuple(range(1, 2 + len(kernel)))
    reading = np.sum(mixed_weight(weight, [1, 3], mixed) * kept, axes)
    np.testing.assert_allclose(reading, np.sum(weight * full, axes), atol=1e-10)


CASES = {
    "dead input": lambda x, y: (x * (np.arange(7) != 2), y),
    "constant input": lambda x, y: (np.where(np.arange(7) == 2, 4.0, x), y),
    "all inputs constant": lambda x, y: (np.ones_like(x), y),
    "duplicated inputs": lambda x, y: (np.c_[x[:, :6], x[:, 0]], y),
    "constant output": lambda x, y: (x, np.where(np.arange(4) == 1, -2.0, y)),
    "zero output": lambda x, y: (x, 0.0 * y),
    "fewer samples than unknowns": lambda x, y: (x[:3], y[:3]),
    "one sample": lambda x, y: (x[:1], y[:1]),
    "scales apart": lambda x, y: (x * 10.0 ** np.arange(-3, 4), y * 1e4),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_degenerate_samples_give_finite_weights_that_do_no_harm(case):
    x, y = case(*data())
    moments = MomentSums.of(x, y)
    weight, bias = solve(moments, np.zeros((4, 7)), correction_exponent=0.0)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()
    assert (y - x @ weight.T).var(0).sum() <= y.var(0).sum() * (1.0 + 1e-6)
    np.testing.assert_allclose(x.mean(0) @ weight.T + bias, y.mean(0), atol=1e-6 * max(1.0, abs(y).max()))


@pytest.mark.parametrize(("count", "independent"), [(300, True), (40, True), (40, False)])
def test_a_second_target_is_solved_from_the_first_solution(count, independent):
    x, y = data(count=count)
    first, second, prior = MomentSums.of(x, y).covariance(), MomentSums.of(x, np.maximum(y, 0)).covariance(), np.ones((4, 7))
    system = RidgeSystem(first.xx.copy(), count, prior, 1e-2, independent)
    start = system.solve(first)[0]
    found = system.solve(second)[0]
    pull = system._pull
    best = start + np.linalg.solve(first.xx + pull * np.eye(7), second.xy - first.xx @ start.T).T
    scale = variance_correction(second.variance_y, np.einsum("od,de,oe->o", best, first.xx, best), 0.5)
    assert pull >= 1e-2 * np.diag(first.xx).mean() * (1.0 - 1e-12)
    np.testing.assert_allclose(found, best * scale[:, None], rtol=0.02)


def test_constant_inputs_keep_the_prior():
    x, y = data()
    x[:, 3] = 1.5
    prior = np.full((4, 7), 0.25)
    np.testing.assert_array_equal(solve(MomentSums.of(x, y), prior, correction_exponent=0.0)[0][:, 3], 0.25)


def test_same_input_same_bytes():
    x, y = data()
    first, second = (solve(MomentSums.of(x, y), np.zeros((4, 7))) for _ in range(2))
    assert first[0].tobytes() + first[1].tobytes() == second[0].tobytes() + second[1].tobytes()


def test_the_memory_rule():
    assert fits_in_memory(LARGEST_SYSTEM)
    assert not fits_in_memory(LARGEST_SYSTEM + 1)


def test_adjusted_target_hits_the_wanted_sum():
    rng = np.random.default_rng(3)
    output, other, wanted = rng.normal(size=(3, 2, 5, 4, 4))
    scale, shift = np.array([0.5, -2.0, 1.0, 3.0, 0.0]), rng.normal(size=5)
    through = lambda y: scale.reshape(-1, 1, 1) * y + shift.reshape(-1, 1, 1) + other  # noqa: E731
    target = adjusted_target(output, through(output), wanted, scale)
    np.testing.assert_allclose(through(target)[:, :4], wanted[:, :4], atol=1e-12)
    np.testing.assert_array_equal(target[:, 4], output[:, 4])


def test_adjusted_target_before_a_relu_changes_only_what_the_relu_lets_through():
    reached, wanted = np.array([[-1.0, -1.0, 2.0, 2.0]]), np.array([[-3.0, 4.0, -3.0, 4.0]])
    np.testing.assert_array_equal(adjusted_target(reached, reached, wanted, rectified=True), [[-1.0, 4.0, 0.0, 4.0]])
    np.testing.assert_array_equal(adjusted_target(reached, reached, wanted), wanted)


@pytest.mark.parametrize(("count", "ridge"), [(35, 0.5 * 7 / 35), (69, 0.5 * 7 / 69), (70, 1e-3)])
def test_few_overlapping_samples_raise_the_ridge(count, ridge):
    x, y = data(count=count)
    covariance = x - x.mean(0)
    damped = covariance.T @ covariance + ridge * (covariance**2).sum(0).mean() * np.eye(7)
    expected = np.linalg.solve(damped, covariance.T @ (y - y.mean(0))).T
    found = solve(MomentSums.of(x, y), np.zeros((4, 7)), ridge=1e-3, correction_exponent=0.0, independent=False)[0]
    np.testing.assert_allclose(found, expected, atol=1e-10)
