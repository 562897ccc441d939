"""bfloat16 models as float32 ones: execution providers may lack kernels of bfloat16, and numpy lacks the type."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from onnxmerge.onnxio.tensors import array_of, tensor_of
from onnxmerge.onnxio.traversal import bodies_of, stored_tensors

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


def _cast(nodes: Iterable[NodeProto], values: Iterable[ValueInfoProto]) -> bool:
    found = False
    for kind in (value.type.tensor_type for value in values if value.type.HasField("tensor_type")):
        if kind.elem_type == TensorProto.BFLOAT16:
            kind.elem_type, found = TensorProto.FLOAT, True
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.name in _TYPES and attribute.i == TensorProto.BFLOAT16:
            attribute.i, found = TensorProto.FLOAT, True
        for body in bodies_of(attribute):
            found |= _cast(body.node, (*body.input, *body.output, *body.value_info))
    return found
