"""Damaged model files through the command line: exit code 0, 1 or 2, at most one line of complaint, bounded time and memory.

`python tests/mutated_files.py --count 2000 --seed 1` damages small models at random and keeps what goes wrong in a folder. The
damage is done in the wire format of protobuf, so that it also makes what Python's protobuf refuses to build: names that are no
text, enumerations out of range, fields that occur twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from running import built
from topologies import TOPOLOGIES

SECONDS, MEMORY_BYTES = 60.0, 3 << 30  # what a file of a few kB may take

COMMANDS = (
    ("inspect", "IN", "--json"),
    ("compress", "IN", "OUT", "--ratio", "0.3", "--method", "prune", "--no-bench", "--json", "--threads", "1"),
    ("compress", "IN", "OUT", "--ratio", "0.3", "--no-bench", "--json", "--threads", "1", "--samples", "8"),
    ("verify", "IN", "GOOD", "--json", "--threads", "1"),
)

# ---------------------------------------------------------------------------------------------------------------- damage

# Fields whose damage passes the first checks, and reaches what comes behind them
TELLING = frozenset(
    f"{message}Proto.{field}"
    for message, fields in {
        "Attribute": ("i", "ints", "f", "s", "type"),
        "Graph": ("input", "node", "output", "value_info"),
        "Node": ("attribute", "input", "op_type", "output"),
        "OperatorSetId": ("version",),
        "Tensor": ("data_type", "dims", "raw_data"),
    }.items()
    for field in fields
) | {"Dimension.dim_value", "Dimension.dim_param", "Tensor.elem_type", "TensorShapeProto.dim"}
OPERATORS = (b"Relu", b"Sigmoid", b"Identity", b"Flatten", b"Shape", b"Softmax", b"NonZero", b"Add", b"Div", b"MatMul", b"Concat")
NUMBERS = (0, 1, 2, 3, 5, 7, 16, 17, 99, 255, 2**15, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63, 2**64 - 1, 2**64 - 2)
TEXTS = (
    b"",
    b"x" * 300,
    b"\xff\xfe",
    b"a\nb\x1b[31m",
    b"a\0b",
    b"../x",
    b"Loop",
    b"If",
    b"ConstantOfShape",
    b"Expand",
    b"Range",
    b"Tile",
)


@dataclass
class Field:
    """One field of a message on the wire: its number, wire type and value (int, bytes, or fields of a message within)."""

    number: int
    wire_type: int
    value: int | bytes | list[Field]
    kind: FieldDescriptor | None

    @property
    def name(self) -> str:
        """Of the message and the field, "" for one that the message does not have."""
        return "" if self.kind is None else f"{self.kind.containing_type.name}.{self.kind.name}"


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def fields_of(data: bytes, message: Descriptor) -> list[Field]:
    """The fields of a serialised message, those of messages within it too."""
    found, position = [], 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        kind = message.fields_by_number.get(number)
        value: int | bytes | list[Field]
        if wire_type == 0:
            value, position = _read_varint(data, position)
        else:
            size = 8 if wire_type == 1 else 4
            if wire_type == 2:
                size, position = _read_varint(data, position)
            value, position = data[position : position + size], position + size
            if kind is not None and kind.message_type is not None:
                value = fields_of(value, kind.message_type)
        found.append(Field(number, wire_type, value, kind))
    return found


def serialised(fields: list[Field]) -> bytes:
    """The bytes of a message."""
    parts = []
    for field in fields:
        parts.append(_varint(field.number << 3 | field.wire_type))
        if isinstance(field.value, int):
            parts.append(_varint(field.value))
        else:
            data = serialised(field.value) if isinstance(field.value, list) else field.value
            parts += [_varint(len(data)), data] if field.wire_type == 2 else [data]
    return b"".join(parts)


def _places(fields: list[Field]) -> list[tuple[list[Field], int]]:
    found = [(fields, index) for index in range(len(fields))]
    return found + [place for field in fields if isinstance(field.value, list) for place in _places(field.value)]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A model with one to three things changed in it."""
    if chance.random() < 0.1:
        return _with_damaged_bytes(data, chance)
    fields = fields_of(data, onnx.ModelProto.DESCRIPTOR)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = _places(fields)
        kinds = {owner[index].name for owner, index in places}
        kind = chance.choice(sorted(kinds & TELLING if chance.random() < 0.6 else kinds) or [""])
        same = [place for place in places if place[0][place[1]].name == kind] or places
        _change(*chance.choice(same), same, chance)
    return serialised(fields)


