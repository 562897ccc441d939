"""Node attributes from onnx-graphsurgeon's Python values: empty lists, integers for float attributes and numpy types included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from onnxmerge.onnxio import surgeon as gs


def attribute_proto(name: str, value: Any, old: AttributeProto | None, node: gs.Node, opset: int) -> AttributeProto:
    """The attribute with the type it had when read, else the one its operator declares, else the value's own."""
    if isinstance(value, type | np.dtype):
        value = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value))
    if isinstance(value, np.ndarray):
        value = value.tolist()
    kind = old.type if old is not None and old.type else _declared_type(node, name, opset)
    if kind in (AttributeProto.FLOAT, AttributeProto.FLOATS):
        value = float(value) if kind == AttributeProto.FLOAT else [float(each) for each in value]
    return onnx.helper.make_attribute(name, value, attr_type=kind)


def tensors_within(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    """The tensors of attributes, those in bodies included."""
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            yield from body.initializer
            for node in body.node:
                yield from tensors_within(node.attribute)


def _declared_type(node: gs.Node, name: str, opset: int) -> int | None:
    if node.domain not in (None, "", "ai.onnx"):
        return None
    try:
        declared: Any = onnx.defs.get_schema(node.op, opset, "").attributes[name].type
    except (onnx.defs.SchemaError, KeyError):
        return None
    return int(declared)
