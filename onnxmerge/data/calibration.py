"""The user's own inputs: .npz, .npy, token ids in .jsonl, a folder of images, .npy or .npz files, or arrays in memory.

Files are mapped into memory, and images are decoded batch by batch, so that memory does not grow with the number of inputs.
Every error is an InputError of one line: what was found, what is needed.
"""

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from onnxmerge.data.feed_sources import FeedSource, InputLayout, array_source, layout_conversion
from onnxmerge.data.images import SUFFIXES, ImageReading, image_files, image_rows
from onnxmerge.data.npy_files import Header, npz_headers, open_npy, open_npz
from onnxmerge.data.token_files import jsonl_records, takes_tokens, token_sources
from onnxmerge.errors import InputError
from onnxmerge.execution.batch_axes import without_axis

NEEDED = "a .npz, .npy or .jsonl file, or a folder of images, .npy or .npz files,"
"""Forms in which inputs may be given, for messages."""


def file_sources(path: Path, layouts: Sequence[InputLayout], reading: ImageReading | None = None) -> dict[str, FeedSource]:
    """Feed a model from a file or folder.

    Parameters
    ----------
    path : .npz file, folder of them, .jsonl file of token ids, or for a model with one input a .npy file or a folder of images or
        .npy files
    layouts : what the model's inputs must look like
    reading : how images are read; None for the usual way, and then arrays of pixels must have the model's size

    Returns
    -------
    dict
        One source for every input, by name.

    Raises
    ------
    InputError
        Where the path is missing, cannot be read, or does not match the inputs.
    """
    suffix = path.suffix.lower()
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist: {NEEDED} is needed")
    if path.is_dir():
        return _folder(path, layouts, reading)
    if suffix not in (".npz", ".npy", ".jsonl"):
        raise InputError(f"{path} is of no known kind: {NEEDED} is needed")
    if suffix == ".npz":
        headers = npz_headers(path)
        members = [_member(headers, layout, len(layouts) == 1, path) for layout in layouts]
        found = zip(layouts, members, open_npz(path, members), strict=True)
        return {each.spec.name: _source(array, each, f"{name!r} of {path}", reading) for each, name, array in found}
    if suffix == ".jsonl":
        if not takes_tokens(layouts):
            raise InputError(f"{path} holds token ids, but {layouts[0].requirement}: a model of token ids (N, T) takes them")
        return token_sources(jsonl_records(path, layouts), layouts, path)
    layout = _only(layouts, path)
    return {layout.spec.name: _source(open_npy(path), layout, str(path), reading)}


def _source(array: np.ndarray, layout: InputLayout, name: str, reading: ImageReading | None) -> FeedSource:
    """Pixels are read as the user said, where he did; other values, and pixels elsewhere, as `array_source` takes them."""
    is_read = reading is not None and array.dtype == np.uint8
    return image_rows(array, layout, reading, name) if is_read and reading else array_source(array, layout, name)


def _only(layouts: Sequence[InputLayout], path: Path) -> InputLayout:
    """The layout of the model's only input. InputError where there are several."""
    if len(layouts) != 1:
        names = ", ".join(layout.spec.name for layout in layouts)
        raise InputError(f"{path} feeds one input, the model has {len(layouts)}: a .npz with members {names} is needed")
    return layouts[0]


def array_sources(
    given: np.ndarray | Mapping[str, np.ndarray], layouts: Sequence[InputLayout], reading: ImageReading | None = None
) -> dict[str, FeedSource]:
    """Feed a model from arrays: one for the only input, or a mapping from the inputs' names; otherwise as `file_sources`."""
    names = [layout.spec.name for layout in layouts]
    if not isinstance(given, Mapping):
        if len(layouts) != 1:
            raise InputError(f"one calibration array feeds one input, the model has {len(layouts)}: give {{name: array}}")
        given = dict.fromkeys(names, given)
    if given.keys() != set(names):
        found, needed = ", ".join(given) or "none", ", ".join(names)
        raise InputError(f"the calibration arrays are named {found}: needed is one for each input of the model, {needed}")
    pairs = zip(names, layouts, strict=True)
    return {name: _source(np.asarray(given[name]), each, f"the calibration array {name!r}", reading) for name, each in pairs}


