"""The bytes of ONNX tensors: embedded, in a file beside the model (mapped, never read whole), or sparse."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxmerge.errors import ModelError

# Two or four values share a byte: numpy has no such layout, so these are unpacked instead of viewed.
BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}


def is_external(tensor: TensorProto) -> bool:
    """Whether the values are in a file beside the model."""
    return tensor.data_location == TensorProto.EXTERNAL


def byte_count(tensor: TensorProto) -> int:
    """What shape and dtype ask for, in bytes; meaningless for strings, which are never raw bytes."""
    return (math.prod(tensor.dims) * bits_of(tensor.data_type) + 7) // 8


def bits_of(data_type: int) -> int:
    """Bits of one value in a file."""
    return BITS.get(data_type) or 8 * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize


def external_range(tensor: TensorProto, folder: Path) -> tuple[Path, int]:
    """File and offset of an external tensor's bytes, after checking that all of them are there."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = folder / location
    where = f"the external data of initializer '{tensor.name}'"
    if not location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise ModelError(f"{where} is at '{location}', which is not a relative path inside the model's folder")
    if file.resolve() != folder.resolve() / location:
        raise ModelError(
            f"{where} is a symbolic link ({file}; usual in a Hugging Face cache): copy the real files beside the model"
        )
    if not file.is_file():
        raise ModelError(f"{where} is missing: {file} does not exist")
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries["length"]) if "length" in entries else byte_count(tensor)
    except ValueError:
        raise ModelError(f"{where} has an offset or length that is no number") from None
    needed, present = byte_count(tensor), file.stat().st_size
    if offset < 0 or length != needed or offset + length > present:
        place = f"declared are {length} at offset {offset}, {file} has {present}"
        raise ModelError(f"{where} does not fit: its shape and dtype need {needed} bytes, {place}")
    return file, offset


def check_payload(tensor: TensorProto, folder: Path) -> None:
    """ModelError unless exactly the bytes that shape and dtype ask for are there."""
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"initializer '{tensor.name}' has a negative size in its shape {list(tensor.dims)}")
    if is_external(tensor):
        external_range(tensor, folder)
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
        return frozen(numpy_helper.to_array(tensor))
    file, offset = external_range(tensor, folder)
    shape, length = tuple(tensor.dims), byte_count(tensor)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if length == 0:
        return frozen(np.empty(shape, dtype))
    raw = np.memmap(file, np.uint8, "r", offset, (length,))
    if tensor.data_type in BITS:
        packed = TensorProto(dims=shape, data_type=tensor.data_type, raw_data=raw.tobytes())
        return frozen(numpy_helper.to_array(packed))
    return np.asarray(raw).view(dtype).reshape(shape)


def dense_of(sparse: onnx.SparseTensorProto, folder: Path) -> np.ndarray:
    """A sparse initializer written out; indices are linear (one axis) or one row of coordinates a value."""
    values, indices = array_of(sparse.values, folder), array_of(sparse.indices, folder)
    result = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        result.reshape(-1)[indices] = values
    else:
        result[tuple(indices.T)] = values
    return frozen(result)


def tensor_of(array: np.ndarray, name: str) -> TensorProto:
    """An array as a tensor with its bytes inside."""
    return numpy_helper.from_array(np.array(array, order="C", copy=None), name)


def embedded(tensor: TensorProto, folder: Path) -> TensorProto:
    """A copy with the bytes inside, whatever held them."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    if is_external(tensor):
        file, offset = external_range(tensor, folder)
        with file.open("rb") as stream:
            stream.seek(offset)
            copy.raw_data = stream.read(byte_count(tensor))
        del copy.external_data[:]
        copy.ClearField("data_location")
    return copy


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's text without line breaks, cut where it gets long."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + "..."


def frozen(array: np.ndarray) -> np.ndarray:
    """The same memory, not to be written through."""
    array = array.view()
    array.flags.writeable = False
    return array
