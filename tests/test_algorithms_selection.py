"""Backward elimination against the plain definition: refit after every removal."""

import numpy as np
import pytest

from onnxmerge.algorithms.elimination import eliminate, kept_after, weight_products
from onnxmerge.algorithms.patch_elimination import keep_by_patches
from onnxmerge.algorithms.removal_costs import BLOCK
from onnxmerge.algorithms.symmetric import BLOCK as BLOCK_COLUMNS
from onnxmerge.algorithms.symmetric import PANEL, Cholesky, invert, row_of, shrunk


def samples(seed, count, n, rank=None):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, rank or n)) @ rng.normal(size=(rank or n, n))


def covariance_of(x):
    return np.cov(x.T, bias=True).reshape(x.shape[1], x.shape[1])


def lost(covariance, weights, kept):
    """Share of the output variance that the best use of the kept channels loses."""
    inner = covariance[np.ix_(kept, kept)]
    best = np.linalg.lstsq(inner, covariance[kept] @ weights.T, rcond=None)[0]
    total = np.einsum("oi,ij,oj->", weights, covariance, weights)
    return 1.0 - np.sum((covariance[kept] @ weights.T) * best) / total


def greedy(consumers, steps):
    n = len(consumers[0][0])
    kept, order, cost = list(range(n)), [], []
    for _ in range(steps):
        trials = [np.mean([lost(c, w, [k for k in kept if k != i]) for c, w in consumers]) for i in kept]
        order.append(kept.pop(int(np.argmin(trials))))
        cost.append(min(trials))
    return order, cost


@pytest.mark.parametrize("count", [1, 3])
def test_follows_the_greedy_definition(count):
    rng = np.random.default_rng(1)
    consumers = [(covariance_of(samples(s, 200, 9)), rng.normal(size=(4, 9)) * 10.0**s) for s in range(count)]
    order, cost = greedy(consumers, 8)
    elimination = eliminate([(covariance, w.T @ w) for covariance, w in consumers], damping=1e-12)
    np.testing.assert_array_equal(elimination.order[:8], order)
    np.testing.assert_allclose(elimination.cost[:8], cost, rtol=1e-6, atol=1e-9)
    assert elimination.cost[-1] == pytest.approx(1.0, abs=1e-6)


def missed(covariance, crossed, unknowns):
    """What the least squares of some unknowns leaves of the targets, up to their variance."""
    return -np.trace(crossed[unknowns].T @ np.linalg.solve(covariance[np.ix_(unknowns, unknowns)], crossed[unknowns]))


@pytest.mark.parametrize("positions", [1, 3])
def test_whole_channels_go_by_what_all_of_their_positions_save(positions):
    """Of patches (position, channel), for targets that these do not give exactly."""
    rng, n = np.random.default_rng(2), 7
    x = samples(5, 400, positions * n)
    y = x @ rng.normal(size=(positions * n, 4)) + 3.0 * rng.normal(size=(400, 4))
    joint = covariance_of(np.c_[x, y])
    covariance, crossed, kept = joint[: len(joint) - 4, :-4], joint[:-4, -4:], list(range(n))
    for _ in range(4):
        left = [[k for k in kept if k != i] for i in kept]
        kept = min(left, key=lambda each: missed(covariance, crossed, np.add.outer(n * np.arange(positions), each).ravel()))
        found = keep_by_patches(covariance.copy(), crossed, len(kept), [True] * n, ridge=0.0)
        np.testing.assert_array_equal(found, kept)


def test_patches_keep_what_may_not_go():
    x, removable = samples(8, 50, 6), np.array([True, False, True, True, False, True])
    assert {1, 4} <= set(keep_by_patches(covariance_of(x), np.zeros((6, 2)), 3, removable).tolist())
    assert keep_by_patches(covariance_of(x), np.zeros((6, 2)), 0, removable).tolist() == [1, 4]


