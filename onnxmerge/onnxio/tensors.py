"""The values of ONNX tensors as arrays: inside the model, in a file beside it (mapped, never read whole), or sparse."""

from pathlib import Path

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto, numpy_helper

from onnxmerge.errors import ModelError, one_line
from onnxmerge.onnxio.external_data import (
    DATA_TYPES,
    SUB_BYTE_BITS,
    byte_count,
    is_external,
    locate_external_data,
    read_external_data,
)
from onnxmerge.onnxio.mapped_files import mapped_bytes


def check_data(tensor: TensorProto, folder: Path) -> None:
    """Check that exactly the bytes that shape and dtype ask for are there.

    Raises
    ------
    ModelError
        Where they are not.
    """
    if tensor.data_type not in DATA_TYPES:
        raise ModelError(f"initializer '{tensor.name}' has the data type {tensor.data_type}, which ONNX does not know")
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"initializer '{tensor.name}' has a negative size in its shape {list(tensor.dims)}")
    if is_external(tensor):
        locate_external_data(tensor, folder)
    elif tensor.HasField("raw_data") and len(tensor.raw_data) != byte_count(tensor):
        found = f"holds {len(tensor.raw_data)} bytes, its shape {list(tensor.dims)} needs {byte_count(tensor)}"
        raise ModelError(f"initializer '{tensor.name}' {found}")
    elif not tensor.HasField("raw_data"):
        try:
            numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"initializer '{tensor.name}' does not hold what its shape needs: {one_line(error)}") from None


def array_of(tensor: TensorProto, folder: Path) -> np.ndarray:
    """The values in their own dtype (bfloat16 and float8 from ml_dtypes), read-only; external ones are mapped."""
    if not is_external(tensor):
        return read_only(numpy_helper.to_array(tensor))
    file, offset = locate_external_data(tensor, folder)
    shape, length = tuple(tensor.dims), byte_count(tensor)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if length == 0:
        return read_only(np.empty(shape, dtype))
    raw = mapped_bytes(file, offset, length)
    if tensor.data_type in SUB_BYTE_BITS:
        packed = TensorProto(dims=shape, data_type=tensor.data_type, raw_data=raw.tobytes())
        return read_only(numpy_helper.to_array(packed))
    return raw.view(dtype).reshape(shape)


def dense_array_of(sparse: SparseTensorProto, folder: Path) -> np.ndarray:
    """A sparse initializer with its zeros written out.

    Its indices are linear (one axis), or one row of coordinates for each value.
    """
    values, indices = array_of(sparse.values, folder), array_of(sparse.indices, folder)
    result = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        result.reshape(-1)[indices] = values
    else:
        result[tuple(indices.T)] = values
    return read_only(result)


def tensor_of(array: np.ndarray, name: str) -> TensorProto:
    """An array as a tensor with its bytes inside."""
    return numpy_helper.from_array(np.array(array, order="C", copy=None), name)


def embedded(tensor: TensorProto, folder: Path) -> TensorProto:
    """A copy of a tensor with its bytes inside, wherever they were."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    if is_external(tensor):
        copy.raw_data = read_external_data(tensor, folder)
        del copy.external_data[:]
        copy.ClearField("data_location")
    return copy


def read_only(array: np.ndarray) -> np.ndarray:
    """The same memory, not to be written through."""
    array = array.view()
    array.flags.writeable = False
    return array
