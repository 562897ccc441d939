"""What `reconstruct` costs: seconds against depth, peak memory against the number of inputs, a network of ResNet-50's size, and
moments taken inside ONNX Runtime against numpy. Every compression runs in a process of its own; all weights are random.

    python benchmarks/reconstruction_cost.py [--full]

Without --full in under two minutes on two cores: fewer depths and inputs, no ResNet-50. Exits 1 where seconds per layer grow with
depth, or memory with the number of inputs, by more than is asked of them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxmerge import Options, compress
from onnxmerge.runtime.providers import CPU
from onnxmerge.runtime.sessions import default_threads
from onnxmerge.statistics import gram
from onnxmerge.statistics.gram import Network, outputs_of, patches_of, summing, window_of

GROWTH_ALLOWED = 1.5  # seconds a layer, deepest against shallowest
MEMORY_ALLOWED_MIB = 1536  # more memory for sixteen times the inputs: the budget of what is held, and some
CHANNELS, EXTENT = 32, 16
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # ResNet-50: inner width, blocks
LAYERS = {
    "64 ch, 3x3, 56x56, 8 inputs": (64, 56, 8),
    "256 ch, 3x3, 14x14, 64": (256, 14, 64),
    "512 ch, 3x3, 7x7, 64": (512, 7, 64),
}


class Builder:
    """A network under construction, every convolution with BatchNormalization."""

    def __init__(self, extent: int) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, extent, extent])

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
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


def chain(depth: int) -> onnx.ModelProto:
    """`depth` convolutions in a row."""
    net = Builder(EXTENT)
    y = net.op("Relu", net.conv("x", 3, CHANNELS))
    for _ in range(depth - 1):
        y = net.op("Relu", net.conv(y, CHANNELS, CHANNELS))
    return net.finished(y, CHANNELS, 10)


def residual(depth: int) -> onnx.ModelProto:
    """`depth` convolutions in blocks of two on one stream."""
    net = Builder(EXTENT)
    y = net.op("Relu", net.conv("x", 3, CHANNELS))
    for _ in range((depth - 1) // 2):
        branch = net.op("Relu", net.conv(y, CHANNELS, CHANNELS))
        y = net.op("Relu", net.op("Add", net.conv(branch, CHANNELS, CHANNELS, scale=0.3), y))
    return net.finished(y, CHANNELS, 10)


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


NETWORKS = {"chain": chain, "residual": residual, "resnet50": lambda depth: resnet50()}


def child(kind: str, depth: int, samples: int) -> None:
    """One compression; prints seconds and peak memory as JSON."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "in.onnx", Path(name) / "out.onnx"
        onnx.save(NETWORKS[kind](depth), source)
        before = peak_mib()
        started = time.perf_counter()
        compress(source, target, Options(method="reconstruct", ratio=0.5, samples=samples, verify=False))
        print(json.dumps({"seconds": time.perf_counter() - started, "before_mib": before, "peak_mib": peak_mib()}))


def peak_mib() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def measured(kind: str, depth: int, samples: int) -> tuple[float, float]:
    """(seconds, peak MiB) of one compression in a process of its own."""
    words = [sys.executable, __file__, "--child", kind, str(depth), str(samples)]
    result = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return result["seconds"], result["peak_mib"]


def depths(full: bool) -> bool:
    """Whether a layer costs as much in a deep network as in a shallow one."""
    print("network   layers  inputs  seconds  seconds/layer  peak MiB")
    good = True
    for kind in ("chain", "residual"):
        each = []
        for depth in (8, 16, 32, 64) if full else (8, 32):
            seconds, peak = measured(kind, depth, 64)
            each.append(seconds / depth)
            print(f"{kind:9} {depth:6} {64:7} {seconds:8.1f} {seconds / depth:14.3f} {peak:9.0f}", flush=True)
        good &= each[-1] < GROWTH_ALLOWED * each[0]
    return good


def memory(full: bool) -> bool:
    """Whether memory is bounded whatever the number of inputs."""
    peaks = []
    for samples in (64, 256, 1024) if full else (64, 512):
        seconds, peak = measured("residual", 8, samples)
        peaks.append(peak)
        print(f"{'residual':9} {8:6} {samples:7} {seconds:8.1f} {seconds / 8:14.3f} {peak:9.0f}", flush=True)
    return peaks[-1] < peaks[0] + MEMORY_ALLOWED_MIB


def both_ways() -> None:
    """Seconds for the moments of one layer: products inside ONNX Runtime, products by numpy, and all of it by numpy."""
    print("layer                          ONNX Runtime   its patches, numpy's products   numpy alone")
    for name, (channels, extent, count) in LAYERS.items():
        x = np.random.default_rng(0).standard_normal((count, channels, extent, extent), np.float32)
        feeds = {"x": x, "y": x}
        window = window_of({"pads": [1] * 4}, x.shape, (3, 3), x.shape)
        found = []
        for by_numpy in ((), (CPU.name,)):
            gram.MULTIPLIED_BY_NUMPY = by_numpy
            net = Network()
            samples = patches_of(net, "x", window, 1, channels, (1, 1)), outputs_of(net, "y", window, 1, channels, (1, 1))
            found.append(best_of(partial(summing(net, feeds, samples, CPU, None), feeds)))
        (inside, sums), (mixed, same) = found
        alone, expected = best_of(partial(numpy_sums, x, x))
        for other in (sums["xx"][0], same["xx"][0]):
            np.testing.assert_allclose(other, expected, rtol=1e-2, atol=1.0)
        print(
            f"{name:30} {inside:10.2f} s {mixed:17.2f} s {inside / mixed:5.2f}x {alone:17.2f} s {inside / alone:5.2f}x",
            flush=True,
        )


def best_of(call: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """The fastest of a few calls, and its result."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - started)
    return min(times), result


def numpy_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """sum x x^T of 3 x 3 patches (position, channel), after the other sums, float32."""
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    rows = windows.transpose(0, 2, 3, 4, 5, 1).reshape(-1, 9 * x.shape[1])
    outputs = y.transpose(0, 2, 3, 1).reshape(-1, y.shape[1])
    rows.sum(0), outputs.sum(0), rows.T @ outputs, np.square(outputs).sum(0)
    return rows.T @ rows


def main(full: bool) -> int:
    """Exit code 1 where cost grows as it should not."""
    print(f"reconstruct, half of every group, {default_threads()} threads")
    good = [depths(full), memory(full)]
    if full:
        seconds, peak = measured("resnet50", 50, 64)
        print(f"{'resnet50':9} {53:6} {64:7} {seconds:8.1f} {seconds / 53:14.3f} {peak:9.0f}  (224 x 224)", flush=True)
    both_ways()
    return int(not all(good))


if __name__ == "__main__":
    if "--child" in sys.argv:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.exit(main("--full" in sys.argv))