def _change(owner: list[Field], index: int, same: list[tuple[list[Field], int]], chance: random.Random) -> None:
    field = owner[index]
    how = chance.random()
    if how < 0.12:
        del owner[index]
    elif how < 0.2:
        owner.insert(index, field)
    elif how < 0.35:
        others, place = chance.choice(same)
        owner[index] = others[place]
    elif isinstance(field.value, int):
        near = (field.value + 1, field.value - 1, field.value * 2, field.value // 2, 0, 1, 2)
        owner[index] = Field(field.number, 0, chance.choice(near if chance.random() < 0.5 else NUMBERS) % 2**64, field.kind)
    elif field.name == "NodeProto.op_type":
        owner[index] = Field(field.number, 2, chance.choice((*OPERATORS, *TEXTS)), field.kind)
    elif isinstance(field.value, list):
        chance.shuffle(field.value)
    elif field.wire_type == 2:
        value = bytes(chance.randrange(256) for _ in field.value) if chance.random() < 0.2 else chance.choice(TEXTS)
        owner[index] = Field(field.number, 2, chance.choice((value, field.value[:-1], field.value * 2)), field.kind)
    else:
        owner[index] = Field(field.number, field.wire_type, bytes(chance.randrange(256) for _ in field.value), field.kind)


def _with_damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return data[: chance.randrange(len(data))]
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 2, 10))):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def seeds(largest: int = 40_000) -> dict[str, bytes]:
    """The models that are damaged: the small ones of the table of topologies, by their id."""
    models = {name: built(topology).SerializeToString() for name, topology in TOPOLOGIES.items()}
    return {name: data for name, data in models.items() if len(data) <= largest}


# ---------------------------------------------------------------------------------------------------------------- running


class Worker:
    """A process that runs command lines one after the other, within a limit of memory and of time; replaced when it ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, arguments: list[str]) -> str:
        """What is wrong with the way in which a command line ended; empty where nothing is."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS)
        answer = self._process.stdout.readline() if ready else ""
        if answer:
            return json.loads(answer)
        self.close()
        return f"no end within {SECONDS:g} s" if not ready else "the process ended with a signal"

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def work() -> None:
    """The worker's side: a command line, as JSON, for each line of stdin; for each an answer, as JSON, on stdout."""
    import resource  # noqa: PLC0415  only where the limits are

    from onnxmerge.cli.app import main  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        for line in sys.stdin:
            for stream in (out, err):
                stream.seek(0)
                stream.truncate()
            code: object = 0
            try:
                main(json.loads(line))
            except SystemExit as ending:
                code = ending.code or 0
            except BaseException as error:
                code = repr(error)
            sys.stdout.flush()
            sys.stderr.flush()
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode(errors="replace"))
            answers.write(json.dumps(_fault(code, *texts)) + "\n")
            answers.flush()


def _fault(code: object, out: str, err: str) -> str:
    if code not in (0, 1, 2) or "Traceback" in err:
        return f"exit code {code}: " + " | ".join(err.splitlines()[-12:])
    if code == 2 and (len(err.splitlines()) != 1 or out):
        return f"exit code 2 with {len(err.splitlines())} lines on stderr: {err[:300]!r} {out[:300]!r}"
    if code == 0:
        try:
            json.loads(out)
        except ValueError:
            return f"no JSON on stdout: {out[:300]!r}"
    return ""


def tried(data: bytes, worker: Worker, command: tuple[str, ...], folder: Path, good: bytes) -> str:
    """What is wrong with the way in which a command on a file ends; empty where nothing is."""
    paths = {"IN": folder / "in.onnx", "OUT": folder / "out.onnx", "GOOD": folder / "good.onnx"}
    paths["IN"].write_bytes(data)
    paths["GOOD"].write_bytes(good)
    paths["OUT"].unlink(missing_ok=True)
    return worker.run([str(paths.get(part, part)) for part in command])


def main() -> None:
    """Damage files until the count or the time is reached, and print what goes wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="damaged files")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("mutated"), help="folder for the files that went wrong")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return
    models, worker, began, wrong = list(seeds().items()), Worker(), time.monotonic(), 0
    count = 0
    with tempfile.TemporaryDirectory() as name:
        while count < arguments.count and time.monotonic() - began < arguments.seconds:
            chance = random.Random(arguments.seed * 1_000_000 + count)
            seed, data = chance.choice(models)
            damaged, command = mutated(data, chance), chance.choice(COMMANDS)
            started = time.monotonic()
            fault = tried(damaged, worker, command, Path(name), data)
            if fault:
                wrong += 1
                arguments.keep.mkdir(exist_ok=True)
                (arguments.keep / f"{arguments.seed}-{count}.onnx").write_bytes(damaged)
                print(f"{arguments.seed}-{count} {seed} {command[0]} {time.monotonic() - started:.1f} s: {fault}", flush=True)
            count += 1
    worker.close()
    print(f"{count} damaged files, {wrong} wrong, {time.monotonic() - began:.0f} s")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
