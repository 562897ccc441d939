"""Inputs made without data, with one random generator for each, so that batches of any size hold the same bytes.

Images are "dead leaves" (Lee, Mumford, Huang, "Occlusion models for natural images", 2001): overlapping balls and boxes whose
radii r follow the scale-invariant power law p(r) ~ r^-(d+1) in d dimensions. They have the edges, flat areas and roughly the 1/f
spectrum of photographs, and about zero mean and unit variance. Other floats are noise, integers ids.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxmerge.data.synthetic_kinds import channels_last, described, kind_of
from onnxmerge.errors import InputError, OptionError
from onnxmerge.execution.tensor_specs import TensorSpec
from onnxmerge.options import InputOptions
from onnxmerge.options.checks import as_text

Generators = Sequence[np.random.Generator]
Floats = NDArray[np.float32]

# An image of 32 x 32 pixels has 40 shapes with radii of 2 to 20 pixels. In larger images the smallest radius stays at 2 pixels,
# in smaller ones it shrinks with the image.
_SMALLEST_PIXELS, _SMALLEST_SHARE, _LARGEST_SHARE = 2.0, 2 / 32, 20 / 32
_MEAN_VOLUME = {1: 1.6, 2: (math.pi + 2.4) / 2, 3: (4 / 3 * math.pi + 4.8) / 2}  # of balls and boxes of radius 1
_COVERAGE = 40 * _MEAN_VOLUME[2] * 8 * math.log(10) / 0.99 / 32**2  # mean number of shapes over a pixel
# Standard deviations of a shape's colour, the part common to all channels and that of each, and of the noise on every pixel;
# together the variance is about one
_SHARED_COLOUR, _CHANNEL_COLOUR, _PIXEL_NOISE = 0.85, 0.45, 0.1
_WINDOW_PIXELS = 1 << 18  # painted at once: bounds the memory, and stays in the cache
UNKNOWN_IDS = "ids 0 and 1"  # kind of sampler where nothing says how large the ids are
# Of photographs with pixels in [0, 1], about those of ImageNet
_PHOTOGRAPH_MEAN, _PHOTOGRAPH_STD = 0.45, 0.25


@dataclass(frozen=True)
class ImageRange:
    """How a pixel in [0, 1] becomes an input: (pixel * (high - low) + low - mean) / std.

    Attributes
    ----------
    low, high : range that pixels are scaled to
    mean, std : of the scaled pixels, one number or one for each channel

    Raises
    ------
    OptionError
        Where a number is not finite, `low` is not below `high`, or a `std` is not above 0.
    """

    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise OptionError(f"`input_range` {self.low:g} {self.high:g}: two finite numbers, the lower one first, are needed")
        if not self.mean or not all(math.isfinite(value) for value in self.mean):
            raise OptionError(f"`mean` {as_text(self.mean)}: finite numbers are needed, one for all channels or one for each")
        if not self.std or not all(math.isfinite(value) and value > 0 for value in self.std):
            raise OptionError(f"`std` {as_text(self.std)}: numbers above 0 are needed, one for all channels or one for each")

    @property
    def text(self) -> str:
        """`range 0 to 1, mean 0.485,0.456,0.406, std 0.229,0.224,0.225`."""
        mean, std = (",".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"range {self.low:g} to {self.high:g}, mean {mean}, std {std}"

    def apply(self, pixels: NDArray[np.floating], axis: int, name: str) -> Floats:
        """Pixels in [0, 1] with channels on `axis` as inputs; `name` is the input's. InputError for other channel counts."""
        channels = pixels.shape[axis]
        for option, values in (("`mean`", self.mean), ("`std`", self.std)):
            if len(values) not in (1, channels):
                needed = f"input {name!r} has {channels} channels: give 1 or {channels}"
                raise InputError(f"{option} has {len(values)} numbers, but {needed}")
        shape = [1] * pixels.ndim
        shape[axis] = -1
        std = np.array(self.std).reshape(shape)
        scale = np.asarray((self.high - self.low) / std, np.float32)
        shift = np.asarray((self.low - np.array(self.mean).reshape(shape)) / std, np.float32)
        return np.asarray(pixels, np.float32) * scale + shift


