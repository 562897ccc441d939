"""Between producers and consumers: pre-activations with their mean and deviation, and the operators that bar merging."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from running import analysed, weights_of
from topologies.net import Net

from onnxmerge.graph.downstream import downstream_affine_of
from onnxmerge.graph.merge_validity import PreActivations, pre_activations

PER_CHANNEL = (8, 1, 1)


def scaled(net: Net, x: str) -> str:
    return net.op("Mul", x, net.const("factor", -1.5 * net.positive(*PER_CHANNEL)))


def shifted(net: Net, x: str) -> str:
    return net.op("Sub", x, net.const("shift", net.small(*PER_CHANNEL)))


def bn(net: Net, x: str) -> str:
    return net.batch_norm(x, f"bn_{len(net.nodes)}", 8)


# Steps between a convolution and its ReLU; what is known of mean and deviation behind them.
STEPS: dict[str, tuple[tuple[Callable[[Net, str], str], ...], Callable | None]] = {
    "bias only": ((), None),
    "scale and shift only": ((scaled, shifted), None),
    "bn": ((bn,), lambda w: (w["bn_1_bias"], w["bn_1_scale"])),
    "scale, bn": ((scaled, bn), lambda w: (w["bn_2_bias"], w["bn_2_scale"])),
    "bn, scale": ((bn, scaled), lambda w: (w["bn_1_bias"] * w["factor"], np.abs(w["bn_1_scale"] * w["factor"]))),
    "bn, shift": ((bn, shifted), lambda w: (w["bn_1_bias"] - w["shift"], w["bn_1_scale"])),
    "bn, bn": ((bn, bn), lambda w: (w["bn_2_bias"], w["bn_2_scale"])),
}


@pytest.mark.parametrize(("steps", "expected"), STEPS.values(), ids=STEPS)
def test_mean_and_deviation_of_pre_activations(steps, expected, tmp_path: Path) -> None:
    net = Net(np.random.default_rng(1))
    y = net.conv(net.input("x", 3, 6, 6), "conv_a", 3, 8)
    for step in steps:
        y = step(net, y)
    net.output(net.conv(net.relu(y), "out", 8, 4), 4, 6, 6)
    model = net.model()
    channels = analysed(model, tmp_path).channels
    (group,) = channels.groups
    found = pre_activations(channels, group)
    assert isinstance(found, PreActivations)
    if expected is None:
        assert found.mean_std is None
        return
    assert found.mean_std is not None
    mean, deviation = expected({name: np.squeeze(value) for name, value in weights_of(model).items()})
    np.testing.assert_allclose(found.mean_std[0], mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.mean_std[1], deviation, rtol=1e-4)  # sqrt(var / (var + epsilon)) is not quite 1


def one_channel_at_each_position(net: Net, y: str) -> str:
    return net.conv("x", "other", 3, 1)


# Steps between a producer of eight channels and its consumer, and whether f(s x) = s f(x) holds for each channel apart.
BETWEEN: dict[str, tuple[Callable[[Net, str], str], bool]] = {
    "maximum with zero": (lambda net, y: net.op("Max", y, net.const("zero", 0.0)), True),
    "maximum with a constant": (lambda net, y: net.op("Max", y, net.const("one", 1.0)), False),
    "maximum with a computed tensor": (lambda net, y: net.op("Max", y, one_channel_at_each_position(net, y)), False),
    "minimum with zero and a computed tensor": (
        lambda net, y: net.op("Min", y, net.const("zero", 0.0), one_channel_at_each_position(net, y)),
        False,
    ),
    "gate": (lambda net, y: net.op("Mul", y, one_channel_at_each_position(net, y)), True),
    "computed summand": (lambda net, y: net.op("Add", y, one_channel_at_each_position(net, y)), False),
    "cast to double and back": (lambda net, y: net.op("Cast", net.op("Cast", y, to=TensorProto.DOUBLE), to=1), True),
    "cast to integer and back": (lambda net, y: net.op("Cast", net.op("Cast", y, to=TensorProto.INT32), to=1), False),
}


@pytest.mark.parametrize(("step", "is_valid"), BETWEEN.values(), ids=BETWEEN)
def test_merging_is_valid_across_what_is_homogeneous(step, is_valid: bool, tmp_path: Path) -> None:
    net = Net(np.random.default_rng(1))
    y = step(net, net.conv(net.input("x", 3, 6, 6), "conv_a", 3, 8))
    net.output(net.conv(net.relu(y), "out", 8, 4), 4, 6, 6)
    channels = analysed(net.model(), tmp_path).channels
    (group,) = channels.groups
    assert isinstance(pre_activations(channels, group), PreActivations) is is_valid


def test_a_scale_belongs_to_channels_only_where_they_stand_on_axis_1(tmp_path: Path) -> None:
    """BatchNormalization behind a MatMul of three axes normalises positions, here as many as there are channels."""
    net = Net(np.random.default_rng(1))
    y = net.batch_norm(net.matmul(net.relu(net.matmul(net.input("x", 4, 6), "fc_a", 6, 8)), "fc_b", 8, 4), "bn", 4)
    net.output(net.matmul(net.relu(y), "out", 4, 2), 4, 2)
    channels = analysed(net.model(), tmp_path).channels
    (layer,) = [layer for layer in channels.layers if layer.name == "fc_b"]
    assert downstream_affine_of(channels, layer, {}).scale is None
