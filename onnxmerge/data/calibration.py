"""The user's own inputs: .npz, .npy, or a folder of images or .npy files, one column for each input of the model.

Arrays stay on disk, mapped into memory, and images are decoded batch by batch, so that memory does not grow with the inputs.
Every error is an InputError of one line: what was found, what is needed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from onnxmerge.data.input_slots import Column, Indices, Slot, column, convert, fit, make_slot
from onnxmerge.data.npy_files import Header, npz_headers, open_npy, open_npz, readable
from onnxmerge.data.synthetic import ImageRange
from onnxmerge.errors import InputError
from onnxmerge.execution.tensor_specs import TensorSpec

try:
    from PIL import Image, ImageOps

    HAVE_PILLOW = True
except ImportError:
    HAVE_PILLOW = False

_IMAGES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"))
_MODES = {1: "L", 3: "RGB"}


def read_columns(
    path: Path,
    specs: Sequence[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    batched: frozenset[str],
    image_range: ImageRange | None = None,
) -> dict[str, Column]:
    """A column for every model input; shapes: concrete, of one run; `batched` names the inputs whose axis 0 counts inputs."""
    slots = [make_slot(spec, shapes[spec.name], batched, image_range) for spec in specs]
    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError(f"{path} does not exist: a .npz or .npy file, or a folder of images or .npy files, is needed")
    if suffix == ".npz" and not path.is_dir():
        return _archive(path, slots)
    if suffix != ".npy" and not path.is_dir():
        raise InputError(f"{path} is no .npz or .npy file and no folder of images or .npy files")
    if len(slots) != 1:
        names = ", ".join(slot.spec.name for slot in slots)
        raise InputError(f"{path} feeds one input, the model has {len(slots)}: a .npz with members {names} is needed")
    (slot,) = slots
    return {slot.spec.name: _folder(path, slot) if path.is_dir() else column(open_npy(path), slot, str(path))}


def array_columns(
    given: np.ndarray | Mapping[str, np.ndarray],
    specs: Sequence[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    batched: frozenset[str],
    image_range: ImageRange | None = None,
) -> dict[str, Column]:
    """The same for arrays in memory: one for the only input, or a mapping from the inputs' names."""
    slots = {spec.name: make_slot(spec, shapes[spec.name], batched, image_range) for spec in specs}
    if not isinstance(given, Mapping):
        if len(slots) != 1:
            raise InputError(f"one calibration array feeds one input, the model has {len(slots)}: give {{name: array}}")
        given = dict.fromkeys(slots, given)
    unknown, missing = sorted(given.keys() - slots.keys()), sorted(slots.keys() - given.keys())
    if unknown or missing:
        found, needed = ", ".join(given) or "none", ", ".join(slots)
        raise InputError(f"the calibration arrays are named {found}: needed is one for each input of the model, {needed}")
    return {name: column(np.asarray(given[name]), slot, f"the calibration array {name!r}") for name, slot in slots.items()}


def _archive(path: Path, slots: Sequence[Slot]) -> dict[str, Column]:
    headers = npz_headers(path)
    chosen = {slot.spec.name: _member(headers, slot, len(slots) == 1, path) for slot in slots}
    return {slot.spec.name: _member_column(path, chosen[slot.spec.name], slot) for slot in slots}


def _member_column(path: Path, member: str, slot: Slot) -> Column:
    return column(open_npz(path, member), slot, f"{member!r} of {path}")


def _member(headers: Mapping[str, Header], slot: Slot, alone: bool, path: Path) -> str:
    """The member of this input's name; for the model's only input also the only member, or the only one that fits."""
    if slot.spec.name in headers:
        return slot.spec.name
    fitting = [name for name, header in headers.items() if len(headers) == 1 or fit(header.shape, header.dtype, slot)]
    if alone and len(fitting) == 1:
        return fitting[0]
    found = ", ".join(f"{name} {header.dtype} {header.shape}" for name, header in headers.items()) or "no arrays"
    what = (
        f"{len(fitting)} members that fit" if alone and fitting else "no member that fits" if alone else "no member of its name"
    )
    raise InputError(f"{slot.needs}, but {path} has {what}; found {found}")


def _folder(path: Path, slot: Slot) -> Column:
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    images = [file for file in files if file.suffix.lower() in _IMAGES]
    arrays = [file for file in files if file.suffix.lower() == ".npy"]
    if bool(images) == bool(arrays):
        found = f"{len(images)} images and {len(arrays)} .npy files among {len(files)} files"
        raise InputError(f"{path} holds {found}: either images or .npy files are needed")
    if not slot.batched:
        raise InputError(f"{path} is a folder, but {slot.needs}, where no axis counts inputs: a .npy or .npz file is needed")
    if arrays:
        return _array_files(arrays, slot)
    if not HAVE_PILLOW:
        raise InputError(f"{path} holds images, and reading them needs Pillow: pip install 'onnxmerge[images]'")
    return _image_files(images, slot)


def _array_files(files: Sequence[Path], slot: Slot) -> Column:
    """.npy files of one input each, without the batch axis, or of several, with it; all inputs of one shape and type."""
    counts = []
    first = _rows(files[0], slot)
    for file in files:
        rows = _rows(file, slot)
        if (rows.shape[1:], rows.dtype) != (first.shape[1:], first.dtype):
            expected = f"{first.dtype} {first.shape[1:]} as in {files[0].name}"
            raise InputError(f"{file} holds inputs of {rows.dtype} {rows.shape[1:]}: {expected} is needed")
        counts.append(len(rows))
    starts = list(accumulate(counts, initial=0))

    def one(index: int) -> np.ndarray:
        number = bisect_right(starts, index) - 1
        return column(_rows(files[number], slot), slot, str(files[number])).take(np.array([index - starts[number]]))

    return Column(starts[-1], lambda indices: np.concatenate([one(int(index)) for index in indices]))


def _rows(file: Path, slot: Slot) -> np.ndarray:
    """(n, *sample): a file that holds one input gets the batch axis. Raises InputError where neither reading fits."""
    array = open_npy(file)
    if fit((1, *array.shape), array.dtype, slot):
        return array[np.newaxis]
    column(array, slot, str(file))
    return array


def _image_files(files: Sequence[Path], slot: Slot) -> Column:
    mode = _MODES.get(slot.channels)
    if len(slot.dims) != 3 or mode is None or slot.spec.dtype.kind not in "fiu":
        raise InputError(
            f"{files[0].parent} holds images, but {slot.needs}: images need (N, C, H, W) or (N, H, W, C) with 1 or 3 channels"
        )
    spatial = slot.dims[:-1] if slot.channels_last else slot.dims[1:]
    native = _pixels(files[0], mode, None).shape
    height, width = (dim if isinstance(dim, int) else size for dim, size in zip(spatial, native, strict=False))

    def take(indices: Indices) -> np.ndarray:
        pixels = np.stack([_pixels(files[index], mode, (width, height)) for index in indices])
        rows = pixels.reshape(len(indices), height, width, slot.channels)
        return convert(rows if slot.channels_last else np.moveaxis(rows, -1, 1), slot, str(files[0].parent))

    return Column(len(files), take)


def _pixels(file: Path, mode: str, size: tuple[int, int] | None) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8; size (W, H): the shorter side resized to it, then cropped about the centre."""
    with readable(file), Image.open(file) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"its pixels are {image.mode!r}, 8 bits a channel are needed")
        upright = ImageOps.exif_transpose(image).convert(mode)
        if size is not None and size != upright.size:
            upright = ImageOps.fit(upright, size, Image.Resampling.BILINEAR)
        return np.asarray(upright)
