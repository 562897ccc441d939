"""Hidden units of LSTM, GRU and RNN: gone from every gate, from the state and from what reads it; repaired behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from random_graphs.faults import difference
from random_graphs.generate import Generated
from random_graphs.masked_oracle import masked

from onnxmerge import compress

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
UNITS, INPUTS = 6, 5


def stacked(operator: str, directions: int, batch: int | str = 3) -> Generated:
    """MatMul, two recurrent layers with everything that they may have (states only for a fixed batch), MatMul; batch first."""
    rng, gates, nodes, stored = np.random.default_rng(0), GATES[operator] * UNITS, [], []

    def const(*shape: int) -> str:
        stored.append(numpy_helper.from_array(rng.normal(0, 0.7, shape).astype(np.float32), f"c{len(stored)}"))
        return str(stored[-1].name)

    def op(name: str, *inputs: str, outs: int = 1, **attributes: object) -> str:
        outputs = [f"t{len(nodes)}_{number}" for number in range(outs)]
        nodes.append(helper.make_node(name, list(inputs), outputs, **attributes))
        return outputs[0]

    tensor, count = op("Transpose", op("Relu", op("MatMul", "x", const(INPUTS, 8))), perm=[1, 0, 2]), 8
    for _ in range(2):
        states = [const(directions, 3, UNITS) if batch == 3 else "" for _ in range(1 + (operator == "LSTM"))]
        inputs = [const(directions, gates, count), const(directions, gates, UNITS), const(directions, 2 * gates), "", *states]
        inputs += [const(directions, 3 * UNITS)] if operator == "LSTM" else []
        both = {"direction": "bidirectional"} if directions == 2 else {}
        y = op(operator, tensor, *inputs, outs=2, hidden_size=UNITS, **both)
        stored.append(numpy_helper.from_array(np.array([0, 0, -1]), f"s{len(nodes)}"))
        tensor, count = op("Reshape", op("Transpose", y, perm=[0, 2, 1, 3]), stored[-1].name), directions * UNITS
    op("Transpose", op("MatMul", tensor, const(count, 4)), perm=[1, 0, 2])
    ends = [("x", [batch, 7, INPUTS]), (nodes[-1].output[0], [batch, 7, 4])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends)
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Generated(0, model, {"x": (3, 7, INPUTS)})


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("operator", GATES)
def test_as_if_masked(operator: str, directions: int, tmp_path: Path) -> None:
    whole, target = stacked(operator, directions), tmp_path / "out.onnx"
    result = compress(whole.model, target, ratio=0.5, method="prune", verify=False)
    small = onnx.load(target)
    assert [group.kept for group in result.groups] == [4, 3, 3]
    sizes = [attribute.i for node in small.graph.node for attribute in node.attribute if attribute.name == "hidden_size"]
    assert sizes == [3, 3]
    assert difference(masked(whole.model, small, whole.feeds()), whole.model, small, whole) == ""


def test_consumers_are_repaired(tmp_path: Path) -> None:
    """What reads the units that are left, a recurrent layer too, makes good a part of what was lost."""
    whole, found = stacked("LSTM", 1, "N"), {}
    options = {"target": "macs=0.6", "bench": False}
    options["calibration"] = np.random.default_rng(1).normal(size=(128, 7, INPUTS)).astype(np.float32)
    for method in ("prune", "reconstruct", "auto"):
        found[method] = compress(whole.model, tmp_path / "out.onnx", method=method, **options)
    assert all(result.after.macs <= 0.6 * result.before.macs for result in found.values())
    losses = {method: 1 - result.fidelity.worst.fidelity for method, result in found.items()}
    assert losses["reconstruct"] < 0.7 * losses["prune"]
    assert losses["auto"] <= losses["prune"]
