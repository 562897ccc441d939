"""Whether a model names a data file, found in bounded time.

A model says where its data is relative to its own folder, and onnx refuses ways that lead up or follow links. So the models that
can name a file lie in its folder or above.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from onnx import ModelProto

from onnxmerge.onnxio.validation import PROTOBUF_LIMIT_BYTES

WHOLE_BYTES = 1 << 20  # what is not longer is searched whole: no name of a file is longer
SEARCH_SECONDS = 5.0  # many times what a folder of a thousand models takes


def may_be_named(file: Path) -> bool:
    """Whether a model may name a file as one of its data; also where that is not found out in `SEARCH_SECONDS`.

    Parameters
    ----------
    file : Path
        Its path.

    Raises
    ------
    OSError
        Where its folder cannot be listed.
    """
    file = Path(os.path.realpath(file.parent), file.name)
    deadline, name = time.monotonic() + SEARCH_SECONDS, os.fsencode(file.name)
    try:
        if any(_holds(other, name, deadline) for other in file.parent.iterdir() if other != file):
            return True
        # a folder comes before the name there
        return any(_holds(other, b"/" + name, deadline) for folder in file.parent.parents for other in _files_of(folder))
    except TimeoutError:
        return True


def _files_of(folder: Path) -> Iterator[Path]:
    with suppress(PermissionError):  # a folder above may be somebody else's
        yield from folder.iterdir()


def _holds(file: Path, text: bytes, deadline: float) -> bool:
    """Whether a small file, or a model outside of the values of its large tensors, holds a text, or cannot be read."""
    if time.monotonic() > deadline:
        raise TimeoutError
    if not os.path.isfile(file):
        return False
    try:
        size = file.stat().st_size
        if not 0 < size < PROTOBUF_LIMIT_BYTES:  # too large to be a model
            return False
        with file.open("rb") as stream:
            if size <= WHOLE_BYTES:
                return text in stream.read(WHOLE_BYTES)
            return _model_holds(stream, size, text, deadline)
    except FileNotFoundError:  # another run has removed it meanwhile
        return False
    except TimeoutError:
        raise
    except OSError:
        return True


def _model_holds(stream: IO[bytes], size: int, text: bytes, deadline: float) -> bool:
    """Follow the fields of a serialised ModelProto; False as soon as it is none."""
    around: list[tuple[int, Any]] = [(size, ModelProto.DESCRIPTOR)]  # where each message ends, the innermost one last
    while around:
        end, message = around[-1]
        if stream.tell() >= end:
            around.pop()
            continue
        if time.monotonic() > deadline:
            raise TimeoutError
        number, wire_type = divmod(_varint(stream), 8)
        if wire_type == 0:
            _varint(stream)
            continue
        length = {1: 8, 5: 4}.get(wire_type, -1) if wire_type != 2 else _varint(stream)
        if not number or not 0 <= length <= end - stream.tell():
            return False
        field = message.fields_by_number.get(number)
        if length <= WHOLE_BYTES:
            if text in stream.read(length):
                return True
        elif field is not None and field.message_type is not None:
            around.append((stream.tell() + length, field.message_type))
        else:
            stream.seek(length, os.SEEK_CUR)
    return False


def _varint(stream: IO[bytes]) -> int:
    """A number of at most 64 bits, seven to a byte, the lowest first."""
    value = shift = 0
    while (byte := stream.read(1)) and shift < 64:
        value |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            return value
    return -1  # which is no number of a field and no length
