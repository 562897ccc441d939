"""What the walk from producer to consumer tells of a group's neurons: scale, offset and the moments of what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import analysed, weights_of
from topologies.net import Net

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
def test_moments_of_the_neurons(steps, expected, tmp_path: Path) -> None:
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
