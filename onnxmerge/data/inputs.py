"""The inputs of a model, synthetic or the user's own: feeds that can be read again in batches, and split in two."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from onnxmerge.data.batching import Shapes, batching
from onnxmerge.data.calibration import array_sources, file_sources
from onnxmerge.data.feed_sources import Indices, layout_of
from onnxmerge.data.images import ImageReading
from onnxmerge.data.synthetic import UNKNOWN_IDS, ImageRange, Sampler, sampler
from onnxmerge.data.synthetic_kinds import MADE_OF
from onnxmerge.errors import InputError
from onnxmerge.execution.tensor_specs import TensorSpec
from onnxmerge.results import InputShape

DIGESTED = 16
"""Inputs, evenly spaced, that tell one set of calibration inputs from another."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of a model: the same feeds every time, in batches of any size.

    Attributes
    ----------
    count : number of inputs
    description : what they are, for reports
    whole : of a part, the description of what it is a part of, and not of the parts between
    batch_size : the only batch size that the model takes, None for any
    indices : (count,) of these inputs among all that `take` gives
    take : gives the feeds of an array of indices
    total : number of inputs that the user gave, these and others; 0 for synthetic inputs
    largest_batch : most inputs in a batch, so that a run has its place in memory
    by_row : whether axis 0 of every feed has one row for each input, which depends on that input alone
    call_size : number of inputs in one call where models are timed, unless something else is asked for
    pixels : how the pixels of the user's images become values, by model input that takes some
    names : names of the files of all inputs that `take` gives, where each has one
    assumed : what synthetic values are, by model input; see `Sampler.assumed`
    unknown_ids : model inputs of integers of which nothing says how large they are, so that nothing but 0 and 1 is fed
    is_solved_on : whether a model is checked on the very inputs that it is solved on
    range_unused : whether the user said how pixels become values, and none of the inputs are pixels
    """

    count: int
    description: str
    batch_size: int | None
    indices: Indices = field(repr=False, compare=False)
    take: Callable[[Indices], dict[str, np.ndarray]] = field(repr=False, compare=False)
    total: int = 0
    largest_batch: int = sys.maxsize
    by_row: bool = False
    call_size: int = 1
    pixels: Mapping[str, str] = field(default_factory=dict)
    assumed: Mapping[str, str] = field(default_factory=dict)
    unknown_ids: tuple[str, ...] = ()
    names: Sequence[str] = field(default=(), repr=False, compare=False)
    whole: str = ""
    range_unused: bool = False
    is_solved_on: bool = False

    @property
    def synthetic(self) -> bool:
        """Whether the inputs were made without data of the user's."""
        return self.total == 0

    def digest(self) -> str:
        """SHA-256 of a few of all inputs that the user gave, which parts of them have in common; in hexadecimal."""
        digest = hashlib.sha256()
        for position in np.unique(np.linspace(0, self.total - 1, DIGESTED).astype(np.int64)):
            for name, value in sorted(self.take(np.array([position])).items()):
                digest.update(f"{name} {value.dtype} {value.shape}".encode("utf-8", "replace"))
                digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def noted(self, shapes: Iterable[InputShape]) -> tuple[InputShape, ...]:
        """The sizes of the model's inputs, for a report, with what these synthetic ones are."""
        return tuple(replace(each, assumed=self.assumed.get(each.name, "")) for each in shapes)

    def warnings(self) -> list[str]:
        """What is doubtful about them."""
        found = []
        if self.is_solved_on:
            one_call = f"they are one call of {self.batch_size}; a state that counts inputs on another axis than 0 takes 1 there"
            why = one_call if self.batch_size and self.batch_size > 1 else "there are too few to hold some out"
            found.append(f"the result is checked on the inputs that it was solved on, which flatters it ({why}): give more")
        if self.range_unused:
            unused = "`mean`, `std` and `input_range` are for image files and uint8 pixels"
            found.append(f"{unused}, and other values were used as they are")
        if self.unknown_ids:
            unknown = f"nothing in the model says how large the numbers of {', '.join(self.unknown_ids)} may be"
            found.append(f"{unknown}, so that nothing but 0 and 1 was fed: give `calibration`")
        return found

    def number_of(self, position: int) -> int:
        """Index of the input at a position among all that the user gave; synthetic ones count from 0 anew."""
        return position if self.synthetic else int(self.indices[position])

    def name_of(self, position: int) -> str:
        """What the user knows this input by: the name of its file, or its index."""
        number = self.number_of(position)
        return self.names[number] if self.names else f"no. {number}"

    def feeds_with(self, position: int) -> dict[str, np.ndarray]:
        """The feeds of the input at a position, or of its whole batch where the model takes no other number."""
        step = self.batch_size or 1
        start = position - position % step
        return self.take(self.indices[start : start + step])

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Feeds of at most `size` and `largest_batch` inputs, or of `batch_size` where the model takes no other number."""
        yield from map(self.take, self.batch_indices(size))

    def batch_indices(self, size: int) -> Iterator[Indices]:
        """For each of these batches what is to be taken."""
        step = self.batch_size or min(size, self.largest_batch)
        if step < 1:
            raise ValueError(f"a batch of {step} inputs")
        yield from (self.indices[start : start + step] for start in range(0, self.count, step))

    def first(self, count: int) -> Inputs:
        """The first inputs, so many or a few more where the model takes whole batches; all where there are fewer."""
        step = self.batch_size or 1
        return self if count >= self.count else self.subset(np.arange(-(-count // step) * step), "the first ones")

    def repeated(self, size: int) -> dict[str, np.ndarray]:
        """Feeds of exactly `size` inputs, repeated where there are fewer, or of `batch_size` where the model takes no other."""
        return self.take(self.indices[np.arange(self.batch_size or size) % self.count])

    def split(self, held_out: float, seed: int) -> tuple[Inputs, Inputs]:
        """Hold a random part out.

        Parameters
        ----------
        held_out : share of the inputs where below 1, else their number; rounded to whole batches where the model needs these
        seed : of the random choice

        Returns
        -------
        rest, held_out : Inputs
            Each with at least one batch.

        Raises
        ------
        InputError
            Where there are fewer than two batches.
        """
        step = self.batch_size or 1
        if self.count < 2 * step:
            raise InputError(f"{self.description}: at least {2 * step} inputs are needed to hold a part out for the check")
        size = held_out * self.count if held_out < 1 else held_out
        number = step * min(max(1, round(size / step)), self.count // step - 1)
        mask = np.zeros(self.count, bool)
        mask[np.random.default_rng([seed, self.count]).permutation(self.count)[:number]] = True
        return self._part(self.indices[~mask]), self._part(self.indices[mask])

    def subset(self, positions: Indices, how: str) -> Inputs:
        """Only the inputs at these positions; `how` they were chosen goes into the description."""
        return self._part(self.indices[positions], f" ({how})")

    def _part(self, indices: Indices, how: str = "") -> Inputs:
        whole = self.whole or self.description
        description = f"{len(indices)}{how} of {whole}"
        return replace(self, count=len(indices), description=description, indices=indices, whole=whole)


def synthetic_inputs(
    specs: Sequence[TensorSpec],
    shapes: Shapes,
    count: int,
    seed: int,
    image_range: ImageRange | None = None,
    id_limits: Mapping[str, int] | None = None,
) -> Inputs:
    """Make inputs without data.

    Values of row i of the model's k-th input come from a generator of their own, SeedSequence(seed, spawn_key=(k, i)).

    Parameters
    ----------
    specs : the model's inputs
    shapes : shape of every input in one run
    count : number of inputs, rounded up to whole batches
    seed : of the random numbers
    image_range : how pixels become values; None for images of zero mean and unit variance, as networks for normalised images
        expect them
    id_limits : exclusive upper bound of integers by input; 2 for others

    Raises
    ------
    InputError
        For no inputs, and for model inputs that are no tensors.
    """
    model_batching = batching(specs, shapes)
    if count < 1:
        raise InputError(f"{count} synthetic inputs: at least 1 is needed")
    rounded = -(-count // model_batching.size) * model_batching.size if model_batching.size else count
    limits = id_limits or {}
    samplers = {spec.name: sampler(spec, shapes[spec.name], image_range, limits.get(spec.name)) for spec in specs}

    def take(indices: Indices) -> dict[str, np.ndarray]:
        feeds = {}
        for position, spec in enumerate(specs):
            whole = spec.name not in model_batching.batched
            if whole and spec.is_setting and spec.name not in limits:  # the same to solve and to check on, and in the first run
                feeds[spec.name] = np.ones(shapes[spec.name], spec.dtype)
                continue
            rows = _whole(shapes[spec.name], int(indices[0]) if model_batching.size else 0) if whole else indices
            seeds = [np.random.SeedSequence(seed, spawn_key=(position, int(row))) for row in rows]
            drawn = samplers[spec.name].draw([np.random.default_rng(each) for each in seeds])
            feeds[spec.name] = drawn.reshape(shapes[spec.name]) if whole else drawn
        return feeds

    description = f"{rounded} synthetic {_kinds(samplers)} (seed {seed})"
    by_row = model_batching.size is None and len(model_batching.batched) == len(specs)
    unknown = tuple(name for name, each in samplers.items() if each.kind == UNKNOWN_IDS)
    assumed = {name: each.assumed for name, each in samplers.items()}
    made = Inputs(rounded, description, model_batching.size, np.arange(rounded), take, by_row=by_row)
    return replace(made, assumed=assumed, unknown_ids=unknown)


def calibration_inputs(
    given: str | Path | np.ndarray | Mapping[str, np.ndarray],
    specs: Sequence[TensorSpec],
    shapes: Shapes,
    image_range: ImageRange | None = None,
    reading: ImageReading | None = None,
) -> Inputs:
    """The user's own inputs.

    Parameters
    ----------
    given : .npz or .npy file, folder of images or .npy files, an array, or arrays by the names of the model's inputs
    specs : the model's inputs
    shapes : shape of every input in one run
    image_range : how pixels become values; by default they are divided by 255
    reading : how images are read; None for the usual way, and then arrays of pixels must have the model's size

    Raises
    ------
    InputError
        Where the path is missing or cannot be read, or what it holds is empty or does not match the model's inputs.
    """
    model_batching = batching(specs, shapes)
    layouts = [layout_of(spec, shapes[spec.name], model_batching.batched, image_range) for spec in specs]
    if isinstance(given, str | Path):
        path = Path(given)
        name, full_name = path.name or str(path), str(path)
        sources = file_sources(path, layouts, reading)
    else:
        name = full_name = "arrays in memory"
        sources = array_sources(given, layouts, reading)
    if reading is not None and not any(source.pixels for source in sources.values()):
        what = "image files or uint8 arrays, and other values are used as they are: drop `fit` and `color`"
        raise InputError(f"`calibration` {full_name} holds no images, that is {what}")
    counts = {each: source.count for each, source in sources.items() if source.count is not None}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} of {each!r}" for each, count in counts.items())
        raise InputError(f"{full_name} holds {found}: the same number of each input is needed")
    total = next(iter(counts.values()), 1)
    count = total - total % (model_batching.size or 1)
    if not count:
        raise InputError(f"{full_name} holds {total} inputs, but the model takes exactly {model_batching.size} at a time")
    left_out = f" ({total - count} left out: the model takes {model_batching.size} at a time)" if total > count else ""
    description = f"{count} calibration inputs from {name}{left_out}"

    def take(indices: Indices) -> dict[str, np.ndarray]:
        return {each: source.take(indices) for each, source in sources.items()}

    pixels = {each: source.pixels for each, source in sources.items() if source.pixels}
    names = next((source.names for source in sources.values() if source.names), ())
    unused = image_range is not None and not pixels
    made = Inputs(count, description, model_batching.size, np.arange(count), take, total, pixels=pixels, names=names)
    return replace(made, range_unused=unused)


def _whole(shape: tuple[int, ...], run: int) -> Indices:
    """The rows that make up an input that is given whole to the run of this number."""
    size = shape[0] if shape else 1
    return np.arange(run * size, (run + 1) * size)


def _kinds(samplers: Mapping[str, Sampler]) -> str:
    kinds = list(dict.fromkeys(each.kind for each in samplers.values()))
    return kinds[0] if len(kinds) == 1 and kinds[0] in MADE_OF and kinds != ["noise"] else f"inputs: {', '.join(kinds)}"