def test_blocked_downdates_give_the_exact_cost():
    n = 3 * BLOCK + 7
    covariance = covariance_of(samples(3, 4 * n, n))
    weights = np.random.default_rng(4).normal(size=(30, n))
    elimination = eliminate([(covariance, weights.T @ weights)], damping=1e-12)
    assert (np.diff(elimination.cost) >= 0).all()
    for count in (n - 1, n - BLOCK, n - BLOCK - 1, n // 2, 5):
        kept = kept_after(elimination, n, count)
        assert elimination.cost[n - count - 1] == pytest.approx(lost(covariance, weights, kept), rel=1e-6)


def test_dead_unread_constant_and_duplicated_channels_go_first_and_cost_nothing():
    x = samples(5, 400, 8)
    x[:, 1] = 0.0
    x[:, 4] = 3.0
    x[:, 6] = 2.5 * x[:, 0]
    weights = np.random.default_rng(6).normal(size=(5, 8))
    weights[:, 7] = 0.0
    elimination = eliminate([(covariance_of(x), weights.T @ weights)])
    assert np.isfinite(elimination.cost).all()
    assert elimination.cost[3] < 1e-4
    assert {1, 4}.issubset(elimination.order[:4])
    assert len({0, 6} & set(elimination.order[:4])) == 1


@pytest.mark.parametrize(
    "x", [np.zeros((10, 6)), samples(7, 3, 6), samples(7, 200, 6, rank=2)], ids=["all dead", "few samples", "rank 2"]
)
def test_degenerate_statistics_give_a_whole_order(x):
    elimination = eliminate([(covariance_of(x), 2 * np.ones((6, 6)))])
    assert sorted(elimination.order) == list(range(6))
    assert np.isfinite(elimination.cost).all()


def test_only_removable_channels_go():
    removable = np.array([True, False, True, True, False])
    elimination = eliminate([(covariance_of(samples(8, 50, 5)), np.eye(5))], removable)
    assert sorted(elimination.order) == [0, 2, 3]
    with pytest.raises(ValueError, match="3 may be removed"):
        kept_after(elimination, 5, 1)


def test_cells_stay_balanced():
    conv_groups = np.array([7, 7, 7, 7, 9, 9, 9, 9, 11, 11, 11, 11])
    removable = np.ones(12, bool)
    removable[0] = False
    elimination = eliminate([(covariance_of(samples(9, 60, 12)), 3 * np.ones((12, 12)))], removable, conv_groups)
    assert len(elimination.order) == 9
    for round_ in range(3):
        assert sorted(conv_groups[elimination.order[3 * round_ : 3 * round_ + 3]]) == [7, 9, 11]


def test_a_permutation_of_channels_permutes_the_order():
    covariance, weights = covariance_of(samples(10, 90, 20)), np.random.default_rng(11).normal(size=(6, 20))
    shuffle = np.random.default_rng(12).permutation(20)
    plain = eliminate([(covariance, weights.T @ weights)])
    moved = eliminate([(covariance[np.ix_(shuffle, shuffle)], weights[:, shuffle].T @ weights[:, shuffle])])
    np.testing.assert_array_equal(shuffle[moved.order], plain.order)


def test_same_input_same_bytes_and_input_untouched():
    covariance, weights = covariance_of(samples(13, 300, 64)), np.random.default_rng(14).normal(size=(9, 64))
    before = covariance.tobytes(), weights.tobytes()
    first, second = eliminate([(covariance, weights.T @ weights)]), eliminate([(covariance, weights.T @ weights)])
    assert first.order.tobytes() + first.cost.tobytes() == second.order.tobytes() + second.cost.tobytes()
    assert (covariance.tobytes(), weights.tobytes()) == before


@pytest.mark.parametrize("kernel", [(), (3,), (2, 2)], ids=str)
def test_weight_products_measure_the_error_as_the_consumers_see_it(kernel):
    rng = np.random.default_rng(15)
    weights, scale, consumer = rng.normal(size=(4, 6, *kernel)), rng.normal(size=4), rng.normal(size=(9, 4))
    products = weight_products(weights, scale, consumer.T @ consumer)
    error = rng.normal(size=6)
    seen = np.tensordot(consumer, scale.reshape(-1, *[1] * len(kernel)) * np.tensordot(weights, error, (1, 0)), 1)
    assert error @ products @ error == pytest.approx(np.sum(seen**2))
    np.testing.assert_allclose(weight_products(weights, scale), weight_products(weights, scale, np.eye(4)))
    np.testing.assert_allclose(weight_products(weights, scale, factor=consumer), products)
    np.testing.assert_allclose(weight_products(weights, scale, consumer.T @ consumer, consumer), 2.0 * products)


@pytest.mark.parametrize("n", [1, 5, BLOCK_COLUMNS + 3, PANEL + BLOCK_COLUMNS])
def test_factorisations_in_the_lower_triangle(n):
    x = samples(16, 2 * n + 3, n)
    matrix, right = x.T @ x / len(x) + np.eye(n), np.random.default_rng(17).normal(size=(n, 3))
    inverse = np.linalg.inv(matrix)
    lower = np.where(np.tri(n, dtype=bool), matrix, np.nan if n > PANEL else 0.0)
    with np.errstate(invalid="ignore"):
        factor = Cholesky(np.where(np.tri(n, dtype=bool), matrix, 7.0))
        np.testing.assert_allclose(np.tril(invert(lower)), np.tril(inverse), atol=1e-9)
    np.testing.assert_allclose(factor.solve(right), inverse @ right, atol=1e-8)
    assert factor.trace_of_inverse() == pytest.approx(np.trace(inverse))
    kept = np.flatnonzero(np.arange(n) % 3 == 0)
    np.testing.assert_array_equal(np.tril(shrunk(np.tril(matrix), kept)), np.tril(matrix[np.ix_(kept, kept)]))
    np.testing.assert_array_equal(row_of(np.tril(matrix), n // 2), matrix[n // 2])


def test_consumers_of_the_same_channels_count_each():
    covariance, other = (covariance_of(samples(seed, 300, 2 * BLOCK)) for seed in (18, 19))
    weights = np.random.default_rng(20).normal(size=(3, 9, 2 * BLOCK)) * np.array([1.0, 10.0, 0.1]).reshape(3, 1, 1)
    read = [covariance, covariance, other]
    shared, apart = (
        eliminate([(make(c), w.T @ w) for c, w in zip(read, weights, strict=True)]) for make in (np.asarray, np.array)
    )
    np.testing.assert_array_equal(shared.order, apart.order)
    np.testing.assert_allclose(shared.cost, apart.cost, rtol=1e-9)