def _member(headers: Mapping[str, Header], layout: InputLayout, only_input: bool, path: Path) -> str:
    """The member of an input's name; for the model's only input also the only member, or the only one that matches."""
    if layout.spec.name in headers:
        return layout.spec.name
    convertible = {name: layout_conversion(header.shape, header.dtype, layout) is not None for name, header in headers.items()}
    matching = [name for name in headers if len(headers) == 1 or convertible[name]]
    if only_input and len(matching) == 1:
        return matching[0]
    found = ", ".join(f"{name} {header.dtype} {header.shape}" for name, header in headers.items()) or "no arrays"
    fits = f"{len(matching)} members that fit" if matching else "no member that fits"
    what = fits if only_input else "no member of its name"
    raise InputError(f"{layout.requirement}, but {path} has {what}; found {found}")


def _folder(path: Path, layouts: Sequence[InputLayout], reading: ImageReading | None) -> dict[str, FeedSource]:
    every = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)  # folders that vanish are passed over
    files = sorted(file for file in every if file.is_file() and not file.name.startswith("."))
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    arrays, archives = ([file for file in files if file.suffix.lower() == suffix] for suffix in (".npy", ".npz"))
    if sum(map(bool, (images, arrays, archives))) != 1:
        found = f"{len(images)} images, {len(arrays)} .npy and {len(archives)} .npz files among {len(files)} files"
        raise InputError(f"{path} holds {found}: files of one of these kinds are needed")
    if archives and takes_tokens(layouts):
        return token_sources([record for file in archives for record in _records(file, layouts)], layouts, path)
    for layout in layouts if archives else [_only(layouts, path)]:
        if layout.axis is None:
            needed = f"{layout.requirement}, where no axis counts inputs: a .npy or .npz file is needed"
            raise InputError(f"{path} is a folder, but {needed}")
    if images:
        sources = {layouts[0].spec.name: image_files(images, layouts[0], reading or ImageReading())}
    else:
        sources = {layout.spec.name: _array_files(archives or arrays, layout, layouts, reading) for layout in layouts}
    names = [str(file.relative_to(path)) for file in images or archives or arrays]
    return {name: replace(source, names=names if source.count == len(names) else ()) for name, source in sources.items()}


def _records(file: Path, layouts: Sequence[InputLayout]) -> list[dict[str, np.ndarray]]:
    """Records of token ids in a .npz file: one of arrays (T,), or several of arrays (n, T)."""
    names = [layout.spec.name for layout in layouts]
    members = [name for name in npz_headers(file) if name in names]
    arrays = zip(members, open_npz(file, members), strict=True)
    rows = {name: array if array.ndim > 1 else array[np.newaxis] for name, array in arrays}
    if any(array.dtype.kind not in "iub" for array in rows.values()) or len({len(array) for array in rows.values()}) != 1:
        found = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in rows.items()) or "none of the model's inputs"
        raise InputError(f"{file} holds {found}: integers are needed, as many rows of each input")
    return [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]


def _array_files(
    files: Sequence[Path], layout: InputLayout, layouts: Sequence[InputLayout], reading: ImageReading | None
) -> FeedSource:
    """.npy or .npz files of one input each, without the batch axis, or of several, with it; all of one shape and dtype."""
    counts, axis = [], layout.axis or 0
    first = _rows(files[0], layout, layouts, reading)
    shape = without_axis(first.shape, axis)
    for file in files:
        rows = _rows(file, layout, layouts, reading)
        found = without_axis(rows.shape, axis)
        if (found, rows.dtype) != (shape, first.dtype):
            expected = f"{first.dtype} {shape} as in {files[0].name}"
            raise InputError(f"{file} holds inputs of {rows.dtype} {found}: {expected} is needed")
        counts.append(rows.shape[axis])
    starts = list(accumulate(counts, initial=0))

    def row(index: int) -> np.ndarray:
        number = bisect_right(starts, index) - 1
        source = _source(_rows(files[number], layout, layouts, reading), layout, str(files[number]), reading)
        return source.take(np.array([index - starts[number]]))

    pixels = _source(first, layout, str(files[0]), reading).pixels
    return FeedSource(starts[-1], lambda indices: np.concatenate([row(int(index)) for index in indices], axis), pixels)


def _rows(file: Path, layout: InputLayout, layouts: Sequence[InputLayout], reading: ImageReading | None) -> np.ndarray:
    """The rows of a file; one input without the axis of the batch gets it. Raises InputError where neither matches."""
    if file.suffix.lower() == ".npz":
        (array,) = open_npz(file, [_member(npz_headers(file), layout, len(layouts) == 1, file)])
    else:
        array = open_npy(file)
    if reading is not None and array.dtype == np.uint8:  # of any size
        return array if array.ndim > len(layout.dims) else array[np.newaxis]
    one = np.expand_dims(array, layout.axis or 0) if array.ndim >= (layout.axis or 0) else array
    if layout_conversion(one.shape, array.dtype, layout):
        return one
    array_source(array, layout, str(file))
    return array
