"""Where the bytes of a constant go: inside the model, into a file beside it, or nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto

from onnxmerge.onnxio.model import Model, constants
from onnxmerge.onnxio.surgeon import DenseValues, StoredValues, stored_values
from onnxmerge.onnxio.tensors import byte_count, embedded, tensor_of

EMBED_LIMIT = 2**31 - 2**26  # protobuf stops at 2 GiB; the rest is room for the nodes
SMALL_BYTES = 64 * 1024  # tensors that shape inference may have to read

Place = Callable[[DenseValues, str], TensorProto]


def inside(values: DenseValues, name: str, folder: Path) -> TensorProto:
    """A tensor with its bytes in it; external ones are read from the folder."""
    tensor = tensor_of(values, name) if isinstance(values, np.ndarray) else embedded(values, folder)
    return _named(tensor, name)


def as_held(values: DenseValues, name: str) -> TensorProto:
    """A tensor as it is: inside if it is inside, outside if it is outside."""
    tensor = TensorProto()
    tensor.CopyFrom(tensor_of(values, name) if isinstance(values, np.ndarray) else values)
    return _named(tensor, name)


def bare_tensor(values: DenseValues, name: str) -> TensorProto:
    """Only shape and dtype."""
    if isinstance(values, np.ndarray):
        data_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        return TensorProto(name=name, dims=values.shape, data_type=data_type, data_location=TensorProto.EXTERNAL)
    return TensorProto(name=name, dims=values.dims, data_type=values.data_type, data_location=TensorProto.EXTERNAL)


def held_bytes(values: StoredValues) -> int:
    """Size of a constant's values."""
    if isinstance(values, np.ndarray):
        return values.nbytes
    return values.ByteSize() if isinstance(values, SparseTensorProto) else max(byte_count(values), values.ByteSize())


def weight_bytes(model: Model) -> int:
    """Size of all constants of the edited graph."""
    unique = {id(values): values for values in map(stored_values, constants(model.graph))}
    return sum(held_bytes(values) for values in unique.values())


def fits_inside(model: Model) -> bool:
    """Whether the edited model can be one protobuf message."""
    return weight_bytes(model) < EMBED_LIMIT


def _named(tensor: TensorProto, name: str) -> TensorProto:
    if tensor.name != name:
        tensor.name = name
    return tensor
