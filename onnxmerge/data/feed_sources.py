"""Where the values of one model input come from, and whether a given array matches that input.

Floats are used as they are. uint8 for a float input are pixels: (pixel / 255 * (high - low) + low - mean) / std, and NHWC becomes
NCHW, or the other way round, as the model needs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxmerge.data.synthetic import ImageRange
from onnxmerge.data.synthetic_kinds import channels_last
from onnxmerge.errors import InputError
from onnxmerge.execution.batch_axes import Axes, without_axis
from onnxmerge.execution.tensor_specs import TensorSpec

Dims = tuple[int | str | None, ...]
Indices = NDArray[np.intp]
Conversion = Callable[[np.ndarray], np.ndarray]

# numpy's dtype.kind of a model input -> the kinds of the arrays that it takes
_ACCEPTED = {"f": "fiub", "i": "iub", "u": "iub", "b": "iub", "O": "U"}


@dataclass(frozen=True)
class FeedSource:
    """The values of one model input.

    Attributes
    ----------
    count : number of rows; None where every call gets the same array
    take : gives the rows of an array of indices
    pixels : how pixels become values, for reports; empty where the values are used as they are
    names : name of the file of each row; empty where a file has several
    """

    count: int | None
    take: Callable[[Indices], np.ndarray]
    pixels: str = ""
    names: Sequence[str] = ()


@dataclass(frozen=True)
class InputLayout:
    """What the values of one model input must look like.

    Attributes
    ----------
    spec : the input's name, dtype and dims
    dims : of one row where an axis is the batch, else of the whole input
    axis : which axis is the batch; None where the input is given whole
    per_run : whether an array with one more axis in front holds the whole input of one call after the other
    channels : number of channels, 1 without a channel axis
    channels_last : whether the channels are on the last axis
    image_range : how pixels become values
    """

    spec: TensorSpec
    dims: Dims
    axis: int | None
    per_run: bool
    channels: int
    channels_last: bool
    image_range: ImageRange

    @property
    def requirement(self) -> str:
        """What the input needs, for error messages."""
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.spec.dims)
        return f"input {self.spec.name!r} needs {self.spec.dtype} ({dims})"


def layout_of(spec: TensorSpec, shape: tuple[int, ...], axes: Axes, per_run: bool, image_range: ImageRange | None) -> InputLayout:
    """The layout of an input that had this shape in one run; axes: the batch's by input, of those that have it."""
    dims, last = list(spec.dims), channels_last(shape)
    axis = len(shape) - 1 if last else 1
    channels = shape[axis] if len(shape) > 2 else 1
    if len(shape) > 3:  # of three axes the middle one may be a number of tokens
        dims[axis] = channels
    at = axes.get(spec.name)
    row = tuple(dims) if at is None else (*dims[:at], *dims[at + 1 :])
    return InputLayout(spec, row, at, per_run, channels, last, image_range or ImageRange())


def layout_conversion(shape: tuple[int, ...], dtype: np.dtype, layout: InputLayout) -> Conversion | None:
    """What brings an array of this shape and dtype to the layout, row by row; None where the array does not match it."""
    if dtype.kind not in _ACCEPTED.get(layout.spec.dtype.kind, ""):
        return None
    if layout.axis is not None:
        return _row_conversion(without_axis(shape, layout.axis), dtype, layout) if len(shape) > layout.axis else None
    return _unchanged if _matches(shape, layout.dims) or _is_of_calls(shape, layout) else None


def _is_of_calls(shape: tuple[int, ...], layout: InputLayout) -> bool:
    """Whether an array holds the whole input of one call after the other."""
    is_one_each = layout.axis is None or shape[layout.axis + 1 : layout.axis + 2] == (1,)
    return layout.per_run and is_one_each and _matches(shape[1:], layout.spec.dims)


