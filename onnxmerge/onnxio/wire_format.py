"""Model files with their weights inside, read and written without the weights in memory.

protobuf holds a whole message, and while it reads or writes one, that twice. Weights are two levels below the model: its graph's
initializers. Here those levels are walked in the file, and protobuf gets the rest. A weight that was left out is external data of
the model's own file, which ONNX Runtime and everything else here can map. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, StringStringEntryProto, TensorProto

LEAST_FILE_BYTES = 1 << 26  # smaller files are read whole
LEAST_WEIGHT_BYTES = 1 << 16  # smaller weights are read all the same

GRAPH = ModelProto.DESCRIPTOR.fields_by_name["graph"].number
INITIALIZER = GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
RAW_DATA = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # how the end of a field is known


def is_large(path: Path) -> bool:
    """Whether the weights of a file are left in it: not behind a link, or where its name cannot be written into a model."""
    return path.stat().st_size >= LEAST_FILE_BYTES and not path.is_symlink() and path.name.isprintable()


def read_model(path: Path) -> ModelProto:
    """The model of a file; of a large one its large initializers are external data of the file itself.

    Raises
    ------
    OSError, DecodeError
        Where the file cannot be read, or is no such message.
    """
    if not is_large(path):
        return ModelProto.FromString(path.read_bytes())
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as area:
        return ModelProto.FromString(b"".join(_without_weights(area, 0, len(area), (GRAPH, INITIALIZER), path.name)))


def _without_weights(area: mmap.mmap, start: int, end: int, levels: tuple[int, ...], name: str) -> Iterator[bytes]:
    """A message at these bytes, field by field; levels: the fields in which tensors are found, none where it is a tensor."""
    left_out = TensorProto()
    for number, begin, content, stop in _fields(area, start, end):
        if levels and number == levels[0]:
            inner = b"".join(_without_weights(area, content, stop, levels[1:], name))
            yield _head(number, len(inner)) + inner
        elif levels or number != RAW_DATA or stop - content < LEAST_WEIGHT_BYTES:
            yield area[begin:stop]
        else:
            entries = {"location": name, "offset": content, "length": stop - content}
            left_out.data_location = TensorProto.EXTERNAL
            left_out.external_data.extend(StringStringEntryProto(key=key, value=str(value)) for key, value in entries.items())
    yield left_out.SerializeToString()  # behind the others: of two values the last one counts


def _fields(area: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """For each field its number, and where it, its content and its end are."""
    at = start
    while at < end:
        begin = at
        key, at = _varint_at(area, at, end)
        kind, content = key & 7, at
        if kind == _VARINT:
            _, at = _varint_at(area, at, end)
        elif kind == _LENGTH:
            length, content = _varint_at(area, at, end)
            at = content + length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise DecodeError(f"a field of kind {kind}")
        if at > end:
            raise DecodeError("a field is cut off")
        yield key >> 3, begin, content, at


def _varint_at(area: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number, seven bits a byte, and where it ends."""
    value = shift = 0
    while at < end and shift < 64:
        byte = area[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise DecodeError("a number without an end")


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _head(number: int, length: int) -> bytes:
    """What stands before a field of so many bytes."""
    return _varint(number << 3 | _LENGTH) + _varint(length)


Content = tuple[int, Callable[[], Iterable[bytes | memoryview]]]
"""The bytes of a weight: how many, and in parts."""


def write_model_to(stream: IO[bytes], model: ModelProto, contents: Mapping[str, Content]) -> None:
    """Write a model as protobuf does, with the weights of some initializers, by name, which in it have none."""
    heads = [(tensor.SerializeToString(), *contents.get(tensor.name, (0, tuple))) for tensor in model.graph.initializer]
    sizes = [len(head) + (len(_head(RAW_DATA, size)) + size if size else 0) for head, size, _ in heads]
    before, after = _parts(model.graph, INITIALIZER)
    inside = len(before) + sum(len(_head(INITIALIZER, size)) + size for size in sizes) + len(after)
    first, last = _parts(model, GRAPH)
    stream.write(first + _head(GRAPH, inside) + before)
    for whole, (head, size, parts) in zip(sizes, heads, strict=True):
        stream.write(_head(INITIALIZER, whole) + head + (_head(RAW_DATA, size) if size else b""))
        for part in parts():
            stream.write(part)
    stream.write(after + last)


def _parts(message: Message, number: int) -> tuple[bytes, bytes]:
    """The fields before a field, and those behind it."""
    parts = type(message)(), type(message)()
    names = {field.name: field.number for field, _ in message.ListFields()}
    copy_fields(message, parts[0], {name for name, each in names.items() if each >= number})
    copy_fields(message, parts[1], {name for name, each in names.items() if each <= number})
    return parts[0].SerializeToString(), parts[1].SerializeToString()


def copy_fields(old: Message, new: Message, without: set[str]) -> None:
    """Copy every field of a message but those named, also the ones that a later ONNX will add."""
    for field, value in old.ListFields():
        if field.name in without:
            continue
        if isinstance(value, Message):
            getattr(new, field.name).CopyFrom(value)
        elif isinstance(value, str | bytes | int | float):
            setattr(new, field.name, value)
        else:
            getattr(new, field.name).extend(value)
