"""How a constant is stored in an exported model: inside it, in a file beside it, or as shape and dtype only."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto, numpy_helper

from onnxmerge.onnxio.external_data import ExternalDataWriter, byte_count, is_external, read_external_data
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.surgeon import DenseValues, StoredValues, stored_values
from onnxmerge.onnxio.tensors import embedded, tensor_of
from onnxmerge.onnxio.traversal import constants, graph_and_bodies
from onnxmerge.onnxio.wire_format import Content

# protobuf stops at 2 GiB; 64 MiB of that are left to the nodes, which take a few MB in the largest models
MESSAGE_LIMIT_BYTES = 2**31 - 2**26
# Tensors up to this size stay inside: shape inference may have to read them, and a page each in another file would be waste
SMALL_TENSOR_BYTES = 64 * 1024
# Models that are only tried are in memory up to this size: a file takes as long to write, and none of the memory
TRIAL_LIMIT_BYTES = 2**26

# Makes the tensor of an exported model from what a constant holds, and its name.
ToTensor = Callable[[DenseValues, str], TensorProto]


def stored_inside(folder: Path) -> ToTensor:
    """Tensors have their bytes inside; external ones are read from the folder."""

    def to_tensor(values: DenseValues, name: str) -> TensorProto:
        return _named(tensor_of(values, name) if isinstance(values, np.ndarray) else embedded(values, folder), name)

    return to_tensor


def stored_as_read(values: DenseValues, name: str) -> TensorProto:
    """A tensor whose bytes are where they were: inside, or outside."""
    tensor = TensorProto()
    tensor.CopyFrom(tensor_of(values, name) if isinstance(values, np.ndarray) else values)
    return _named(tensor, name)


def stored_beside(writer: ExternalDataWriter, folder: Path) -> ToTensor:
    """Large tensors go to a file of weights; small ones and strings stay inside. folder: of the model that is read."""
    inside = stored_inside(folder)

    def to_tensor(values: DenseValues, name: str) -> TensorProto:
        is_text = isinstance(values, TensorProto) and values.data_type == TensorProto.STRING
        if size_bytes(values) <= SMALL_TENSOR_BYTES or is_text:
            return inside(values, name)
        tensor = without_data(values, name)
        if isinstance(values, TensorProto) and is_external(values):
            writer.append_copy(tensor, values, folder)
        else:
            writer.append(tensor, raw_bytes(values, name))
        return tensor

    return to_tensor


def stored_apart(contents: dict[str, Content], model: Model) -> ToTensor:
    """The bytes of large tensors, but of those of bodies, go into `contents`, by name, to be written one after the other."""
    folder, (_, *bodies) = model.folder, graph_and_bodies(model.proto.graph)
    of_bodies = {tensor.name for body in bodies for tensor in body.initializer}
    inside = stored_inside(folder)

    def to_tensor(values: DenseValues, name: str) -> TensorProto:
        is_small = size_bytes(values) <= SMALL_TENSOR_BYTES or name in of_bodies
        if is_small or not (isinstance(values, np.ndarray) or is_external(values)):
            return inside(values, name)
        tensor = without_data(values, name)
        tensor.ClearField("data_location")
        contents[name] = byte_count(tensor), lambda: [_stored_bytes(values, name, folder)]
        return tensor

    return to_tensor


def _stored_bytes(values: DenseValues, name: str, folder: Path) -> bytes | memoryview:
    if isinstance(values, TensorProto) and is_external(values):
        return read_external_data(values, folder)
    return raw_bytes(values, name)


def without_data(values: DenseValues, name: str) -> TensorProto:
    """A tensor with shape and dtype, marked as external."""
    if isinstance(values, np.ndarray):
        data_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        return TensorProto(name=name, dims=values.shape, data_type=data_type, data_location=TensorProto.EXTERNAL)
    return TensorProto(name=name, dims=values.dims, data_type=values.data_type, data_location=TensorProto.EXTERNAL)


def size_bytes(values: StoredValues) -> int:
    """Size of a constant's values in bytes."""
    if isinstance(values, np.ndarray):
        return values.nbytes
    return values.ByteSize() if isinstance(values, SparseTensorProto) else max(byte_count(values), values.ByteSize())


def fits_one_message(model: Model, for_trial: bool = False) -> bool:
    """Whether the edited model can be one protobuf message, with all its weights inside. for_trial: a small one."""
    limit = min(MESSAGE_LIMIT_BYTES, TRIAL_LIMIT_BYTES) if for_trial else MESSAGE_LIMIT_BYTES
    unique = {id(values): values for values in map(stored_values, constants(model.graph))}
    return sum(map(size_bytes, unique.values())) < limit


def raw_bytes(values: DenseValues, name: str) -> bytes | memoryview:
    """The bytes as a file holds them, whichever field holds them now."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "f" and values.dtype.isnative and sys.byteorder == "little":
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    if isinstance(values, TensorProto) and values.HasField("raw_data"):
        return values.raw_data
    return tensor_of(values if isinstance(values, np.ndarray) else numpy_helper.to_array(values), name).raw_data


def _named(tensor: TensorProto, name: str) -> TensorProto:
    if tensor.name != name:
        tensor.name = name
    return tensor
