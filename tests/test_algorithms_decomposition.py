"""The `merge` decomposition against slow double loops, exact duplicates and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxmerge.algorithms.criteria import CRITERIA
from onnxmerge.algorithms.decomposition import absorb, decompose, decompose_affine


def random_rows(seed: int, channels: int = 12, weights: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(channels, weights))


# ---- slow references: plain Python, one pair of channels at a time


def dot(left, right) -> float:
    return math.fsum(float(a) * float(b) for a, b in zip(left, right, strict=True))


def length(row) -> float:
    return math.sqrt(dot(row, row))


def slow_scaling(rows, kept, threshold):
    scaling = [[0.0] * len(kept) for _ in rows]
    for i, row in enumerate(rows):
        if i in kept:
            scaling[i][list(kept).index(i)] = 1.0
            continue
        best, best_cosine = 0, -2.0
        for column, j in enumerate(kept):
            cosine = dot(row, rows[j]) / (length(row) * length(rows[j]))
            if cosine > best_cosine:
                best, best_cosine = column, cosine
        if best_cosine >= threshold and best_cosine > 0:
            scaling[i][best] = length(row) / length(rows[kept[best]])
    return np.array(scaling)


def normal_relu_mean(mean, deviation):
    """Closed form: m Phi(m / s) + s phi(m / s)."""
    z = mean / deviation
    return mean * 0.5 * (1 + math.erf(z / math.sqrt(2))) + deviation * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def slow_affine_scaling(rows, scale, offset, kept, threshold, weight, moments):
    scaling = [[0.0] * len(kept) for _ in rows]
    for i, row in enumerate(rows):
        if i in kept:
            scaling[i][list(kept).index(i)] = 1.0
            continue
        cosines, distances, factors = [], [], []
        for j in kept:
            sign = math.copysign(1, scale[i]) * math.copysign(1, scale[j])
            cosine = sign * dot(row, rows[j]) / (length(row) * length(rows[j]))
            factor = length(row) / length(rows[j]) * abs(scale[i]) / abs(scale[j])
            distance = abs(offset[i] - factor * offset[j]) / factor
            if moments is not None:
                mean, deviation = moments
                distance = abs(mean[i] / deviation[i] - mean[j] / deviation[j])
                same_mean = normal_relu_mean(mean[i], deviation[i]) / normal_relu_mean(mean[j], deviation[j])
                factor = cosine**2 * factor + (1 - cosine**2) * min(factor, same_mean)
            cosines.append(cosine)
            distances.append(distance)
            factors.append(factor)
        span = max(distances) - min(distances)
        scores = [
            weight * (1 - c) + (1 - weight) * ((d - min(distances)) / span if span else 0)
            for c, d in zip(cosines, distances, strict=True)
        ]
        best = scores.index(min(scores))
        if cosines[best] >= threshold and cosines[best] > 0:
            scaling[i][best] = factors[best]
    return np.array(scaling)


THRESHOLDS = (-1.0, 0.0, 0.3, 0.7, 1.0)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("seed", range(3))
def test_decompose_agrees_with_a_double_loop(seed, threshold):
    rows, kept = random_rows(seed), np.array([1, 4, 5, 9])
    result = decompose(rows, kept, threshold)
    np.testing.assert_allclose(result, slow_scaling(rows, kept, threshold), rtol=1e-12)


@pytest.mark.parametrize("with_moments", [False, True], ids=["paper", "moments"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 0.85, 1.0])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_decompose_affine_agrees_with_a_double_loop(threshold, weight, with_moments):
    rows, kept, rng = random_rows(4), np.array([0, 3, 7, 8, 11]), np.random.default_rng(5)
    scale, offset = rng.normal(size=12), rng.normal(size=12)
    moments = (rng.normal(size=12), rng.uniform(0.5, 2, 12)) if with_moments else None
    result = decompose_affine(rows, scale, offset, kept, threshold, weight, moments)
    expected = slow_affine_scaling(rows, scale, offset, kept, threshold, weight, moments)
    np.testing.assert_allclose(result, expected, rtol=1e-3 if with_moments else 1e-12)  # quadrature against erf


def test_several_producers_side_by_side_are_one_row():
    left, right, kept = random_rows(6), random_rows(7, weights=3), np.array([2, 5])
    joined = decompose(np.hstack([left, right]), kept, 0.1)
    np.testing.assert_allclose(joined, slow_scaling(np.hstack([left, right]), kept, 0.1), rtol=1e-12)


def test_positive_multiples_merge_exactly_and_negative_ones_never():
    base, factors = random_rows(8, 5, 20), np.array([3.7, 0.02, 150.0, 1.0, 1e-3])
    rows = np.vstack([base, base * factors[:, None], -base]).astype(np.float32)
    kept = np.arange(5)
    result = decompose(rows, kept, threshold=1.0)
    np.testing.assert_allclose(result[5:10], np.diag(factors), rtol=1e-6)
    assert not result[10:].any()
    assert decompose(rows[[0, 10]], np.array([0]), threshold=-1.0).tolist() == [[1.0], [0.0]]


def affine_duplicates(signs):
    """Channels 5..9 are positive multiples of 0..4 after the affine: y_i = factor y_j, whatever the signs of a_i and W_i."""
    rng = np.random.default_rng(9)
    factors, stretch = np.array([2.0, 0.3, 7.0, 1.0, 0.05]), rng.uniform(0.2, 5.0, 5) * signs
    rows = random_rows(9, 5, 18)
    scale, offset, mean, deviation = rng.normal(size=5), rng.normal(size=5), rng.normal(size=5), rng.uniform(0.5, 2, 5)
    return (
        np.vstack([rows, rows * stretch[:, None]]),
        np.concatenate([scale, scale * factors / stretch]),
        np.concatenate([offset, offset * factors]),
        (np.concatenate([mean, mean * factors]), np.concatenate([deviation, deviation * factors])),
        factors,
    )


@pytest.mark.parametrize("with_moments", [False, True], ids=["paper", "moments"])
@pytest.mark.parametrize("signs", [np.ones(5), -np.ones(5), np.array([1, -1, 1, -1, 1])], ids=["same", "opposed", "mixed"])
def test_affine_multiples_merge_exactly_through_any_gamma(signs, with_moments):
    rows, scale, offset, moments, factors = affine_duplicates(signs)
    result = decompose_affine(rows, scale, offset, np.arange(5), 0.99, 0.85, moments if with_moments else None)
    np.testing.assert_allclose(result[5:], np.diag(factors), rtol=1e-6, atol=1e-12)
    x = np.random.default_rng(10).normal(size=(18, 50))
    y = np.maximum((rows @ x) * scale[:, None] + offset[:, None], 0.0)
    np.testing.assert_allclose(result @ y[:5], y, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("with_moments", [False, True], ids=["paper", "moments"])
def test_an_affine_that_flips_the_sign_must_not_merge(with_moments):
    rows, scale, offset, moments, _ = affine_duplicates(np.ones(5))
    scale[5:] *= -1.0
    result = decompose_affine(rows, scale, offset, np.arange(5), 0.99, 0.85, moments if with_moments else None)
    assert not result[5:].any()


@pytest.mark.parametrize("factor", [0.3, 4.0])
def test_an_exact_multiple_is_chosen_before_channels_that_fire_more_alike(factor):
    """Its moments were taken from other inputs, so they fit less well than those of a channel that is merely similar."""
    rows = np.array([[1.0, 0.0], [1.0, 0.02], [factor, 0.0]]).astype(np.float32)
    offset, moments = np.array([0.3, 0.3, 0.3 * factor]), (np.array([-3.0, 0.5, 0.5]), np.ones(3))
    result = decompose_affine(rows, np.ones(3), offset, np.array([0, 1]), 0.5, 0.5, moments)
    np.testing.assert_allclose(result[2], [factor, 0.0], rtol=1e-6)
    offset[2] += 0.5
    assert decompose_affine(rows, np.ones(3), offset, np.array([0, 1]), 0.5, 0.5, moments)[2].argmax() == 1


def test_the_bias_decides_between_equally_similar_channels():
    rows, kept = np.array([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]]), np.array([0, 1])
    result = decompose_affine(rows, np.ones(3), np.array([5.0, 2.0, 1.0]), kept, 0.5, 0.85)
    assert result[2].tolist() == [0.0, 0.5]


def test_keep_all_is_the_identity():
    rows, everything = random_rows(11), np.arange(12)
    for result in (
        decompose(rows, everything, 0.5),
        decompose_affine(rows, np.ones(12), np.ones(12), everything, 0.5, 0.85),
        decompose_affine(rows, np.ones(12), np.ones(12), everything, 0.5, 0.85, (np.ones(12), np.ones(12))),
    ):
        assert np.array_equal(result, np.eye(12))


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5])
@pytest.mark.parametrize("kept", [[0, 1], [0], [1]], ids=["zero and live kept", "zero kept", "live kept"])
@pytest.mark.parametrize("zero", ["rows", "scale", "offset", "everything"])
@pytest.mark.parametrize("with_moments", [False, True], ids=["paper", "moments"])
@pytest.mark.filterwarnings("error")
def test_zeros_and_constants_give_no_nan(zero, kept, threshold, with_moments):
    arrays = {"rows": random_rows(12, 6, 4), "scale": np.ones(6), "offset": np.arange(6.0)}
    for name in arrays if zero == "everything" else (zero,):
        arrays[name][::2] = 0.0
    kept = np.array(kept)
    moments = (np.full(6, -50.0), np.abs(arrays["scale"])) if with_moments else None
    for result in (
        decompose(arrays["rows"], kept, threshold),
        decompose_affine(arrays["rows"], arrays["scale"], arrays["offset"], kept, threshold, 0.85, moments),
    ):
        assert np.isfinite(result).all()
    dead = np.flatnonzero(~((arrays["rows"] * arrays["scale"][:, None]) ** 2).sum(axis=1).astype(bool))
    assert not result[np.setdiff1d(dead, kept)].any()


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dead_offset", [0.0, -40.0, 40.0])
@pytest.mark.parametrize("with_moments", [False, True], ids=["paper", "moments"])
@pytest.mark.parametrize("seed", range(8))
def test_a_dead_kept_channel_changes_nothing_for_the_others(seed, with_moments, dead_offset, weight):
    rng = np.random.default_rng(seed)
    rows, scale, offset, kept = random_rows(seed), rng.uniform(0.5, 2.0, 12), rng.normal(size=12), np.array([1, 3, 4, 6, 10])
    rows[4], offset[4] = 0.0, dead_offset
    mean, deviation = offset.copy(), rng.uniform(0.5, 2.0, 12)
    moments = (mean, deviation) if with_moments else None
    with_dead = decompose_affine(rows, scale, offset, kept, 0.0, weight, moments)
    without = decompose_affine(rows, scale, offset, kept[kept != 4], 0.0, weight, moments)
    others = np.arange(12) != 4
    np.testing.assert_array_equal(np.delete(with_dead, 2, axis=1)[others], without[others])
    assert not with_dead[others, 2].any()


def test_moments_damp_a_scale_that_would_raise_the_mean_activation():
    rows, kept = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([0])
    equal, weaker = np.array([0.5, 0.5]), np.array([0.5, 0.0])
    deviations, silent = np.ones(2), np.array([-4.0, 0.5])

    def scale_with(mean):
        return decompose_affine(rows, np.ones(2), np.zeros(2), kept, 0.1, 0.85, (mean, deviations))[1, 0]

    assert scale_with(equal) == pytest.approx(1.0)
    ratio = normal_relu_mean(0.0, 1.0) / normal_relu_mean(0.5, 1.0)
    assert scale_with(weaker) == pytest.approx(0.36 + 0.64 * ratio, rel=1e-3)  # cosine 0.6
    assert scale_with(silent) == 1.0
    assert scale_with(silent[::-1]) == pytest.approx(0.36)


BAD_KEPT = {"none": [], "twice": [1, 1], "outside": [12], "negative": [-1], "two axes": [[1]]}


@pytest.mark.parametrize("kept", BAD_KEPT.values(), ids=BAD_KEPT)
def test_kept_must_be_distinct_channels(kept):
    with pytest.raises(ValueError, match="kept"):
        decompose(random_rows(13), np.array(kept, dtype=int), 0.5)


TAKING_ROWS = {"criterion": CRITERIA["l1-norm"], "decompose": lambda rows: decompose(rows, np.array([0]), 0.5)}


@pytest.mark.parametrize("call", TAKING_ROWS.values(), ids=TAKING_ROWS)
def test_rows_must_have_two_axes(call):
    with pytest.raises(ValueError, match="two axes"):
        call(np.ones((3, 2, 2)))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 20), st.integers(1, 6), st.floats(-1, 1), st.floats(0, 1), st.booleans())
def test_scaling_is_non_negative_with_one_entry_a_row(seed, channels, weights, threshold, cosine_weight, with_moments):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(channels, weights)) * rng.integers(0, 2, size=(channels, 1))
    kept = np.sort(rng.choice(channels, rng.integers(1, channels + 1), replace=False))
    scale, offset = rng.normal(size=channels) * rng.integers(0, 2, size=channels), rng.normal(size=channels)
    moments = (rng.normal(size=channels), np.abs(scale)) if with_moments else None
    affine = decompose_affine(rows, scale, offset, kept, threshold, cosine_weight, moments)
    for result in (decompose(rows, kept, threshold), affine):
        assert result.shape == (channels, kept.size)
        assert np.isfinite(result).all()
        assert (result >= 0).all()
        assert ((result != 0).sum(axis=1) <= 1).all()
        assert np.array_equal(result[kept], np.eye(kept.size))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_a_permutation_of_channels_changes_nothing(seed):
    rows, rng = random_rows(seed), np.random.default_rng(seed)
    scale, offset, kept, order = rng.normal(size=12), rng.normal(size=12), np.array([0, 2, 3, 9]), rng.permutation(12)
    where = np.argsort(order)
    plain = decompose_affine(rows, scale, offset, kept, 0.1, 0.85)
    permuted = decompose_affine(rows[order], scale[order], offset[order], where[kept], 0.1, 0.85)
    np.testing.assert_allclose(permuted, plain[order], rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 6, 1), (4, 6, 9), (1, 6, 2)], ids=str)
def test_absorb_agrees_with_a_loop(shape):
    rng = np.random.default_rng(14)
    weight, scaling = rng.normal(size=shape).astype(np.float32), np.zeros((6, 4))
    scaling[np.arange(5), [2, 0, 3, 1, 2]] = rng.uniform(0.5, 2.0, 5)  # the last channel goes without
    result = absorb(weight, scaling)
    assert result.dtype == np.float64
    assert result.shape == (shape[0], 4, shape[2])
    for out in range(shape[0]):
        for position in range(shape[2]):
            expected = [dot(weight[out, :, position], scaling[:, column]) for column in range(4)]
            np.testing.assert_allclose(result[out, :, position], expected, rtol=1e-10)


@pytest.mark.parametrize("scaling", [[[1.0, 0.5], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, -1.0]]])
def test_only_scaling_matrices_are_absorbed(scaling: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="at most one entry"):
        absorb(np.ones((1, 2, 1)), np.array(scaling))