def image_range_of(options: InputOptions) -> ImageRange | None:
    """How pixels become values; None where the user did not say."""
    if options.input_range is None and options.mean is None and options.std is None:
        return None
    low, high = options.input_range or (0.0, 1.0)
    return ImageRange(low, high, options.mean or (0.0,), options.std or (1.0,))


@dataclass(frozen=True)
class Sampler:
    """How random values of one model input are made.

    Attributes
    ----------
    kind : what they are, for reports
    draw : gives one sample for each of n generators, (n, *sample)
    assumed : the same of floats and pixels in more words, with their values and how others are had; "" for others
    """

    kind: str
    draw: Callable[[Generators], np.ndarray]
    assumed: str = ""


def sampler(spec: TensorSpec, shape: tuple[int, ...], image_range: ImageRange | None = None, limit: int | None = None) -> Sampler:
    """The sampler that suits a model input.

    Floats (N, C, L), (N, C, H, W), (N, C, D, H, W), channels last where that axis has 1, 3 or 4 and axis 1 has not: dead leaves,
    through `image_range` for images. uint8 images: dead leaves in 0..255. Other floats: N(0, 1). Masks: ones. Booleans: random.

    Parameters
    ----------
    spec : the model input
    shape : its shape in one run; samples have shape[1:]
    image_range : how pixels become values; None for images of zero mean and unit variance
    limit : exclusive upper bound of integers; 2 where unknown

    Raises
    ------
    InputError
        Where the model input is no tensor.
    """
    rank, integers, sample = len(shape), spec.dtype.kind in "iu", shape[1:]
    masks = "mask" in spec.name.lower() and (integers or spec.dtype.kind == "b" or rank <= 2)
    if not spec.is_tensor:
        raise InputError(f"input {spec.name!r} is {spec.type}: only tensors can be fed")
    if masks:
        return Sampler("ones", lambda generators: np.ones((len(generators), *sample), spec.dtype))
    if spec.dtype.kind == "O":
        return Sampler("strings", lambda generators: np.full((len(generators), *sample), "a", object))
    if spec.dtype.kind == "b":
        return Sampler("booleans", _one_by_one(lambda rng: rng.random(sample) < 0.5, spec.dtype))
    if integers and not (spec.dtype == np.uint8 and rank == 4):
        bound = 2 if limit is None else limit
        return Sampler(
            UNKNOWN_IDS if limit is None else "ids", _one_by_one(lambda rng: rng.integers(0, bound, sample), spec.dtype)
        )
    if 3 <= rank <= 5:
        kind = kind_of(shape)
        values = "values 0 to 255" if integers else image_range.text if image_range is not None and rank == 4 else ""
        assumed = described(kind, values, *(["`mean` and `std`, or `input_range`, tell others"] if rank == 4 else []))
        return Sampler(kind, lambda generators: _image_like(generators, spec, shape, image_range), assumed)
    return Sampler("noise", _one_by_one(lambda rng: rng.standard_normal(sample, np.float32), spec.dtype), described("noise"))


def dead_leaves(generators: Generators, extents: tuple[int, ...], channels: int) -> Floats:
    """Draw dead leaves in 1, 2 or 3 dimensions.

    A later shape hides an earlier one, so a pixel shows the highest number among the shapes that cover it: shapes are
    painted in any order by taking maxima, those of about one size together.

    Parameters
    ----------
    generators : one for each of n images
    extents : size of an image in pixels, along each dimension
    channels : number of channels

    Returns
    -------
    ndarray
        (n, channels, *extents) float32 of about zero mean and unit variance.
    """
    number = _number_of_shapes(extents)
    shapes = [_draw(rng, number, extents) for rng in generators]
    colours = [_colours(rng, number, channels) for rng in generators]
    labels = np.zeros((len(generators), *extents), np.int32)
    if shapes:
        _paint(labels, _Shapes(*(np.concatenate(part) for part in zip(*shapes, strict=True))), number)
    result = np.empty((len(generators), channels, *extents), np.float32)
    for rng, image, label, colour in zip(generators, result, labels, colours, strict=True):
        rng.standard_normal(out=image, dtype=np.float32)
        image *= np.where(label > 0, np.float32(_PIXEL_NOISE), np.float32(0))
        for channel, values in zip(image, np.ascontiguousarray(colour.T), strict=True):
            channel += values[label]
    return result


