"""Peak memory of a command on a model of 134 MB, in a process of its own, as a multiple of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

WIDTH, HIDDEN, BLOCKS = 2048, 4096, 2  # so that the result too is tried from a file
CHILD = """
import json, sys, threading, time
import onnxmerge, onnxmerge.pipeline.compress

def resident():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return sum(int(lines[kind].split()[0]) * 1024 for kind in ("RssAnon", "RssFile"))

def watch():
    while True:
        peak[0] = max(peak[0], resident())
        time.sleep(0.005)

before, peak = resident(), [0]
threading.Thread(target=watch, daemon=True).start()
result = onnxmerge.compress(sys.argv[1], sys.argv[2], ratio=0.3, method="prune", bench=False, threads=1, samples=16)
print(json.dumps([peak[0] - before, result.fidelity.worst.fidelity]))
"""


def perceptrons(path: Path) -> None:
    """Residual blocks of two wide layers each."""
    nodes, weights, x = [], [], "x"
    block = np.random.default_rng(0).standard_normal((WIDTH, HIDDEN), np.float32) * np.float32(0.02)
    for number in range(BLOCKS):
        for kind, values in (("up", block), ("down", block.T)):
            weights.append(numpy_helper.from_array(np.ascontiguousarray(values), f"{kind}{number}"))
        nodes += [
            helper.make_node("MatMul", [x, f"up{number}"], [f"hidden{number}"]),
            helper.make_node("Relu", [f"hidden{number}"], [f"active{number}"]),
            helper.make_node("MatMul", [f"active{number}", f"down{number}"], [f"change{number}"]),
            helper.make_node("Add", [x, f"change{number}"], [f"x{number}"]),
        ]
        x = f"x{number}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "perceptrons", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells mapped and other memory")
def test_pruning_takes_the_memory_of_one_model(tmp_path: Path) -> None:
    """About 1.3 times, and not 6 times as with copies of the model in Python, in protobuf and in two sessions."""
    perceptrons(tmp_path / "in.onnx")
    size = (tmp_path / "in.onnx").stat().st_size
    words = [sys.executable, "-c", CHILD, str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx")]
    peak, fidelity = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert peak < 1.6 * size
    assert fidelity > 0.2
