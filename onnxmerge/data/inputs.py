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
from onnxmerge.data.feed_sources import FeedSource, Indices, layout_of
from onnxmerge.data.images import ImageReading
from onnxmerge.data.synthetic import ImageRange
from onnxmerge.errors import InputError, UnusedOptionError
from onnxmerge.execution.batch_axes import Axes
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
    axes : the batch's axis of the model inputs that have one
    output_axes : the same of the model's outputs, as far as it is known
    by_row : whether feeds with a batch have one row for each input, which depends on that input alone, and others are the same
        in every call
    call_size : number of inputs in one call where models are timed, unless something else is asked for
    pixels : how the pixels of the user's images become values, by model input that takes some
    names : names of the files of all inputs that `take` gives, where each has one
    assumed : what synthetic values are, by model input; see `Sampler.assumed`
    unknown_ids : model inputs of integers of which nothing says how large they are, so that nothing but 0 and 1 is fed
    untold_settings : settings, such as a sampling rate, that the program set to 1, since nothing says what they may be
    states : inputs that look like states, and the outputs that may be fed back to them; see `fed_back`
    in_sequence : whether they are calls that follow one another, of which neighbours are alike
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
    axes: Axes = field(default_factory=dict)
    output_axes: Axes = field(default_factory=dict)
    by_row: bool = False
    call_size: int = 1
    pixels: Mapping[str, str] = field(default_factory=dict)
    assumed: Mapping[str, str] = field(default_factory=dict)
    unknown_ids: tuple[str, ...] = ()
    untold_settings: tuple[str, ...] = ()
    states: Mapping[str, str] = field(default_factory=dict)
    in_sequence: bool = False
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
        return tuple(replace(each, assumed=self.assumed.get(each.name, each.assumed)) for each in shapes)

    def warnings(self) -> list[str]:
        """What is doubtful about them."""
        found = []
        if self.is_solved_on:
            one_call = f"they are one call of {self.batch_size}"
            why = one_call if self.batch_size and self.batch_size > 1 else "there are too few to hold some out"
            found.append(f"the result is checked on the inputs that it was solved on, which flatters it ({why}): give more")
        if self.range_unused:
            unused = "`mean`, `std` and `input_range` are for image files and uint8 pixels"
            found.append(f"{unused}, and other values were used as they are")
        if self.unknown_ids:
            unknown = f"nothing in the model says how large the numbers of {', '.join(self.unknown_ids)} may be"
            found.append(f"{unknown}, so that nothing but 0 and 1 was fed: give `calibration`")
        if self.untold_settings:
            untold = f"nothing in the model says what {', '.join(self.untold_settings)} may be"
            found.append(f"{untold}, so that it was set to 1: give `calibration`")
        if self.in_sequence:
            found.append("the inputs follow one another as calls of a stream, so that they are alike: give calls of many streams")
        if self.states:
            pairs = ", ".join(f"{new} as {state}" for state, new in self.states.items())
            single = f"the figures are of single calls: where {pairs} goes into the next call, as in a stream, errors add up"
            found.append(f"{single} from call to call: give a `fidelity` near 1 (0.998 by default), and compare whole sequences")
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
        """Hold a random part out, or of inputs in sequence the last part.

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
        order = np.arange(self.count)[::-1]
        mask[(order if self.in_sequence else np.random.default_rng([seed, self.count]).permutation(self.count))[:number]] = True
        return self._part(self.indices[~mask]), self._part(self.indices[mask])

    def subset(self, positions: Indices, how: str) -> Inputs:
        """Only the inputs at these positions; `how` they were chosen goes into the description."""
        return self._part(self.indices[positions], f" ({how})")

    def _part(self, indices: Indices, how: str = "") -> Inputs:
        whole = self.whole or self.description
        description = f"{len(indices)}{how} of {whole}"
        return replace(self, count=len(indices), description=description, indices=indices, whole=whole)


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
    UnusedOptionError
        Where it is said how images are read, and there are none.
    """
    model_batching = batching(specs, shapes)
    axes, per_run = model_batching.axes, model_batching.size == 1
    layouts = [layout_of(spec, shapes[spec.name], axes, per_run, image_range) for spec in specs]
    if isinstance(given, str | Path):
        path = Path(given)
        name, full_name = path.name or str(path), str(path)
        sources = file_sources(path, layouts, reading)
    else:
        name = full_name = "arrays in memory"
        sources = array_sources(given, layouts, reading)
    if reading is not None and not any(source.pixels for source in sources.values()):
        option = "fit" if reading.color == "rgb" else "color"
        what = f"image files or uint8 arrays, and other values are used as they are, so that `{option}` has no effect: drop it"
        raise UnusedOptionError(f"`calibration` {full_name} holds no images, that is {what}", option)
    counts = {each: source.count for each, source in sources.items() if source.count is not None}
    if max(counts.values(), default=1) > 1:
        sources = {each: _repeated(source) if source.count == 1 else source for each, source in sources.items()}
        counts = {each: count for each, count in counts.items() if count > 1}
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
    made = Inputs(count, description, model_batching.size, np.arange(count), take, total, axes=axes, pixels=pixels, names=names)
    return replace(made, range_unused=unused)


def _repeated(source: FeedSource) -> FeedSource:
    """One row for every input, such as a state to start from."""
    return replace(source, count=None, take=lambda indices: source.take(np.zeros_like(indices)))
