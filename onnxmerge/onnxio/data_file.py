"""A file of weights beside a model, written one tensor at a time."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from onnx import StringStringEntryProto, TensorProto, numpy_helper

from onnxmerge.onnxio.storage import SMALL_BYTES, bare_tensor, held_bytes, inside
from onnxmerge.onnxio.surgeon import DenseValues
from onnxmerge.onnxio.tensors import byte_count, external_range, is_external, tensor_of

PAGE_BYTES = 4096  # tensors start on a page, so that a runtime can map them
CHUNK_BYTES = 1 << 24


class DataFile:
    """`place` appends a tensor's bytes and returns a tensor that refers to them; small ones stay inside the model."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder  # what external tensors as read refer to
        self.stream = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()

    def place(self, values: DenseValues, name: str) -> TensorProto:
        """The tensor as the model will hold it."""
        is_text = isinstance(values, TensorProto) and values.data_type == TensorProto.STRING
        if held_bytes(values) <= SMALL_BYTES or is_text:
            return inside(values, name, self.folder)
        self.stream.write(bytes(-self.stream.tell() % PAGE_BYTES))
        offset = self.stream.tell()
        if isinstance(values, TensorProto) and is_external(values):
            self._copy(values)
        else:
            self.stream.write(_raw(values, name))
        tensor = bare_tensor(values, name)
        place = {"location": self.path.name, "offset": offset, "length": self.stream.tell() - offset}
        tensor.external_data.extend(StringStringEntryProto(key=key, value=str(value)) for key, value in place.items())
        return tensor

    def _copy(self, tensor: TensorProto) -> None:
        file, offset = external_range(tensor, self.folder)
        left = byte_count(tensor)
        with file.open("rb") as source:
            source.seek(offset)
            while left:
                chunk = source.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise OSError(f"{file} became shorter while it was read")
                self.stream.write(chunk)
                left -= len(chunk)


def _raw(values: DenseValues, name: str) -> bytes:
    """The bytes as a file holds them, whichever field holds them now."""
    if isinstance(values, TensorProto) and values.HasField("raw_data"):
        return values.raw_data
    return tensor_of(values if isinstance(values, np.ndarray) else numpy_helper.to_array(values), name).raw_data
