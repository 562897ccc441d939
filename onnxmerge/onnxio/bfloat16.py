"""bfloat16 models that take and give float32, since numpy lacks the type, and that compute it, where there are no kernels."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxmerge.onnxio.tensors import array_of, tensor_of
from onnxmerge.onnxio.traversal import bodies_of, graph_and_bodies, stored_tensors

_TYPES = frozenset({"to", "dtype", "stash_type", "output_dtype", "softmax_precision"})
"""Attributes that hold the number of a data type."""


def cast_to_float32(proto: ModelProto, folder: Path) -> bool:
    """Turn every bfloat16 of a model into float32, which holds all of its values; whether there was any.

    Parameters
    ----------
    proto : ModelProto
        It is changed; external bfloat16 weights come into it.
    folder : Path
        Where its external data is.
    """
    found = False
    for tensor in stored_tensors(proto):
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(tensor_of(array_of(tensor, folder).astype(np.float32), tensor.name))
            found = True
    found |= _cast(proto.graph.node, (*proto.graph.input, *proto.graph.output, *proto.graph.value_info))
    return any([_cast(function.node, function.value_info) for function in proto.functions]) or found


def cast_interface(proto: ModelProto) -> set[str]:
    """Give a model float32 inputs and outputs in the place of those of bfloat16, which it still computes; the names of these."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    values = [each for each in (*proto.graph.input, *proto.graph.output) if is_bfloat16(each) and each.name not in stored]
    inner = {value.name: f"{value.name}//bfloat16" for value in values}
    for node in (node for graph in graph_and_bodies(proto.graph) for node in graph.node):
        for names in (node.input, node.output):
            names[:] = [inner.get(name, name) for name in names]
    inputs, of_graph = {value.name for value in proto.graph.input}, list(proto.graph.node)
    into = [helper.make_node("Cast", [name], [new], to=TensorProto.BFLOAT16) for name, new in inner.items() if name in inputs]
    out_of = [helper.make_node("Cast", [new], [name], to=TensorProto.FLOAT) for name, new in inner.items() if name not in inputs]
    del proto.graph.node[:]
    proto.graph.node.extend([*into, *of_graph, *out_of])
    for value in values:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return set(inner)


def computed_in_bfloat16(proto: ModelProto) -> set[str]:
    """Tensors of the main graph, of those that hold floating-point numbers, that are of bfloat16: read, or computed from such."""
    found = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == TensorProto.BFLOAT16}
    found |= {value.name for value in proto.graph.input if is_bfloat16(value)}
    for node in proto.graph.node:
        types = [each.t.data_type if each.HasField("t") else each.i for each in node.attribute if each.name in {*_TYPES, "value"}]
        is_narrow = TensorProto.BFLOAT16 in types if node.op_type in ("Cast", "Constant") else found.intersection(node.input)
        found.update(node.output if is_narrow else ())
    return found


def is_bfloat16(value: ValueInfoProto) -> bool:
    """Whether a graph input or output is declared as a tensor of bfloat16."""
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type == TensorProto.BFLOAT16


def _cast(nodes: Iterable[NodeProto], values: Iterable[ValueInfoProto]) -> bool:
    found = False
    for value in filter(is_bfloat16, values):
        value.type.tensor_type.elem_type, found = TensorProto.FLOAT, True
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.name in _TYPES and attribute.i == TensorProto.BFLOAT16:
            attribute.i, found = TensorProto.FLOAT, True
        for body in bodies_of(attribute):
            found |= _cast(body.node, (*body.input, *body.output, *body.value_info))
    return found
