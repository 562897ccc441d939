"""Predictions of a language model at every so many-th position only: outputs are compared at a fraction of the cost then.

A model of 26 M parameters that knows 50,000 ids spends three quarters of its multiply-accumulates on its last product, and a
window of 128 tokens has 6.4 million predictions: 48 windows at all of their positions took longer to compare than to solve on.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from onnxmerge.execution.sessions import ModelSource, Session, label_of, open_session, path_of
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.traversal import tensors_read
from onnxmerge.onnxio.wire_format import read_model

COMPARED_NUMBERS, LEAST_POSITIONS = 1 << 20, 8
"""Numbers of an output that are compared of one input, about, and positions at least: 20 positions of 50,000 ids, a thousand of
48 inputs, of which each is as good as another."""

SLICE_OPSET = 10
"""From which on Slice has steps."""

BY_NUMBER, BY_OPERAND, BY_ROW = ("Cast", "Identity", "Tanh"), ("Add", "Sub", "Mul", "Div"), ("Softmax", "LogSoftmax")
"""Operators that compute each position by itself: of one operand, of another one with a number for each id, over the ids."""


def position_steps(shapes: Mapping[str, Sequence[int]], ids: Iterable[str], outputs: Iterable[str], opset: int) -> dict[str, int]:
    """Every how many-th position is compared, of outputs (batch, length, ids) of many ids; others are compared whole.

    Only where inputs (batch, length) hold ids: the second axis of a detector's (batch, 84, 33600) is no position.

    Parameters
    ----------
    shapes : mapping of str to sequence of int
        Of tensors in a run.
    ids : iterable of str
        Names of the graph inputs that may hold ids, see `id_inputs`.
    outputs : iterable of str
        Names of the graph outputs.
    opset : int
        Of the model.

    Examples
    --------
    >>> shapes = {"ids": (1, 128), "logits": (1, 128, 50257), "hidden": (1, 128, 384)}
    >>> position_steps(shapes, ["ids"], ["logits", "hidden"], 17)
    {'logits': 5}
    """
    lengths = {shapes[name][1] for name in ids if len(shapes.get(name, ())) == 2}
    known = {name: shapes[name] for name in outputs if len(shapes.get(name, ())) == 3 and opset >= SLICE_OPSET}
    many = {name: (length, ids) for name, (_, length, ids) in known.items() if ids > length and length in lengths}
    steps = {name: min(length * ids // COMPARED_NUMBERS, length // LEAST_POSITIONS) for name, (length, ids) in many.items()}
    return {name: (step - 1) | 1 for name, step in steps.items() if step > 2}


def id_inputs(graph: gs.Graph) -> list[str]:
    """Names of the inputs of a graph that may hold ids."""
    return [tensor.name for tensor in graph.inputs if tensor.dtype in (np.int32, np.int64)]


def at_few_positions(
    nodes: Sequence[NodeProto], outputs: Sequence[str], ranks: Mapping[str, int], steps: Mapping[str, int]
) -> tuple[list[NodeProto], list[str]]:
    """Nodes that give some outputs at every so many-th position, and compute no others where each is computed by itself.

    Parameters
    ----------
    nodes : sequence of NodeProto
        In an order that runs; left as they are.
    outputs : sequence of str
        What they are run for.
    ranks : mapping of str to int
        Of the tensors that no node computes.
    steps : mapping of str to int
        By output (batch, length, ids) every how many-th position is wanted, from the middle of the first ones on.

    Returns
    -------
    nodes : list of NodeProto
    outputs : list of str
        As given, but for the names of those that have fewer positions now.
    """
    result, names = list(nodes), dict(zip(outputs, outputs, strict=True))
    readers = Counter([*outputs, *(name for node in nodes for name in tensors_read(node))])
    known = _with_ranks_of_constants(nodes, ranks)
    for output, step in steps.items():
        at = {name: index for index, node in enumerate(result) for name in node.output}
        if output not in at or output not in names:
            continue
        source, first = output, len(result)
        while source in at and readers[source] == 1 and (read := _read_by_position(result[at[source]], known)):
            source, first, node = read, at[source], NodeProto.FromString(result[at[source]].SerializeToString())
            node.input[:] = [_few(name, output) if name == read else name for name in node.input]
            node.output[:] = [_few(name, output) for name in node.output]
            result[first] = node
        result[first:first] = _sliced(source, step, _few(source, output))
        names[output] = _few(output, output)
    return result, list(names.values())


def opened_at_few_positions(model: ModelSource, name: str, steps: Mapping[str, int], threads: int | None) -> Session:
    """A session on the CPU, with optimisation; name: what errors call a model that is no file."""
    content, folder = model, None
    if steps:
        proto = ModelProto.FromString(model) if isinstance(model, bytes) else read_model(path_of(model))
        folder = None if isinstance(model, bytes) else path_of(model).parent
        ranks = {tensor.name: len(tensor.dims) for tensor in proto.graph.initializer}
        outputs = [output.name for output in proto.graph.output]
        nodes, names = at_few_positions(proto.graph.node, outputs, ranks, steps)
        del proto.graph.node[:], proto.graph.output[:], proto.graph.value_info[:]
        proto.graph.node.extend(nodes)
        proto.graph.output.extend(ValueInfoProto(name=each) for each in names)
        content = proto.SerializeToString()
    return open_session(content, optimise=True, threads=threads, label=label_of(model, name), folder=folder)


def _few(name: str, output: str) -> str:
    """Of a tensor that is computed for an output: two outputs may come from one tensor, each at positions of its own."""
    return f"{name}//few/{output}"


def _with_ranks_of_constants(nodes: Iterable[NodeProto], ranks: Mapping[str, int]) -> dict[str, int]:
    """With those of constants that nodes hold, or turn over."""
    known = dict(ranks)
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            known[node.output[0]] = len(node.attribute[0].t.dims)
        elif node.op_type in ("Transpose", "DequantizeLinear", "Cast", "Identity") and node.input[0] in known:
            known[node.output[0]] = known[node.input[0]]
    return known


def _read_by_position(node: NodeProto, ranks: Mapping[str, int]) -> str | None:
    """What a node with one output (batch, length, n) computes it of position by position; None where it may read others.

    ranks: of constants.
    """
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in BY_NUMBER:
        return str(node.input[0])
    if node.op_type in BY_ROW:
        axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
        return str(node.input[0]) if axes and axes[0] in (-1, 2) else None
    if node.op_type == "MatMul":
        return str(node.input[0]) if ranks.get(node.input[1]) == 2 else None
    if node.op_type in BY_OPERAND:
        computed = [name for name in node.input if ranks.get(name, 2) > 1]
        return str(computed[0]) if len(computed) == 1 else None
    return None


def _sliced(source: str, step: int, few: str) -> list[NodeProto]:
    """Every step-th position of (batch, length, n), written to `few`."""
    numbers = {f"{few}/first": step // 2, f"{few}/end": np.iinfo(np.int64).max, f"{few}/axis": 1, f"{few}/step": step}
    tensors = [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in numbers.items()]
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors]
    return [*constants, helper.make_node("Slice", [source, *numbers], [few])]
