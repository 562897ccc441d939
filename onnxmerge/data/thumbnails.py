"""Small pictures of inputs that are images."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxmerge.data.inputs import Inputs
from onnxmerge.data.synthetic_kinds import channels_last

LARGEST = 96  # pixels of the longer side of a picture: about 15 kB of colour in base64
SMALLEST = 8  # pixels of the shorter side of an input below which it is taken for something else


def picture_of(inputs: Inputs, position: int) -> str:
    """The input at a position as a PNG in base64, of the first model input that takes images; empty where none does."""
    row = position % (inputs.batch_size or 1)
    for name, value in inputs.feeds_with(position).items():
        axis = inputs.axes.get(name, 0)
        pixels = pixels_of(value.take(row, axis)) if value.ndim == 4 and row < value.shape[axis] else None
        if pixels is not None:
            is_bgr = "BGR" in inputs.pixels.get(name, "")
            return _png(pixels[..., ::-1] if is_bgr else pixels)
    return ""


def pixels_of(values: np.ndarray) -> NDArray[np.uint8] | None:
    """Values (C, H, W) or (H, W, C) as pixels (H, W) or (H, W, 3), the least 0 and the largest 255; None where they are no image.

    uint8 stays as it is; what is not finite counts as 0.
    """
    if values.dtype.kind not in "fiu":
        return None
    image = values if channels_last((1, *values.shape)) else np.moveaxis(values, 0, -1)
    height, width, channels = image.shape
    if channels not in (1, 3) or min(height, width) < SMALLEST:
        return None
    if values.dtype != np.uint8:
        image = np.nan_to_num(image.astype(np.float64), posinf=0.0, neginf=0.0)
        image = np.rint(255 * (image - image.min()) / (np.ptp(image) or 1.0)).astype(np.uint8)
    return image[..., 0] if channels == 1 else image


def _png(pixels: NDArray[np.uint8]) -> str:
    picture, written = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    picture.thumbnail((LARGEST, LARGEST))
    picture.save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode("ascii")
