"""Criteria against slow double loops, equal rows and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxmerge.algorithms.criteria import CRITERIA, keep_best


def random_rows(seed: int, channels: int = 12, weights: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(channels, weights))


SLOW_CRITERIA = {
    "l1-norm": lambda rows: [math.fsum(abs(float(w)) for w in row) for row in rows],
    "l2-norm": lambda rows: [math.hypot(*map(float, row)) for row in rows],
    "l2-gm": lambda rows: [math.fsum(math.dist(row, other) for other in rows) for row in rows],
}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criterion_agrees_with_a_double_loop(criterion):
    rows = random_rows(1) + 3.0
    np.testing.assert_allclose(CRITERIA[criterion](rows), SLOW_CRITERIA[criterion](rows), rtol=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=str)
def test_equal_rows_get_equal_scores_far_from_the_origin(criterion, dtype):
    rows = (random_rows(2, 5, 300) + 50.0).astype(dtype)[[0, 1, 2, 0, 3, 1, 4]]
    scores = CRITERIA[criterion](rows)
    assert scores.dtype == np.float64
    assert scores[0] == scores[3]
    assert scores[1] == scores[5]


def test_geometric_median_is_exact_far_from_the_origin_and_among_many_equal_rows():
    far = random_rows(2) * 1e-3 + 1e3
    np.testing.assert_allclose(CRITERIA["l2-gm"](far), SLOW_CRITERIA["l2-gm"](far), rtol=1e-9)
    rows = random_rows(2, 3, 50)[[0] * 40 + [1] * 2 + [2]]
    scores = CRITERIA["l2-gm"](rows)
    np.testing.assert_allclose(scores, SLOW_CRITERIA["l2-gm"](rows), rtol=1e-11)
    assert np.unique(scores).size == 3


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("weights", [3, 27, 401, 1152])
def test_equal_rows_get_equal_scores_wherever_they_stand(weights, criterion):
    for channels in (5, 9, 13, 17, 33, 65, 101):
        order = np.random.default_rng(weights).permutation(2 * channels) % channels
        scores = CRITERIA[criterion](random_rows(channels, channels, weights)[order] + 1.0)
        assert np.isfinite(scores).all()
        assert np.unique(scores).size == channels


@pytest.mark.parametrize("criterion", CRITERIA)
def test_equal_rows_only_keep_the_lowest_indices(criterion):
    scores = CRITERIA[criterion](np.tile(random_rows(3, 1, 400), (6, 1)))
    assert keep_best(scores, 2).tolist() == [0, 1]


SCORES = np.array([1.0, 5.0, 3.0, 3.0, 0.0, 9.0])
KEEP = {
    "highest": ({}, 2, [1, 5]),
    "tie keeps the lower index": ({}, 3, [1, 2, 5]),
    "all": ({}, 6, [0, 1, 2, 3, 4, 5]),
    "pinned are counted": ({"removable": [1, 1, 1, 1, 0, 1]}, 2, [4, 5]),
    "all pinned": ({"removable": [0] * 6}, 6, [0, 1, 2, 3, 4, 5]),
    "conv groups": ({"conv_groups": [0, 0, 0, 1, 1, 1]}, 2, [1, 5]),
    "conv groups, interleaved, any labels": ({"conv_groups": [7, -1, 7, -1, 7, -1]}, 4, [0, 1, 2, 5]),
    "conv groups with pinned": ({"conv_groups": [0, 0, 0, 1, 1, 1], "removable": [0, 1, 1, 1, 0, 1]}, 2, [0, 4]),
}


@pytest.mark.parametrize(("options", "count", "expected"), KEEP.values(), ids=KEEP)
def test_keep_best(options, count, expected):
    options = {key: np.array(value, bool if key == "removable" else int) for key, value in options.items()}
    assert keep_best(SCORES, count, **options).tolist() == expected


IMPOSSIBLE = {
    "none": ({}, 0, "cannot keep 0"),
    "too many": ({}, 7, "cannot keep 7"),
    "too many pinned": ({"removable": np.zeros(6, bool)}, 5, "must stay"),
    "not divisible": ({"conv_groups": np.array([0, 0, 0, 1, 1, 1])}, 3, "equally"),
    "small conv group": ({"conv_groups": np.array([0, 1, 1, 1, 1, 1])}, 4, "fewer"),
    "pinned in a group": (
        {"conv_groups": np.arange(6) // 3, "removable": np.array([1, 1, 1, 0, 0, 1], bool)},
        2,
        "must stay",
    ),
    "wrong length": ({"removable": np.ones(5, bool)}, 2, "one entry a channel"),
}


@pytest.mark.parametrize(("options", "count", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_keep_best_says_what_is_impossible(options, count, message):
    with pytest.raises(ValueError, match=message):
        keep_best(SCORES, count, **options)


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        keep_best(np.array([1.0, np.nan]), 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_keep_best_properties(data):
    conv_groups, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    scores = np.array(data.draw(st.lists(st.integers(0, 4), min_size=conv_groups * size, max_size=conv_groups * size)), float)
    label = np.array(data.draw(st.permutations([group for group in range(conv_groups) for _ in range(size)])))
    quota = data.draw(st.integers(1, size))
    kept = keep_best(scores, quota * conv_groups, conv_groups=label)
    assert (np.diff(kept) > 0).all()
    assert (np.bincount(label[kept], minlength=conv_groups) == quota).all()
    for gone in np.setdiff1d(np.arange(scores.size), kept):
        rivals = kept[label[kept] == label[gone]]
        assert all(scores[rival] > scores[gone] or (scores[rival] == scores[gone] and rival < gone) for rival in rivals)
