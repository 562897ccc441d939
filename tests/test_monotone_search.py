"""The search for the first allocation that passes: within the stated number of measurements, whatever the quantity does."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxmerge.pipeline.monotone_search import SLOW_STEPS, MonotoneSearch

ALLOWED = 0.1


def falling(most: int = 300) -> st.SearchStrategy[list[float]]:
    """Losses of cliffs and plateaus: few distinct levels, orders of magnitude apart or nearly the same."""
    levels = st.one_of(st.sampled_from([0.0, 1e-9, 0.099, 0.1, 0.101, 1.0, math.inf]), st.floats(1e-4, 2.0))
    steps = st.lists(st.tuples(levels, st.integers(1, most // 6)), min_size=1, max_size=6)
    return steps.map(lambda found: [level for level, length in sorted(found, reverse=True) for _ in range(length)])


def searched(losses: list[float], predicted: list[float], scale: float = 1.0) -> tuple[MonotoneSearch, int]:
    """After a search that measures `losses`, and how many it measured; before it one of `scale` times the losses."""
    search, count = MonotoneSearch(predicted, goal=0.866 * ALLOWED, allowed=ALLOWED), 0
    if scale != 1.0:
        while (index := search.next()) is not None:
            search.record(index, scale * losses[index])
        search.restart()
    while (index := search.next()) is not None:
        assert search.failing < index < search.passing
        search.record(index, losses[index])
        count += 1
    return search, count


@settings(max_examples=200, deadline=None)
@given(losses=falling(), power=st.floats(0.1, 8.0), start=st.floats(1e-3, 1e3), scale=st.sampled_from([1.0, 0.5, 1.5]))
def test_the_first_that_passes_is_found_in_few_measurements(
    losses: list[float], power: float, start: float, scale: float
) -> None:
    predicted = [start * (1.0 - index / (len(losses) + 1)) ** power for index in range(len(losses))]
    search, count = searched(losses, predicted, scale)
    assert search.passing == next((index for index, loss in enumerate(losses) if loss <= ALLOWED), len(losses))
    assert count <= (SLOW_STEPS + 1) * (math.floor(math.log2(len(losses))) + 1) + (scale != 1.0)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_a_smooth_loss_comes_close_in_six_measurements(power: float, factor: float) -> None:
    """Not to the index, but to within a fifth of what is allowed, even where the prediction is far off."""
    predicted = np.geomspace(1.0, 1e-4, 256)
    losses = factor * predicted**power
    search, seen = MonotoneSearch(predicted.tolist(), goal=0.866 * ALLOWED, allowed=ALLOWED), []
    for _ in range(6):
        if (index := search.next()) is not None:
            search.record(index, losses[index])
            seen.append(losses[index])
    assert any(0.8 * ALLOWED <= loss <= ALLOWED for loss in seen)


def test_outputs_that_are_not_finite_are_a_loss() -> None:
    search = MonotoneSearch([1.0 / (index + 1) for index in range(6)], goal=0.08, allowed=ALLOWED)
    for index, loss in ((1, np.inf), (2, np.nan), (3, np.inf)):
        search.record(index, loss)
        assert (search.failing, search.passing) == (index, 6)
    assert search.next() == 5
