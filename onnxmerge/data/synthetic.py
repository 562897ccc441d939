"""Inputs made without data, with one random generator for each, so that batches of any size hold the same bytes.

Images, maps, volumes and signals are dead leaves (`dead_leaves.py`), other floats noise, integers ids.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxmerge.data.dead_leaves import Floats, Generators, dead_leaves
from onnxmerge.data.synthetic_kinds import channels_last, described, kind_of
from onnxmerge.errors import InputError, OptionError
from onnxmerge.execution.tensor_specs import TensorSpec
from onnxmerge.options import InputOptions
from onnxmerge.options.checks import as_text

UNKNOWN_IDS = "ids 0 and 1"  # kind of sampler where nothing says how large the ids are
# Of photographs with pixels in [0, 1], about those of ImageNet
_PHOTOGRAPH_MEAN, _PHOTOGRAPH_STD = 0.45, 0.25
QUIETEST = 1e-3
"""Root mean square of the quietest sounds; of the loudest it is 1, as samples lie between -1 and 1."""


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


def sampler(
    spec: TensorSpec,
    shape: tuple[int, ...],
    image_range: ImageRange | None = None,
    limit: int | None = None,
    *,
    is_sound: bool = False,
) -> Sampler:
    """The sampler that suits a model input.

    Floats (N, C, L), (N, C, H, W), (N, C, D, H, W), channels last where that axis has 1, 3 or 4 and axis 1 has not: dead leaves,
    through `image_range` for images. uint8 images: dead leaves in 0..255. Other floats: N(0, 1). Masks: ones. Booleans: random.

    Parameters
    ----------
    spec : the model input
    shape : its shape in one run; samples have shape[1:]
    image_range : how pixels become values; None for images of zero mean and unit variance
    limit : exclusive upper bound of integers; 2 where unknown
    is_sound : whether floats (N, samples) are samples of sound

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
    if is_sound and rank == 2:
        loudness = f"root mean square {QUIETEST:g} to 1 assumed: `calibration` gives others"
        return Sampler("sounds", _one_by_one(lambda rng: _sound(rng, sample[0]), spec.dtype), described("sounds", loudness))
    return Sampler("noise", _one_by_one(lambda rng: rng.standard_normal(sample, np.float32), spec.dtype), described("noise"))


def _smooth_noise(rng: np.random.Generator, channels: int, length: int) -> Floats:
    """(channels, length) noise of unit variance whose power falls as 1 / frequency, without a constant part."""
    spectrum = np.fft.rfft(rng.standard_normal((channels, length)), axis=1)
    amplitude = np.zeros(spectrum.shape[1])
    amplitude[1:] = np.arange(1, len(amplitude)) ** -0.5
    # rfft keeps half of the frequencies: all but the first, and the last of an even length, stand for two.
    copies = np.where(2 * np.arange(len(amplitude)) == length, 1, 2)
    power = np.sum(copies * amplitude**2) / length
    return np.fft.irfft(spectrum * amplitude / math.sqrt(power or 1.0), length, axis=1).astype(np.float32)


def _sound(rng: np.random.Generator, samples: int) -> Floats:
    """(samples,) smooth noise, whose loudness is as often in one decade as in another."""
    return np.asarray(_smooth_noise(rng, 1, samples)[0] * np.float32(QUIETEST ** rng.random()))


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