def array_source(array: np.ndarray, layout: InputLayout, name: str) -> FeedSource:
    """Feed a model input from an array.

    Parameters
    ----------
    array : rows, n on the axis of the batch, or the whole input where no axis of it is the batch
    layout : what the input needs
    name : what errors call the array

    Raises
    ------
    InputError
        Where the array does not match the layout or holds no rows; on taking rows, for values that `to_dtype` refuses.
    """
    conversion = layout_conversion(array.shape, array.dtype, layout)
    if conversion is None and layout.axis is not None and _is_of_calls(array.shape, layout):
        array = np.moveaxis(np.squeeze(array, layout.axis + 1), 0, layout.axis)
        conversion = layout_conversion(array.shape, array.dtype, layout)
    if conversion is None:
        are_images = array.dtype == np.uint8 and array.ndim in (3, 4) and len(layout.dims) == 3
        cure = "; `fit` brings images to that size" if are_images else ""
        raise InputError(f"{name} does not fit: {layout.requirement}, found {array.dtype} {array.shape}{cure}")
    if layout.axis is None and _matches(array.shape, layout.dims):
        value = to_dtype(array, layout, name)
        return FeedSource(None, lambda indices: value)
    axis = layout.axis or 0
    rows = np.moveaxis(array, axis, 0)
    if not len(rows):
        raise InputError(f"{name} holds no inputs: its shape is {array.shape}")
    if layout.axis is not None:
        pixels = layout.image_range.text if array.dtype == np.uint8 and layout.spec.dtype.kind == "f" else ""

        def take(indices: Indices) -> np.ndarray:
            return np.ascontiguousarray(np.moveaxis(to_dtype(conversion(rows[indices]), layout, name), 0, axis))

        return FeedSource(len(rows), take, pixels)
    return FeedSource(len(array), lambda indices: to_dtype(array[int(indices[0])], layout, name))


def to_dtype(rows: np.ndarray, layout: InputLayout, name: str) -> np.ndarray:
    """Rows in the model's dtype; pixels through the image range.

    Raises
    ------
    InputError
        For NaN, and for what the dtype cannot hold.
    """
    dtype = layout.spec.dtype
    if rows.dtype == np.uint8 and dtype.kind == "f" and rows.ndim:
        axis = rows.ndim - 1 if layout.channels_last or rows.ndim == 1 else 1
        rows = layout.image_range.apply(rows / np.float32(255), axis, layout.spec.name)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = rows.astype(dtype, order="C", copy=False)
    exact = converted == rows if rows.dtype.kind != "f" else ~np.isnan(rows) & (np.isinf(converted) == np.isinf(rows))
    if not np.all(exact):
        value = rows[~exact].flat[0]
        raise InputError(f"{name} holds {value}, which input {layout.spec.name!r} ({dtype}) cannot take")
    return converted


def _row_conversion(shape: tuple[int, ...], dtype: np.dtype, layout: InputLayout) -> Conversion | None:
    """What brings rows (n, *shape) to the layout; only uint8 images may have another layout or lack the channel axis."""
    if _matches(shape, layout.dims):
        return _unchanged
    if dtype != np.uint8 or len(layout.dims) != 3:
        return None
    source, target = (1, -1) if layout.channels_last else (-1, 1)
    if len(shape) == 3 and _matches((*shape[1:], shape[0]) if layout.channels_last else (shape[-1], *shape[:-1]), layout.dims):
        return lambda rows: np.moveaxis(rows, source, target)
    if len(shape) == 2 and _matches((*shape, 1) if layout.channels_last else (1, *shape), layout.dims):
        return lambda rows: np.expand_dims(rows, target)
    return None


def _matches(shape: tuple[int, ...], dims: Dims) -> bool:
    pairs = zip(shape, dims, strict=False)
    return len(shape) == len(dims) and all(not isinstance(dim, int) or size == dim for size, dim in pairs)


def _unchanged(rows: np.ndarray) -> np.ndarray:
    return rows
