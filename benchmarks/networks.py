"""Networks with random weights, for figures that do not depend on what was learnt: seconds, memory, latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

CHANNELS, EXTENT = 32, 16
WIDE = (4096, 8192)
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # ResNet-50: inner width, blocks


def wide_perceptrons(path: Path, blocks: int) -> None:
    """Write residual blocks of 4,096, 8,192 and 4,096 channels, 256 MiB each, their weights in a file beside the model."""
    rng, data = np.random.default_rng(0), path.with_name(f"{path.name}.data")
    nodes, weights, x = [], [], "x"
    with data.open("wb") as stream:
        for number in range(blocks):
            for kind, shape in (("up", WIDE), ("down", WIDE[::-1])):
                stream.write((rng.standard_normal(shape, np.float32) * np.float32(shape[0] ** -0.5)).data)
                weights.append(onnx.TensorProto(name=f"{kind}{number}", dims=shape, data_type=onnx.TensorProto.FLOAT))
                weights[-1].data_location = onnx.TensorProto.EXTERNAL
                length = 4 * shape[0] * shape[1]
                for key, value in (("location", data.name), ("offset", stream.tell() - length), ("length", length)):
                    weights[-1].external_data.add(key=key, value=str(value))
            nodes += [
                helper.make_node("MatMul", [x, f"up{number}"], [f"hidden{number}"]),
                helper.make_node("Relu", [f"hidden{number}"], [f"active{number}"]),
                helper.make_node("MatMul", [f"active{number}", f"down{number}"], [f"change{number}"]),
                helper.make_node("Add", [x, f"change{number}"], [f"x{number}"]),
            ]
            x = f"x{number}"
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", WIDE[0]]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "perceptrons", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)


class Builder:
    """A network under construction, every convolution with BatchNormalization."""

    def __init__(self, extent: int) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, extent, extent])

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_y"], name=name, **attributes))
        return f"{name}_y"

    def weight(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(self, x: str, inside: int, out: int, kernel: int = 3, stride: int = 1, scale: float = 1.0) -> str:
        deviation = np.sqrt(2 / (inside * kernel**2))
        weight = self.weight(self.rng.standard_normal((out, inside, kernel, kernel), np.float32) * deviation)
        y = self.op("Conv", x, weight, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4)
        gamma, variance = (self.rng.uniform(0.5, 1.5, out) for _ in range(2))
        parts = [scale * gamma, 0.2 * self.rng.standard_normal(out), 0.2 * self.rng.standard_normal(out), variance]
        return self.op("BatchNormalization", y, *map(self.weight, parts))

    def finished(self, y: str, channels: int, classes: int) -> onnx.ModelProto:
        flat = self.op("Flatten", self.op("GlobalAveragePool", y))
        weight = self.weight(self.rng.standard_normal((classes, channels)) / np.sqrt(channels))
        y = self.op("Gemm", flat, weight, self.weight(np.zeros(classes)), transB=1)
        output = helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, ["N", classes])
        graph = helper.make_graph(self.nodes, "benchmark", [self.input], [output], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(depth: int, channels: int = CHANNELS, extent: int = EXTENT) -> onnx.ModelProto:
    """`depth` convolutions in a row."""
    net = Builder(extent)
    y = net.op("Relu", net.conv("x", 3, channels))
    for _ in range(depth - 1):
        y = net.op("Relu", net.conv(y, channels, channels))
    return net.finished(y, channels, 10)


def resnet50() -> onnx.ModelProto:
    """53 convolutions, 25.5 million parameters, 224 x 224."""
    net = Builder(224)
    y = net.op("Relu", net.conv("x", 3, 64, 7, 2))
    y, channels = net.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 64
    for stage, (width, blocks) in enumerate(STAGES):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            branch = net.op("Relu", net.conv(y, channels, width, 1))
            branch = net.op("Relu", net.conv(branch, width, width, 3, stride))
            branch = net.conv(branch, width, 4 * width, 1, scale=0.3)
            y = y if block else net.conv(y, channels, 4 * width, 1, stride)
            y, channels = net.op("Relu", net.op("Add", branch, y)), 4 * width
    return net.finished(y, channels, 1000)
