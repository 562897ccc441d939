"""Image files, and arrays of pixels, as inputs: taken one by one, brought to the model's size and channels.

An alpha channel is dropped, of an animation the first frame is taken, and the orientation that a camera noted is applied, as the
usual readers of images do.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from onnxmerge.data.feed_sources import FeedSource, Indices, InputLayout, to_dtype
from onnxmerge.data.npy_files import readable
from onnxmerge.errors import InputError
from onnxmerge.options import InputOptions

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"))
_MODES = {1: "L", 3: "RGB"}  # Pillow's mode by number of channels
_PADDING = 114  # of a letterbox: the grey of the YOLO models
_SCALING = Image.Resampling.BILINEAR
_Size = tuple[int, int]  # width, height

_FITS: Mapping[str, tuple[str, Callable[[Image.Image, _Size], Image.Image]]] = {
    "crop": ("scaled and cropped about the centre to", lambda image, size: ImageOps.fit(image, size, _SCALING)),
    "resize": ("resized to", lambda image, size: image.resize(size, _SCALING)),
    "letterbox": (
        f"letterboxed with {_PADDING} to",
        lambda image, size: ImageOps.pad(image, size, _SCALING, (_PADDING,) * len(image.getbands())),
    ),
}
"""Value of the option `fit` -> what it does, in words and to an image."""


@dataclass(frozen=True)
class ImageReading:
    """How an image becomes an array: one of `_FITS`, and the order of the channels, "rgb" or "bgr"."""

    fit: str = "crop"
    color: str = "rgb"


def image_reading_of(options: InputOptions) -> ImageReading | None:
    """How images are read; None where the user did not say, and arrays of pixels must have the model's size."""
    if options.fit is None and options.color is None:
        return None
    return ImageReading(options.fit or "crop", options.color or "rgb")


def image_files(files: Sequence[Path], layout: InputLayout, reading: ImageReading) -> FeedSource:
    """Feed a model input from image files, all of them of the size that the model takes, else of that of the first one.

    Raises
    ------
    InputError
        Where the input takes no images; on taking rows, for a file that cannot be read or has not 8 bits a channel.
    """
    return _images(len(files), lambda index: _opened(files[index]), layout, reading, str(files[0].parent))


def image_rows(array: np.ndarray, layout: InputLayout, reading: ImageReading, name: str) -> FeedSource:
    """The same from uint8 pixels (n, H, W, C), (n, C, H, W), or grey (n, H, W); `name` is what errors call them."""
    rows = array[..., np.newaxis] if array.ndim == 3 else array
    if rows.ndim == 4 and rows.shape[-1] != layout.channels:
        rows = np.moveaxis(rows, 1, -1)
    if not rows.size or rows.ndim != 4 or rows.shape[-1] != layout.channels:
        raise InputError(f"{name} does not fit: {layout.requirement}, found {array.dtype} {array.shape}")
    grey = rows[..., 0] if layout.channels == 1 else rows
    return _images(len(rows), lambda index: nullcontext(Image.fromarray(grey[index])), layout, reading, name)


def _images(
    count: int,
    opened: Callable[[int], AbstractContextManager[Image.Image]],
    layout: InputLayout,
    reading: ImageReading,
    name: str,
) -> FeedSource:
    mode = _MODES.get(layout.channels)
    if len(layout.dims) != 3 or layout.axis not in (0, None) or mode is None or layout.spec.dtype.kind not in "fiu":
        needed = "images need (N, C, H, W) or (N, H, W, C) with 1 or 3 channels"
        raise InputError(f"{name} holds images, but {layout.requirement}: {needed}")
    spatial = layout.dims[:-1] if layout.channels_last else layout.dims[1:]
    native = _pixels(opened(0), mode, None, reading).shape
    height, width = (dim if isinstance(dim, int) else size for dim, size in zip(spatial, native, strict=False))

    def take(indices: Indices) -> np.ndarray:
        pixels = np.stack([_pixels(opened(index), mode, (width, height), reading) for index in indices.tolist()])
        rows = pixels.reshape(len(indices), height, width, layout.channels)
        return to_dtype(rows if layout.channels_last else np.moveaxis(rows, -1, 1), layout, name)

    order = reading.color.upper() if mode == "RGB" else "grey"
    values = layout.image_range.text if layout.spec.dtype.kind == "f" else "values 0 to 255"
    how = f"{_FITS[reading.fit][0]} {height} x {width} (height x width), {order}, {values}"
    return FeedSource(count, take, how)


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    bombs = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)  # too large to be meant
    with readable(file), bombs, Image.open(file) as image:
        yield image


def _pixels(opened: AbstractContextManager[Image.Image], mode: str, size: _Size | None, reading: ImageReading) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8, of the size (W, H) where one is given."""
    with opened as image:
        if image.mode[0] in "IF":
            raise ValueError(f"its pixels are {image.mode!r}, 8 bits a channel are needed: convert it, or give arrays")
        whole = image.convert("RGBA") if "transparency" in image.info else image  # Pillow warns of such palettes otherwise
        upright = ImageOps.exif_transpose(whole).convert(mode)
        if size is not None and size != upright.size:
            upright = _FITS[reading.fit][1](upright, size)
        pixels = np.asarray(upright)
        return pixels[..., ::-1] if mode == "RGB" and reading.color == "bgr" else pixels
