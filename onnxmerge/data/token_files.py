"""Token ids of texts, which may differ in length: padded to one length, with a mask that says what is padding.

A record is one text: its ids, or arrays by the model's input names. What it does not give is made from its length: a mask (1 for
ids, 0 for padding), token types (0) and positions (0, 1, 2, ...). Ids are padded with 0 behind.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxmerge.data.feed_sources import FeedSource, InputLayout, array_source
from onnxmerge.data.npy_files import readable
from onnxmerge.errors import InputError

MADE = ("mask", "type", "segment", "position")
"""Parts of the names of inputs that are made where a record lacks them."""

Record = Mapping[str, np.ndarray]


def takes_tokens(layouts: Sequence[InputLayout]) -> bool:
    """Whether all inputs are integers or booleans (N, T)."""
    return all(each.axis == 0 and len(each.dims) == 1 and each.spec.dtype.kind in "iub" for each in layouts)


def jsonl_records(path: Path, layouts: Sequence[InputLayout]) -> list[Record]:
    """The records of a file with one in a line: a list of ids, or an object of lists by input name. Raises InputError."""
    names = [each.spec.name for each in layouts]
    ids = [name for name in names if not _is_made(name)]
    records: list[Record] = []
    with readable(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except RecursionError:
                raise ValueError(f"line {number} is nested too deeply") from None
            record = value if isinstance(value, dict) else dict.fromkeys(ids[:1], value)
            if not isinstance(value, dict) and len(ids) != 1:
                raise ValueError(f"line {number} is a list, but the ids could be for {', '.join(ids) or 'no input'}: name it")
            if not all(_are_ids(each) for each in record.values()):
                raise ValueError(f"line {number} is no list of token ids, and no object of such lists")
            records.append({name: np.array(each, np.int64) for name, each in record.items()})
    return records


def token_sources(records: Sequence[Record], layouts: Sequence[InputLayout], path: Path) -> dict[str, FeedSource]:
    """Feed a model whose inputs `takes_tokens` from records.

    Raises
    ------
    InputError
        Where there are no records, one lacks an input, its arrays differ in length or are too long, or ids would have to be
        padded and the model has no input for a mask.
    """
    if not records:
        raise InputError(f"{path} holds no token ids")
    lengths = [_length(record, layouts, f"no. {number} of {path}") for number, record in enumerate(records, 1)]
    widths = {each.spec.name: each.dims[0] if isinstance(each.dims[0], int) else max(lengths) for each in layouts}
    width = min(widths.values())
    if max(lengths) > width:
        raise InputError(f"no. {lengths.index(max(lengths)) + 1} of {path} has {max(lengths)} ids, the model takes {width}")
    if min(lengths) < max(widths.values()) and not any("mask" in name.lower() for name in widths):
        found = f"{path} holds texts of {min(lengths)} to {max(lengths)} ids for a length of {max(widths.values())}"
        raise InputError(f"{found}, and the model has no input for a mask of the padding: give texts of one length")
    sources = {}
    for each in layouts:
        name = each.spec.name
        rows = [_row(record, name, length, widths[name]) for record, length in zip(records, lengths, strict=True)]
        sources[name] = array_source(np.stack(rows), each, str(path))
    return sources


def _row(record: Record, name: str, length: int, width: int) -> np.ndarray:
    """(width,) of one input: what the record gives, or what is made from its length, and padding."""
    if name not in record and "position" in name.lower():
        return np.arange(width)
    value = record[name] if name in record else np.full(length, "mask" in name.lower(), np.int64)
    return np.pad(value, (0, width - length))


def _length(record: Record, layouts: Sequence[InputLayout], where: str) -> int:
    """Number of ids of a record that fits the inputs."""
    names = [each.spec.name for each in layouts]
    lacking = [name for name in names if name not in record and not _is_made(name)]
    unknown = [name for name in record if name not in names]
    if lacking or unknown or not record:
        raise InputError(f"{where} has {', '.join(record) or 'nothing'}, the model's inputs are {', '.join(names)}")
    sizes = {value.shape for value in record.values()}
    if len(sizes) > 1 or any(len(shape) != 1 or not shape[0] for shape in sizes):
        found = ", ".join(f"{name} {value.shape}" for name, value in record.items())
        raise InputError(f"{where} has {found}: lists of one length are needed")
    return int(next(iter(sizes))[0])


def _is_made(name: str) -> bool:
    return any(part in name.lower() for part in MADE)


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
