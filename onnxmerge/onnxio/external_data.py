"""External data: weights in a file beside the model. Where it is checked, read, and written one tensor at a time."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import onnx
from onnx import ModelProto, StringStringEntryProto, TensorProto

from onnxmerge.errors import ModelError
from onnxmerge.onnxio.traversal import stored_tensors

# Data types of which two or four values share a byte. numpy has no such layout, so these are unpacked instead of mapped.
SUB_BYTE_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}

DATA_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}

PAGE_BYTES = 4096  # tensors start at a multiple of the usual page size, so that a runtime can map them
COPY_BYTES = 1 << 24  # copied at a time: small beside any model, large enough for the speed of a disk


def is_external(tensor: TensorProto) -> bool:
    """Whether the values are in a file beside the model."""
    return tensor.data_location == TensorProto.EXTERNAL


def bits_of_value(data_type: int) -> int:
    """Size of one value of a type that is in `DATA_TYPES`, in bits; of a string that of a pointer."""
    return SUB_BYTE_BITS.get(data_type) or 8 * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize


def byte_count(tensor: TensorProto) -> int:
    """Size in bytes that shape and dtype ask for; without meaning for strings, which are never raw bytes."""
    return (math.prod(tensor.dims) * bits_of_value(tensor.data_type) + 7) // 8


def location_of(tensor: TensorProto) -> str:
    """The file of an external tensor, relative to the model's folder; empty where none is named."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def external_locations(proto: ModelProto) -> set[str]:
    """The files that hold weights of a model, relative to its folder."""
    return {location_of(tensor) for tensor in stored_tensors(proto) if is_external(tensor)}


def external_bytes(proto: ModelProto, path: Path) -> int:
    """Size of the weights that the model at a path has in other files, in bytes."""
    outside = (tensor for tensor in stored_tensors(proto) if is_external(tensor) and location_of(tensor) != path.name)
    return sum(map(byte_count, outside))


def locate_external_data(tensor: TensorProto, folder: Path) -> tuple[Path, int]:
    """File and offset of an external tensor's bytes, after checking that all of them are there.

    Parameters
    ----------
    tensor : TensorProto
        An external one.
    folder : Path
        The model's.

    Raises
    ------
    ModelError
        Where the file is outside the folder, linked, missing or too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = folder / location
    where = f"the external data of initializer '{tensor.name}'"
    if not location or "\0" in location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise ModelError(f"{where} is at '{location}', which is not a relative path inside the model's folder")
    try:
        is_link, is_file = file.resolve() != folder.resolve() / location, file.is_file()
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error.strerror}") from error
    if is_link:
        raise ModelError(
            f"{where} is a symbolic link ({file}; usual in a Hugging Face cache): copy the real files beside the model"
        )
    if not is_file:
        raise ModelError(f"{where} is missing: {file} does not exist")
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries["length"]) if "length" in entries else byte_count(tensor)
    except ValueError:
        raise ModelError(f"{where} has an offset or length that is no number") from None
    needed, present = byte_count(tensor), file.stat().st_size
    if offset < 0 or length != needed or offset + length > present:
        found = f"declared are {length} at offset {offset}, {file} has {present}"
        raise ModelError(f"{where} does not fit: its shape and dtype need {needed} bytes, {found}")
    return file, offset


def read_external_data(tensor: TensorProto, folder: Path) -> bytes:
    """All bytes of an external tensor."""
    file, offset = locate_external_data(tensor, folder)
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(byte_count(tensor))


class ExternalDataWriter:
    """A new file of weights; a context manager that makes it durable at the end.

    Parameters
    ----------
    path : Path
        The file; the model will be beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: IO[bytes] = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def append(self, tensor: TensorProto, data: bytes | memoryview) -> None:
        """Append bytes, and let a tensor, which holds none, refer to them."""
        offset = self._start()
        self._stream.write(data)
        self._refer(tensor, offset)

    def append_copy(self, tensor: TensorProto, source: TensorProto, folder: Path) -> None:
        """The same with the bytes of another external tensor, which are not read at once."""
        offset = self._start()
        file, start = locate_external_data(source, folder)
        remaining = byte_count(source)
        with file.open("rb") as stream:
            stream.seek(start)
            while remaining:
                chunk = stream.read(min(COPY_BYTES, remaining))
                if not chunk:
                    raise OSError(f"{file} became shorter while it was read")
                self._stream.write(chunk)
                remaining -= len(chunk)
        self._refer(tensor, offset)

    def _start(self) -> int:
        self._stream.write(bytes(-self._stream.tell() % PAGE_BYTES))
        return self._stream.tell()

    def _refer(self, tensor: TensorProto, offset: int) -> None:
        entries = {"location": self.path.name, "offset": offset, "length": self._stream.tell() - offset}
        tensor.external_data.extend(StringStringEntryProto(key=key, value=str(value)) for key, value in entries.items())
