"""Patches and outputs of convolutions, and positions that are drawn, against loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from dense_samples import Case, im2col
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from running import run

from onnxmerge.statistics.unfold import by_group, drawn_positions, from_groups, patches_of, rows_of, thinning, window_of

CASES = {
    "1x1": Case((4, 5), (1, 1)),
    "3x3-padded": Case((5, 6), (3, 3), {"pads": [1, 1, 1, 1]}),
    "3x3-no-attributes": Case((5, 6), (3, 3)),
    "5x2": Case((7, 6), (5, 2)),
    "1d": Case((9,), (3,), {"pads": [1, 1]}),
    "1d-strided-dilated": Case((14,), (4,), {"strides": [3], "dilations": [2], "pads": [2, 1]}),
    "3d": Case((4, 3, 5), (2, 3, 2), {"pads": [1, 1, 0, 0, 1, 1], "strides": [2, 1, 2]}),
    "strides": Case((9, 8), (3, 3), {"strides": [2, 3]}),
    "strides-padded": Case((8, 8), (3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "dilations": Case((9, 10), (3, 2), {"dilations": [2, 3]}),
    "asymmetric-pads": Case((6, 5), (3, 3), {"pads": [0, 1, 3, 2]}),
    "strides-dilations-pads": Case((11, 9), (3, 2), {"strides": [2, 2], "dilations": [2, 3], "pads": [2, 0, 1, 3]}),
    "same-upper-even": Case((7, 8), (3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    "same-lower-even": Case((7, 8), (4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "same-upper-stride-beyond-kernel": Case((9, 8), (1, 2), {"auto_pad": "SAME_UPPER", "strides": [3, 3]}),
    "valid": Case((7, 8), (3, 3), {"auto_pad": "VALID", "strides": [2, 1]}),
    "groups": Case((5, 5), (3, 3), {"pads": [1, 1, 1, 1]}, groups=3),
    "groups-1d": Case((7,), (2,), {}, groups=2),
    "thinned": Case((12, 13), (3, 3), {"pads": [1, 1, 1, 1]}, thin=(2, 3)),
    "thinned-groups-strides": Case((15, 14), (3, 2), {"strides": [2, 1], "pads": [1, 0, 1, 1]}, groups=2, thin=(3, 2)),
    "thinned-1d": Case((20,), (3,), {"dilations": [2]}, thin=(4,)),
    "float16": Case((5, 6), (3, 3), {"pads": [1, 1, 1, 1]}, dtype="float16"),
}
INSIDE, OUT = 2, 3  # channels of a group


def convolution(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, weight, bias and what ONNX Runtime's own Conv makes of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, case.groups * INSIDE, *case.extents)).astype(case.dtype)
    weight = rng.normal(size=(case.groups * OUT, INSIDE, *case.kernel)).astype(case.dtype)
    bias = rng.normal(size=case.groups * OUT).astype(case.dtype)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=case.groups, **case.attributes)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(case.dtype))
    infos = [helper.make_tensor_value_info(name, kind, None) for name in "xy"]
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph([node], "conv", infos[:1], infos[1:], weights)
    (y,) = run(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), {"x": x})
    return x, weight, bias, y


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_patches_and_outputs_are_what_the_convolution_reads_and_writes(case: Case) -> None:
    x, weight, bias, y = convolution(case)
    thin = case.thin or (1,) * len(case.extents)
    window = window_of(case.attributes, x.shape, case.kernel, y.shape)
    channels = np.arange(case.groups * INSIDE).reshape(case.groups, INSIDE)
    positions = tuple(slice(0, None, step) for step in thin)
    patches = patches_of(x, window, channels, positions)
    view = y[(slice(None), slice(None), *positions)]
    outputs = by_group(view, case.groups)
    assert patches.dtype == outputs.dtype == np.float32
    np.testing.assert_array_equal(from_groups(outputs, view.shape), view)
    np.testing.assert_array_equal(patches, im2col(x, case, y.shape[2:], case.groups))
    flat = np.moveaxis(weight.reshape(case.groups, OUT, INSIDE, -1), 2, 3).reshape(case.groups, OUT, -1).astype(np.float64)
    computed = patches @ flat.swapaxes(1, 2) + bias.reshape(case.groups, 1, OUT)
    tolerance = 1e-2 if case.dtype == "float16" else 1e-5
    np.testing.assert_allclose(outputs, computed, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 5), 1), ((4, 5), 0), ((2, 3, 4), 2), ((2, 3, 4), 1), ((2, 3, 4, 5), 2)], ids=lambda value: str(value)
)
def test_rows_put_one_axis_last(shape: tuple[int, ...], axis: int) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(rows_of(x, axis), np.moveaxis(x, axis, -1).reshape(-1, shape[axis]))


def test_drawn_positions_are_as_likely_as_each_other() -> None:
    seen = np.zeros((12, 10))
    for batch in range(600):
        seen[drawn_positions((3, 5), batch)] += 1
    assert 20 < seen.min() <= seen.max() < 65


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 1 << 24), extents=st.lists(st.integers(1, 80), min_size=1, max_size=3), batches=st.integers(1, 30))
def test_every_row_and_column_is_seen(samples: int, extents: list[int], batches: int) -> None:
    """Those beside the padding are like no others, so that no thinning may leave them out, by chance or always."""
    steps = thinning(samples, 10, extents, batches)
    for axis, extent in enumerate(extents):
        seen = {at for batch in range(batches) for at in range(extent)[drawn_positions(steps, batch)[axis]]}
        assert seen == set(range(extent))


@pytest.mark.parametrize(
    ("samples", "unknowns", "extents", "steps"),
    [
        (1 << 13, 10, (32, 32), (1, 1)),
        (3 << 13, 10, (32, 32), (3, 1)),
        (9 << 13, 10, (32, 32), (3, 3)),
        (15 << 13, 10, (32, 32), (5, 3)),
        (9 << 13, 1 << 11, (32, 32), (1, 1)),
        (1 << 30, 10, (12, 11), (3, 1)),
        (9 << 13, 10, (64,), (9,)),
        (1 << 20, 10, (), ()),
    ],
)
def test_thinning_leaves_enough_and_takes_odd_steps(
    samples: int, unknowns: int, extents: tuple[int, ...], steps: tuple[int, ...]
) -> None:
    assert thinning(samples, unknowns, extents, 9) == steps