@dataclass(frozen=True)
class _Shapes:
    """n shapes: centre (n, d) and radius (n,) in pixels; aspect (n,): 0 for balls, for boxes the short side over the long one."""

    centre: Floats
    radius: Floats
    aspect: Floats
    cosine: Floats
    sine: Floats


def _number_of_shapes(extents: tuple[int, ...]) -> int:
    dimensions, (smallest, largest) = len(extents), _radii(extents)
    mean_power = dimensions * smallest**dimensions * math.log(largest / smallest) / (1 - (smallest / largest) ** dimensions)
    return max(1, round(_COVERAGE * math.prod(extents) / (_MEAN_VOLUME[dimensions] * mean_power)))


def _radii(extents: tuple[int, ...]) -> tuple[float, float]:
    """Smallest and largest radius in pixels."""
    side = math.prod(extents) ** (1 / len(extents))
    return min(_SMALLEST_PIXELS, _SMALLEST_SHARE * side), _LARGEST_SHARE * side


def _draw(rng: np.random.Generator, number: int, extents: tuple[int, ...]) -> tuple[Floats, ...]:
    """One image's shapes. Everything that rounds is computed here, image by image, so that any batch gives the same bytes."""
    dimensions, (smallest, largest) = len(extents), _radii(extents)
    uniform = rng.uniform((smallest / largest) ** dimensions, 1, number)
    centre = rng.uniform(0, 1, (number, dimensions)) * np.array(extents)
    aspect = np.where(rng.random(number) < 0.5, 0.0, rng.uniform(0.2, 1, number))
    angle = rng.uniform(0, math.pi, number)
    parts = (centre, smallest * uniform ** (-1 / dimensions), aspect, np.cos(angle), np.sin(angle))
    return tuple(np.asarray(part, np.float32) for part in parts)


def _colours(rng: np.random.Generator, number: int, channels: int) -> Floats:
    """(number + 1, channels): the background's colour, then those of the shapes."""
    background = rng.standard_normal((1, channels))
    shared, own = rng.standard_normal((number, 1)), rng.standard_normal((number, channels))
    return np.concatenate([background, _SHARED_COLOUR * shared + _CHANNEL_COLOUR * own]).astype(np.float32)


