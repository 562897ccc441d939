"""Windows of convolutions and of single channels: their blocks, their adjoints, and what ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxmerge.execution.sessions import open_session
from onnxmerge.statistics.channel_windows import windowed, windowed_adjoint
from onnxmerge.statistics.unfold import folded, output_extents, patches_of, window_of

WINDOWS = {
    "plain": ({}, (6, 7), (3, 3)),
    "padded": ({"pads": [1, 1, 1, 1]}, (6, 7), (3, 3)),
    "strides": ({"pads": [1, 0, 1, 2], "strides": [2, 3]}, (9, 8), (3, 2)),
    "dilations": ({"pads": [2, 2, 2, 2], "dilations": [2, 2]}, (8, 8), (3, 3)),
    "same upper": ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (7, 8), (3, 3)),
    "one axis": ({"pads": [1, 1]}, (9,), (3,)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_folding_is_the_adjoint_of_unfolding_and_blocks_are_parts(name: str) -> None:
    attributes, space, kernel = WINDOWS[name]
    rng, shape = np.random.default_rng(3), (2, 3, *space)
    x = rng.normal(size=shape).astype(np.float32)
    extents = output_extents(attributes, shape, kernel)
    y = convolved(x, np.ones((1, 3, *kernel), np.float32), attributes)
    assert y.shape[2:] == extents
    window, every = window_of(attributes, shape, kernel, y.shape), tuple(slice(0, None, 1) for _ in kernel)
    patches = patches_of(x, window, np.arange(3)[np.newaxis], every)[0]
    other = rng.normal(size=patches.shape).astype(np.float32)
    assert np.vdot(patches, other) == pytest.approx(np.vdot(x, folded(other, window, shape)), rel=1e-4)
    taken = tuple(slice(extent // 3, extent - extent // 4) for extent in extents)
    inputs, part = window.block(taken, space)
    found = patches_of(x[(slice(None), slice(None), *inputs)], part, np.arange(3)[np.newaxis], every)[0]
    whole = patches.reshape(2, *extents, -1)[(slice(None), *taken)]
    np.testing.assert_array_equal(found.reshape(whole.shape), whole)


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_of_channels_are_depthwise_convolutions(name: str) -> None:
    """And their adjoint is one."""
    attributes, space, kernel = WINDOWS[name]
    rng, shape = np.random.default_rng(4), (2, 3, *space)
    x, weight = (rng.normal(size=each).astype(np.float32) for each in (shape, (3, 1, *kernel)))
    y = convolved(x, weight, attributes)
    window, flat = window_of(attributes, shape, kernel, y.shape), weight.reshape(3, -1).T
    found = windowed(np.moveaxis(x, 1, -1), window, flat)
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), y, rtol=1e-4, atol=1e-5)
    other = rng.normal(size=found.shape).astype(np.float32)
    back = windowed_adjoint(other, window, flat, space)
    assert np.vdot(found, other) == pytest.approx(np.vdot(np.moveaxis(x, 1, -1), back), rel=1e-4)


def convolved(x: np.ndarray, weight: np.ndarray, attributes: dict) -> np.ndarray:
    """What ONNX Runtime gives for a convolution, depthwise where the weight reads one channel."""
    spec = {**attributes, "auto_pad": attributes.get("auto_pad", "NOTSET"), "group": x.shape[1] // weight.shape[1]}
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=weight.shape[2:], **spec)
    ends = [onnx.helper.make_tensor_value_info(name, 1, each) for name, each in (("x", x.shape), ("y", None))]
    graph = onnx.helper.make_graph([node], "conv", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (y,) = open_session(model.SerializeToString(), optimise=False, threads=1).run({"x": x}).values()
    return y
