"""What folding took away: moments and lengths estimated from weights, and that nothing is lost where nothing need be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from running import relative_error, run

from onnxmerge.algorithms.folded_batchnorm import HALF_NORMAL, multiple_of, recovered_moments, restored_rows
from onnxmerge.pipeline.compress import compress

MODELS = Path(__file__).parents[1] / "models"


def folded_layer(seed: int, channels: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(rows, bias, mean, deviation) of a convolution 8 -> channels with BatchNormalization folded in, on inputs after ReLU."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(size=(72, 4000)) * rng.uniform(0.5, 2.0, 8).repeat(9)[:, None], 0.0)
    rows = rng.normal(size=(channels, 72)) + rng.normal(size=(channels, 1)) * 0.3
    y = rows @ x
    gamma, beta = rng.uniform(0.5, 1.5, channels), rng.normal(size=channels) * 0.3
    scale = gamma / y.std(axis=1)
    return rows * scale[:, None], beta - scale * y.mean(axis=1), beta, gamma


@pytest.mark.parametrize("seed", range(4))
def test_moments_come_back_from_folded_weights(seed):
    rows, bias, mean, deviation = folded_layer(seed)
    found = recovered_moments(rows, bias)
    assert found is not None
    assert np.corrcoef(found[0] / found[1], mean / deviation)[0, 1] > 0.5 > abs(np.corrcoef(bias, mean)[0, 1])
    np.testing.assert_allclose(found[1], deviation, rtol=0.5)


def test_biases_on_a_line_give_the_mean_of_the_inputs():
    rows = np.random.default_rng(3).normal(size=(10, 5))
    found = recovered_moments(rows, 0.2 - 3.0 * rows.sum(axis=1))
    assert found is not None
    np.testing.assert_allclose(found[0], 0.2, rtol=1e-9)
    np.testing.assert_allclose(found[1], 3.0 * HALF_NORMAL * np.linalg.norm(rows, axis=1), rtol=1e-9)


ROWS = np.random.default_rng(4).normal(size=(64, 9))
NOT_FOLDED = {
    "no bias": (ROWS, np.zeros(64)),
    "one bias for all": (ROWS, np.full(64, 0.7)),
    "equal sums": (ROWS - ROWS.mean(axis=1, keepdims=True), np.random.default_rng(5).normal(size=64)),
    "unrelated": (ROWS, np.random.default_rng(6).normal(size=64)),
    "inputs of negative mean": (ROWS, ROWS.sum(axis=1)),
    "too few channels to tell": (ROWS[:5], -ROWS[:5].sum(axis=1)),
    "one channel": (ROWS[:1], np.ones(1)),
    "all zero": (np.zeros((64, 9)), np.zeros(64)),
}


@pytest.mark.parametrize(("rows", "bias"), NOT_FOLDED.values(), ids=NOT_FOLDED)
@pytest.mark.filterwarnings("error")
def test_no_moments_where_nothing_hints_at_folding(rows, bias):
    assert recovered_moments(rows, bias) is None


def test_restored_rows_point_as_before_and_are_as_long_as_their_columns():
    rng = np.random.default_rng(7)
    rows, columns = rng.normal(size=(6, 9)), rng.normal(size=(6, 20))
    rows[2], columns[4] = 0.0, 0.0
    found = restored_rows(rows, columns)
    live = [0, 1, 3, 5]
    np.testing.assert_allclose(np.linalg.norm(found[live], axis=1), np.linalg.norm(columns[live], axis=1), rtol=1e-12)
    np.testing.assert_allclose(found[live] / rows[live], (found[live, :1] / rows[live, :1]).repeat(9, 1), rtol=1e-12)
    assert not found[[2, 4]].any()
    np.testing.assert_allclose(restored_rows(rows * 7.0, columns), found, rtol=1e-12)


BASE = np.array([[1.0, 2.0, 3.0], [-2.0, 1.0, 0.5]])
MULTIPLES = {
    "none": (BASE, {}, [0, 1]),
    "longest": (BASE[[0, 0, 1, 0]] * [[2], [5], [1], [3]], {}, [1, 1, 2, 1]),
    "equal keep the lower index": (BASE[[1, 0, 0]], {}, [0, 1, 1]),
    "opposed": (BASE[[0, 0]] * [[1], [-1]], {}, [0, 1]),
    "pinned before longer": (BASE[[0, 0]] * [[1], [5]], {"removable": [False, True]}, [0, 0]),
    "other profile": (BASE[[0, 0, 0]] * [[1], [5], [2]], {"profiles": [0, 1, 0]}, [2, 1, 2]),
    "float16": ((BASE[[0, 0]] * [[1], [0.37]]).astype(np.float16), {}, [0, 0]),
    "zero rows are their own": (BASE[[0, 0, 1]] * [[0], [0], [1]], {}, [0, 1, 2]),
}


@pytest.mark.parametrize(("rows", "options", "expected"), MULTIPLES.values(), ids=MULTIPLES)
def test_multiples(rows, options, expected):
    profiles = np.array(options.get("profiles", [0] * len(rows)))
    removable = np.array(options.get("removable", [True] * len(rows)))
    assert multiple_of(rows, profiles, removable).tolist() == expected


@pytest.mark.parametrize("layer", ["/4/body/body.0/Conv", "/8/body/body.0/Conv"])
@pytest.mark.parametrize("criterion", ["l1-norm", "l2-norm", "l2-gm"])
def test_multiples_in_a_folded_network_merge_exactly_whatever_their_consumers_weigh(criterion, layer, tmp_path):
    """The copies' columns are made long, so that the restored rows alone would keep the copies and drop other bases."""
    model, rng = onnx.load(MODELS / "digits-resnet.onnx"), np.random.default_rng(8)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    (node,) = [each for each in model.graph.node if each.name == layer]
    (consumer,) = [each for each in model.graph.node if each.name == layer.replace("body.0", "body.3")]
    weight, bias, columns = (numpy_helper.to_array(stored[name]).copy() for name in (*node.input[1:3], consumer.input[1]))
    factors = rng.uniform(0.3, 3.0, len(bias) // 2).astype(np.float32)
    weight[1::2], bias[1::2] = weight[::2] * factors[:, None, None, None], bias[::2] * factors
    columns[:, 1::2] *= rng.uniform(0.1, 3.0, (len(bias) // 2, 1, 1)).astype(np.float32)
    assert recovered_moments(weight.reshape(len(bias), -1), bias) is not None
    for name, values in zip((*node.input[1:3], consumer.input[1]), (weight, bias, columns), strict=True):
        stored[name].CopyFrom(numpy_helper.from_array(values, name))
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    compress(source, target, ratio=0.5, method="merge", criterion=criterion, include=(layer,), verify=False)
    feeds = {"x": rng.normal(size=(4, 1, 8, 8)).astype(np.float32)}
    assert relative_error(run(model, feeds), run(target, feeds)) < 1e-5