def _paint(labels: NDArray[np.int32], shapes: _Shapes, number: int) -> None:
    """Write into labels (n, *extents) 1 + index of the last shape over each pixel; `number` shapes an image, in order."""
    extents = labels.shape[1:]
    reach = shapes.radius * np.hypot(np.float32(1), shapes.aspect)
    sides = np.unique(np.ceil(1.25 ** np.arange(0, 4 + math.log(max(1.0, reach.max()), 1.25))).astype(int))
    bucket = 2 * np.searchsorted(sides, np.ceil(reach)) + (shapes.aspect > 0)
    for which in np.unique(bucket):
        window = tuple(min(2 * int(sides[which // 2]) + 1, extent) for extent in extents)
        rows = np.flatnonzero(bucket == which)
        step = max(1, _WINDOW_PIXELS // math.prod(window))
        for start in range(0, len(rows), step):
            _paint_rows(labels, shapes, number, rows[start : start + step], window)


def _paint_rows(labels: NDArray[np.int32], shapes: _Shapes, number: int, rows: NDArray[np.intp], window: tuple[int, ...]) -> None:
    """Paint the shapes of ascending `rows`, all balls or all boxes, each in a window of one size moved to lie in the image."""
    extents, dimensions = labels.shape[1:], len(window)
    strides = [math.prod(extents[axis + 1 :]) for axis in range(dimensions)]
    centre = shapes.centre[rows]
    corner = np.clip(np.floor(centre).astype(np.int64) - np.array(window) // 2, 0, np.array(extents) - np.array(window))
    grid = np.meshgrid(*(np.arange(size) for size in window), indexing="ij", sparse=True)
    column = (slice(None), *(np.newaxis,) * dimensions)
    offsets = [(grid[axis] + corner[:, axis][column]).astype(np.float32) - centre[:, axis][column] for axis in range(dimensions)]
    covered = _covered(shapes, rows, offsets).reshape(len(rows), -1)
    inside = sum(positions * stride for positions, stride in zip(grid, strides, strict=True))
    first = rows // number * math.prod(extents) + corner @ np.array(strides)
    row, position = np.nonzero(covered)
    pixel = first[row] + np.ravel(inside)[position]
    flat = labels.reshape(-1)
    # Of several values for one pixel the last stays, and rows ascend.
    flat[pixel] = np.maximum(flat[pixel], (rows % number + 1)[row])


def _covered(shapes: _Shapes, rows: NDArray[np.intp], offsets: list[Floats]) -> NDArray[np.bool_]:
    """(rows, *window) pixels p inside: |p| < r for balls; for boxes |u| < r, |v| < aspect r on the last two axes rotated, and
    |p_0| < r on the first of three."""
    radius, aspect, cosine, sine = (
        part[rows].reshape(-1, *(1,) * len(offsets)) for part in (shapes.radius, shapes.aspect, shapes.cosine, shapes.sine)
    )
    if not aspect.flat[0]:
        return np.asarray(sum(offset * offset for offset in offsets) < radius * radius)
    if len(offsets) == 1:
        return np.asarray(np.abs(offsets[0]) < aspect * radius)
    y, x = offsets[-2:]
    covered = (np.abs(x * cosine + y * sine) < radius) & (np.abs(y * cosine - x * sine) < aspect * radius)
    return covered & (np.abs(offsets[0]) < radius) if len(offsets) == 3 else covered


def _smooth_noise(rng: np.random.Generator, channels: int, length: int) -> Floats:
    """(channels, length) noise of unit variance whose power falls as 1 / frequency, without a constant part."""
    spectrum = np.fft.rfft(rng.standard_normal((channels, length)), axis=1)
    amplitude = np.zeros(spectrum.shape[1])
    amplitude[1:] = np.arange(1, len(amplitude)) ** -0.5
    # rfft keeps half of the frequencies: all but the first, and the last of an even length, stand for two.
    copies = np.where(2 * np.arange(len(amplitude)) == length, 1, 2)
    power = np.sum(copies * amplitude**2) / length
    return np.fft.irfft(spectrum * amplitude / math.sqrt(power or 1.0), length, axis=1).astype(np.float32)


def _image_like(generators: Generators, spec: TensorSpec, shape: tuple[int, ...], image_range: ImageRange | None) -> np.ndarray:
    last = channels_last(shape)
    extents, channels = (shape[1:-1], shape[-1]) if last else (shape[2:], shape[1])
    values = dead_leaves(generators, extents, channels)
    if len(extents) == 1 and generators:
        values = (values + np.stack([_smooth_noise(rng, channels, extents[0]) for rng in generators])) / np.float32(math.sqrt(2))
    if spec.dtype == np.uint8 or (image_range is not None and len(extents) == 2):
        values = np.clip(_PHOTOGRAPH_MEAN + _PHOTOGRAPH_STD * values, 0, 1)
        values = np.rint(255 * values) if spec.dtype == np.uint8 else (image_range or ImageRange()).apply(values, 1, spec.name)
    return np.ascontiguousarray(np.moveaxis(values, 1, -1) if last else values, spec.dtype)


def _one_by_one(draw: Callable[[np.random.Generator], np.ndarray], dtype: np.dtype) -> Callable[[Generators], np.ndarray]:
    return lambda generators: np.stack([draw(rng) for rng in generators]).astype(dtype)
