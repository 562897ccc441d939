"""Node attributes from onnx-graphsurgeon's Python values: empty lists, integers for float attributes and numpy types included."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from onnxmerge.onnxio import surgeon as gs


def attribute_proto(name: str, value: Any, as_read: AttributeProto | None, node: gs.Node, opset: int) -> AttributeProto:
    """The attribute as ONNX stores it.

    Parameters
    ----------
    name : str
        Of the attribute.
    value
        A number, string, dtype or array, or a list of these.
    as_read : AttributeProto or None
        The attribute of that name as read; its type is kept. Without it the type is the one that the operator declares, or
        else the value's own.
    node : Node
        The operator.
    opset : int
        Version of ONNX's own operators.
    """
    if isinstance(value, type | np.dtype):
        value = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value))
    if isinstance(value, np.ndarray):
        value = value.tolist()
    kind = as_read.type if as_read is not None and as_read.type else _declared_type(node, name, opset)
    if kind in (AttributeProto.FLOAT, AttributeProto.FLOATS):
        value = float(value) if kind == AttributeProto.FLOAT else [float(each) for each in value]
    return onnx.helper.make_attribute(name, value, attr_type=kind)


def _declared_type(node: gs.Node, name: str, opset: int) -> int | None:
    if node.domain not in (None, "", "ai.onnx"):
        return None
    try:
        declared: Any = onnx.defs.get_schema(node.op, opset, "").attributes[name].type
    except (onnx.defs.SchemaError, KeyError):
        return None
    return int(declared)
