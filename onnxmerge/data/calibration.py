"""The user's own inputs: .npz, .npy, a folder of images or .npy files, or arrays in memory.

Files are mapped into memory, and images are decoded batch by batch, so that memory does not grow with the number of inputs.
Every error is an InputError of one line: what was found, what is needed.
"""

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from onnxmerge.data.feed_sources import FeedSource, InputLayout, array_source, layout_conversion
from onnxmerge.data.images import SUFFIXES, ImageReading, image_files
from onnxmerge.data.npy_files import Header, npz_headers, open_npy, open_npz
from onnxmerge.errors import InputError


def file_sources(path: Path, layouts: Sequence[InputLayout], reading: ImageReading | None = None) -> dict[str, FeedSource]:
    """Feed a model from a file or folder.

    Parameters
    ----------
    path : .npz file, or for a model with one input a .npy file or a folder of images or .npy files
    layouts : what the model's inputs must look like
    reading : how image files are read; None for the usual way, and then arrays are accepted too

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
        raise InputError(f"{path} does not exist: a .npz or .npy file, or a folder of images or .npy files, is needed")
    if reading is not None and not path.is_dir():
        raise InputError(_arrays_are_read_as_they_are(path))
    if suffix == ".npz" and not path.is_dir():
        headers = npz_headers(path)
        members = [_member(headers, layout, len(layouts) == 1, path) for layout in layouts]
        found = zip(layouts, members, open_npz(path, members), strict=True)
        return {each.spec.name: array_source(array, each, f"{name!r} of {path}") for each, name, array in found}
    if suffix != ".npy" and not path.is_dir():
        raise InputError(f"{path} is no .npz or .npy file and no folder of images or .npy files")
    if len(layouts) != 1:
        names = ", ".join(layout.spec.name for layout in layouts)
        raise InputError(f"{path} feeds one input, the model has {len(layouts)}: a .npz with members {names} is needed")
    (layout,) = layouts
    return {
        layout.spec.name: _folder(path, layout, reading) if path.is_dir() else array_source(open_npy(path), layout, str(path))
    }


def array_sources(given: np.ndarray | Mapping[str, np.ndarray], layouts: Sequence[InputLayout]) -> dict[str, FeedSource]:
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
    return {name: array_source(np.asarray(given[name]), each, f"the calibration array {name!r}") for name, each in pairs}


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


def _arrays_are_read_as_they_are(path: Path) -> str:
    return f"{path} holds arrays, which are used as they are: `fit` and `color` are for folders of images, drop them"


def _folder(path: Path, layout: InputLayout, reading: ImageReading | None) -> FeedSource:
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    arrays = [file for file in files if file.suffix.lower() == ".npy"]
    if bool(images) == bool(arrays):
        found = f"{len(images)} images and {len(arrays)} .npy files among {len(files)} files"
        raise InputError(f"{path} holds {found}: either images or .npy files are needed")
    if not layout.batched:
        needed = f"{layout.requirement}, where no axis counts inputs: a .npy or .npz file is needed"
        raise InputError(f"{path} is a folder, but {needed}")
    if images:
        return image_files(images, layout, reading or ImageReading())
    if reading is not None:
        raise InputError(_arrays_are_read_as_they_are(path))
    return _array_files(arrays, layout)


def _array_files(files: Sequence[Path], layout: InputLayout) -> FeedSource:
    """.npy files of one input each, without the batch axis, or of several, with it; all of one shape and dtype."""
    counts = []
    first = _rows(files[0], layout)
    for file in files:
        rows = _rows(file, layout)
        if (rows.shape[1:], rows.dtype) != (first.shape[1:], first.dtype):
            expected = f"{first.dtype} {first.shape[1:]} as in {files[0].name}"
            raise InputError(f"{file} holds inputs of {rows.dtype} {rows.shape[1:]}: {expected} is needed")
        counts.append(len(rows))
    starts = list(accumulate(counts, initial=0))

    def row(index: int) -> np.ndarray:
        number = bisect_right(starts, index) - 1
        return array_source(_rows(files[number], layout), layout, str(files[number])).take(np.array([index - starts[number]]))

    pixels = array_source(first, layout, str(files[0])).pixels
    return FeedSource(starts[-1], lambda indices: np.concatenate([row(int(index)) for index in indices]), pixels)


def _rows(file: Path, layout: InputLayout) -> np.ndarray:
    """(n, *row) of a .npy file; one input without a batch axis gets it. Raises InputError where neither matches."""
    array = open_npy(file)
    if layout_conversion((1, *array.shape), array.dtype, layout):
        return array[np.newaxis]
    array_source(array, layout, str(file))
    return array
