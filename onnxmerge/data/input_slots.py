"""Whether an array of the user's fits a model input, and what turns its rows into what the model takes.

Floats are used as they are. uint8 for a float input are pixels: (pixel / 255 * (high - low) + low - mean) / std, and NHWC becomes
NCHW, or the other way round, as the model needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxmerge.data.synthetic import ImageRange, channels_last
from onnxmerge.errors import InputError
from onnxmerge.execution.tensor_specs import TensorSpec

Dims = tuple[int | str | None, ...]
Indices = NDArray[np.intp]
Arrange = Callable[[np.ndarray], np.ndarray]

_ACCEPTED = {"f": "fiub", "i": "iub", "u": "iub", "b": "iub", "O": "U"}  # input's kind -> kinds of arrays it takes


@dataclass(frozen=True)
class Column:
    """What feeds one model input: `take` gives the rows of these indices; count None where every run gets the same array."""

    count: int | None
    take: Callable[[Indices], np.ndarray]


@dataclass(frozen=True)
class Slot:
    """One model input to fill. dims: of one row, where axis 0 of the input counts inputs (batched), else of the whole input.

    per_run: the input is given whole to each run, and an array with one more axis in front holds one for each run.
    """

    spec: TensorSpec
    dims: Dims
    batched: bool
    per_run: bool
    channels: int
    channels_last: bool
    image_range: ImageRange

    @property
    def needs(self) -> str:
        """For errors."""
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.spec.dims)
        return f"input {self.spec.name!r} needs {self.spec.dtype} ({dims})"


@dataclass(frozen=True)
class Fit:
    """How an array fills a slot: its number of rows (None: it is the whole input), and what puts rows in the model's layout."""

    count: int | None
    arrange: Arrange


def make_slot(spec: TensorSpec, shape: tuple[int, ...], batched: frozenset[str], image_range: ImageRange | None) -> Slot:
    """shape: concrete, of one run; it settles the number of channels. batched: the inputs whose axis 0 counts inputs."""
    dims, last = list(spec.dims), channels_last(shape)
    axis = len(shape) - 1 if last else 1
    channels = shape[axis] if len(shape) > 2 else 1
    if len(shape) > 2:
        dims[axis] = channels
    is_batched = spec.name in batched
    row = tuple(dims[1:] if is_batched else dims)
    return Slot(spec, row, is_batched, not batched, channels, last, image_range or ImageRange())


def fit(shape: tuple[int, ...], dtype: np.dtype, slot: Slot) -> Fit | None:
    """None where an array of this shape and type does not fill the slot."""
    if dtype.kind not in _ACCEPTED.get(slot.spec.dtype.kind, ""):
        return None
    if slot.batched:
        arrange = _arrangement(shape[1:], dtype, slot) if shape else None
        return Fit(shape[0], arrange) if arrange else None
    if _matches(shape, slot.dims):
        return Fit(None, _as_it_is)
    return Fit(shape[0], _as_it_is) if slot.per_run and _matches(shape[1:], slot.dims) else None


def column(array: np.ndarray, slot: Slot, where: str) -> Column:
    """`where` names the array in errors. Raises InputError where it does not fit, or holds no rows."""
    fitting = fit(array.shape, array.dtype, slot)
    if fitting is None:
        raise InputError(f"{where} does not fit: {slot.needs}, found {array.dtype} {array.shape}")
    if fitting.count is None:
        value = convert(array, slot, where)
        return Column(None, lambda indices: value)
    if not fitting.count:
        raise InputError(f"{where} holds no inputs: its shape is {array.shape}")
    if slot.batched:
        return Column(fitting.count, lambda indices: convert(fitting.arrange(array[indices]), slot, where))
    return Column(fitting.count, lambda indices: convert(array[int(indices[0])], slot, where))


def convert(rows: np.ndarray, slot: Slot, where: str) -> np.ndarray:
    """Rows in the model's dtype; pixels through the image range. Raises InputError for NaN and what the dtype cannot hold."""
    dtype = slot.spec.dtype
    if rows.dtype == np.uint8 and dtype.kind == "f" and rows.ndim:
        axis = rows.ndim - 1 if slot.channels_last or rows.ndim == 1 else 1
        rows = slot.image_range.apply(rows / np.float32(255), axis, slot.spec.name)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = rows.astype(dtype, order="C", copy=False)
    exact = converted == rows if rows.dtype.kind != "f" else ~np.isnan(rows) & (np.isinf(converted) == np.isinf(rows))
    if not np.all(exact):
        value = rows[~exact].flat[0]
        raise InputError(f"{where} holds {value}, which input {slot.spec.name!r} ({dtype}) cannot take")
    return converted


def _arrangement(shape: tuple[int, ...], dtype: np.dtype, slot: Slot) -> Arrange | None:
    """What brings rows (n, *shape) to the slot's dims; only uint8 images may change their layout or lack the channel axis."""
    if _matches(shape, slot.dims):
        return _as_it_is
    if dtype != np.uint8 or len(slot.dims) != 3:
        return None
    source, target = (1, -1) if slot.channels_last else (-1, 1)
    if len(shape) == 3 and _matches((*shape[1:], shape[0]) if slot.channels_last else (shape[-1], *shape[:-1]), slot.dims):
        return lambda rows: np.moveaxis(rows, source, target)
    if len(shape) == 2 and _matches((*shape, 1) if slot.channels_last else (1, *shape), slot.dims):
        return lambda rows: np.expand_dims(rows, target)
    return None


def _matches(shape: tuple[int, ...], dims: Dims) -> bool:
    pairs = zip(shape, dims, strict=False)
    return len(shape) == len(dims) and all(not isinstance(dim, int) or size == dim for size, dim in pairs)


def _as_it_is(rows: np.ndarray) -> np.ndarray:
    return rows
