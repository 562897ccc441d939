"""Gauss-Newton steps on conjugate directions, against dense least squares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxmerge.algorithms.gauss_newton import KroneckerFactors, conjugate_step


def spd(rng: np.random.Generator, n: int) -> np.ndarray:
    half = rng.normal(size=(n, 2 * n))
    return half @ half.T / n


def products(hessian: np.ndarray, shape: tuple[int, int]) -> Callable:
    """What `conjugate_step` asks for, from a dense matrix."""

    def product(v: np.ndarray) -> tuple[float, Callable[[], np.ndarray]]:
        changed = (hessian @ v.reshape(-1)).reshape(shape)
        return float(np.vdot(v, changed)), lambda: changed

    return product


@pytest.mark.parametrize("damping", [0.0, 1e-2, 1.0])
def test_many_directions_end_in_the_dense_least_squares(damping: float) -> None:
    """|r - J d|^2 + ridge |d|^2 over 3 x 4 unknowns, whatever the preconditioner."""
    rng, shape = np.random.default_rng(0), (3, 4)
    jacobian, missing, ridge = rng.normal(size=(40, 12)), rng.normal(size=40), 0.3
    factors = KroneckerFactors(spd(rng, 4), spd(rng, 3), damping)
    gradient = (jacobian.T @ missing).reshape(shape)
    hessian = jacobian.T @ jacobian + ridge * np.eye(12)
    step, fall = conjugate_step(gradient, products(hessian, shape), factors.solve, 40)  # rounding takes conjugacy away
    stacked = np.concatenate([jacobian, np.sqrt(ridge) * np.eye(12)]), np.concatenate([missing, np.zeros(12)])
    best, (left, *_), *_ = np.linalg.lstsq(*stacked, rcond=None)
    np.testing.assert_allclose(step.reshape(-1), best, atol=1e-8)
    assert missing @ missing - fall == pytest.approx(left, rel=1e-9)


def test_one_direction_is_enough_where_the_curvature_is_a_kronecker_product() -> None:
    rng = np.random.default_rng(1)
    inputs, outputs, gradient = spd(rng, 5), spd(rng, 3), rng.normal(size=(3, 5))
    factors = KroneckerFactors(inputs.copy(), outputs.copy(), damping=0.0)
    step, _ = conjugate_step(gradient, products(np.kron(outputs, inputs), (3, 5)), factors.solve, 1)
    np.testing.assert_allclose(step, np.linalg.solve(outputs, gradient) @ np.linalg.inv(inputs), rtol=1e-8)


@pytest.mark.parametrize("directions", [1, 2, 5])
def test_every_direction_falls_further_and_by_as_much_as_is_said(directions: int) -> None:
    rng = np.random.default_rng(2)
    hessian, gradient = spd(rng, 12), rng.normal(size=(3, 4))
    falls = []
    for count in (directions, directions + 1):
        step, fall = conjugate_step(gradient, products(hessian, (3, 4)), np.copy, count)
        flat = step.reshape(-1)
        assert fall == pytest.approx(2 * flat @ gradient.reshape(-1) - flat @ hessian @ flat, rel=1e-9)
        falls.append(fall)
    assert 0 < falls[0] < falls[1]


@pytest.mark.parametrize("curvature", [0.0, np.nan])
def test_without_curvature_or_gradient_nothing_moves(curvature: float) -> None:
    gradient = np.ones((2, 2))
    for given in (gradient, 0.0 * gradient):
        step, fall = conjugate_step(given, lambda v: (curvature, v.copy), np.copy, 3)
        assert not step.any()
        assert fall == 0.0
