"""Parts of a model as models of their own, and an order of nodes in which few tensors wait to be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxmerge.execution.tensor_store import Value
from onnxmerge.onnxio.traversal import tensors_read


def submodel(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Value],
    outputs: Iterable[str],
    constants: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """A model of some nodes of another one; initializers come along, external ones stay outside.

    Parameters
    ----------
    model : ModelProto
        The whole model.
    nodes : sequence of NodeProto
        In an order that runs; they may differ from those of the model.
    inputs : mapping of str to array or list of arrays
        The graph inputs by name, each with an example, which gives type and rank; axes are dynamic, but for the width that an
        Attention reads. An input takes the place of an initializer of its name.
    outputs : iterable of str
        The graph outputs; ONNX Runtime infers their types.
    constants : mapping of str to ndarray, optional
        Initializers that the model lacks, or that take the place of its own.
    """
    new = {name: value for name, value in (constants or {}).items() if name not in inputs}
    read = {name for node in nodes for name in tensors_read(node)}
    own = read - new.keys() - inputs.keys()
    graph = GraphProto(name="part")
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in own)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in new.items() if name in read)
    graph.sparse_initializer.extend(tensor for tensor in model.graph.sparse_initializer if tensor.values.name in own)
    # ONNX Runtime 1.31 takes the width of an Attention's output for 0 where that of its inputs is open
    attended = {name for node in nodes if node.op_type == "Attention" for name in node.input[:3]}
    graph.input.extend(_declaration(name, value, name in attended) for name, value in inputs.items())
    graph.output.extend(ValueInfoProto(name=name) for name in outputs)
    part = ModelProto(ir_version=model.ir_version, graph=graph, opset_import=model.opset_import, functions=model.functions)
    return part.SerializeToString()


def _declaration(name: str, example: Value, has_width: bool) -> ValueInfoProto:
    """The type of an input; has_width: with the extent of its last axis."""
    if isinstance(example, list):
        data_type = helper.np_dtype_to_tensor_dtype(example[0].dtype) if example else TensorProto.FLOAT
        return helper.make_tensor_sequence_value_info(name, data_type, None)
    width = example.shape[-1:] if has_width else ()
    shape = [*[None] * (example.ndim - len(width)), *width]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(example.dtype), shape)


def shallow_first(model: ModelProto) -> None:
    """Reorder the nodes so that of branches that meet the shorter comes first.

    A layer-wise run that stands in the longer branch then has the skip connection already, and can tell what will be added.
    """
    nodes = list(model.graph.node)
    producers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    sources = [sorted({producers[name] for name in tensors_read(node) if name in producers}) for node in nodes]
    depth = [0] * len(nodes)
    for index in range(len(nodes)):
        depth[index] = 1 + max((depth[source] for source in sources[index]), default=0)
    order: list[int] = []
    done = [False] * len(nodes)
    for end in sorted(set(range(len(nodes))).difference(*sources)):
        stack = [end]
        while stack:
            index = stack[-1]
            waiting = [source for source in sources[index] if not done[source]]
            if done[index] or not waiting:
                stack.pop()
                order += [] if done[index] else [index]
                done[index] = True
            else:
                stack.append(min(waiting, key=lambda source: depth[source]))
    del model.graph.node[:]
    model.graph.node.extend(nodes[index] for index in order)
