"""Running small models and taking them apart, for the tests of the road from file to file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from topologies import Topology
from topologies.net import Net

from onnxmerge.data.balance import held
from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import inputs_for
from onnxmerge.evaluation.fidelity import compare
from onnxmerge.execution.sessions import open_session
from onnxmerge.execution.trial_runs import observe_twice
from onnxmerge.graph.analysed_model import AnalysedModel, analyse_model, shapes_of
from onnxmerge.options import InputOptions
from onnxmerge.pipeline.compress import compress
from onnxmerge.pruning import layer_update
from onnxmerge.results import Compression
from onnxmerge.statistics.reference_run import Replaced

PRODUCERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"}
LAYERS = PRODUCERS | {"LSTM", "GRU", "RNN", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
SAMPLES = 64
"""Inputs that reconstruction is solved on, and checked on, where a test says nothing else."""
FAST = {"samples": SAMPLES, "verify": False, "threads": 1}


def solve_consumers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept rows of producers stay: no consumer misses enough."""
    monkeypatch.setattr(layer_update, "least_missed", lambda unknowns: np.inf)


def run(model: onnx.ModelProto | Path, feeds: dict[str, np.ndarray], extra: tuple[str, ...] = ()) -> list[np.ndarray]:
    """The graph outputs, then the tensors named in `extra`; one thread and nothing optimised, so that bits can be compared."""
    proto = onnx.load(model) if isinstance(model, Path) else onnx.ModelProto.FromString(model.SerializeToString())
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def built(topology: Topology, seed: int = 1) -> onnx.ModelProto:
    """The topology's model, which is the same for the same seed."""
    return topology.build(np.random.default_rng(seed))


def written(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """The model in a file."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def chain(folder: Path, widths: tuple[int, ...] = (40, 40, 40)) -> Path:
    """The file of a perceptron with hidden layers of these widths."""
    net = Net(np.random.default_rng(0))
    y, before = net.input("x", 16), 16
    for number, width in enumerate(widths):
        y, before = net.relu(net.gemm(y, f"fc_{number}", before, width)), width
    net.output(net.gemm(y, "out", before, 4), 4)
    return written(net.model(), folder)


def analysed(model: onnx.ModelProto, folder: Path) -> AnalysedModel:
    """The analysis of a model from memory."""
    return analyse_model(written(model, folder, "analysed.onnx"))


_ANALYSED: dict[str, AnalysedModel] = {}


def analysed_topology(topology: Topology, folder: Path) -> AnalysedModel:
    """The analysis of a topology's model, made once in a process: rewriting leaves it as it is (test_rewrite.py)."""
    if topology.id not in _ANALYSED:
        _ANALYSED[topology.id] = analysed(built(topology), folder)
    return _ANALYSED[topology.id]


def with_replaced(model: onnx.ModelProto, replaced: dict[int, Replaced]) -> onnx.ModelProto:
    """The model with nodes of the same outputs in the place of its own, and the constants that they read."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    for nodes, constants in replaced.values():
        for node in nodes:
            next(each for each in changed.graph.node if each.output[0] == node.output[0]).CopyFrom(node)
        changed.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return changed


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Initializers and Constant nodes of the main graph by name."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = numpy_helper.to_array(attribute.t)
    return found


def relative_error(reference: list[np.ndarray], outputs: list[np.ndarray]) -> float:
    """The largest |y - y'| / |y| (L2) over the outputs."""
    pairs = [(one.astype(np.float64), other.astype(np.float64)) for one, other in zip(reference, outputs, strict=True)]
    return max(float(np.linalg.norm(one - other) / np.linalg.norm(one)) for one, other in pairs)


def tolerance_of(topology: Topology, single: float) -> float:
    """`single` for float32, what half precision allows for float16."""
    return 5e-3 if topology.dtype == "float16" else single


def check_inputs(source: Path, samples: int = SAMPLES) -> Inputs:
    """Synthetic inputs that nothing is solved on."""
    session = open_session(source, optimise=False, threads=1)
    return held(inputs_for(session, shapes_of(observe_twice(source).first), InputOptions(samples=samples, seed=5)))


def fidelity(source: Path, target: Path, inputs: Inputs) -> float:
    """Of the worst output of one file to another's."""
    pair = [open_session(path, optimise=False, threads=1) for path in (source, target)]
    return compare(pair[0], pair[1], inputs.batches(32), "").worst.fidelity


def shrunk(source: Path, target: Path, method: str, **options: object) -> Compression:
    """`compress` with options that make it quick."""
    return compress(source, target, method=method, **{**FAST, **options})
