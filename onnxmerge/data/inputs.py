"""One interface over synthetic inputs and the user's own: a source of feeds that can be read again, and split."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from onnxmerge.data.calibration import array_columns, read_columns
from onnxmerge.data.input_slots import Indices
from onnxmerge.data.synthetic import ImageRange, Sampler, sampler
from onnxmerge.errors import InputError
from onnxmerge.execution.tensor_specs import TensorSpec

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Batching:
    """Which inputs count inputs on axis 0, and how many a run takes (None: any number). The others are given whole."""

    batched: frozenset[str]
    size: int | None


@dataclass(frozen=True)
class Inputs:
    """`count` inputs of a model; `source` says for reports what they are. The same feeds every time, in batches of any size."""

    count: int
    source: str
    batch_size: int | None
    indices: Indices = field(repr=False, compare=False)
    take: Callable[[Indices], dict[str, np.ndarray]] = field(repr=False, compare=False)
    total: int = 0  # that the user's files hold, chosen or not; 0 for synthetic ones

    @property
    def synthetic(self) -> bool:
        """Whether the program made them."""
        return self.total == 0

    def feeds_with(self, position: int) -> dict[str, np.ndarray]:
        """The feeds of one input, or of the batch that it is in where the model takes no other number."""
        step = self.batch_size or 1
        start = position - position % step
        return self.take(self.indices[start : start + step])

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Feeds of at most `size` inputs, or of exactly `batch_size` where the model takes no other number."""
        step = self.batch_size or size
        if step < 1:
            raise ValueError(f"a batch of {step} inputs")
        for start in range(0, self.count, step):
            yield self.take(self.indices[start : start + step])

    def call(self, size: int) -> dict[str, np.ndarray]:
        """Feeds of exactly `size` inputs, repeated where there are fewer, or of `batch_size` where the model takes no other."""
        return self.take(self.indices[np.arange(self.batch_size or size) % self.count])

    def split(self, held_back: float, seed: int) -> tuple[Inputs, Inputs]:
        """The rest and a part held back: a share where below 1, else a number of inputs. Drawn at random by the seed.

        Both parts have at least one batch, and whole batches where the model takes only those. Raises InputError where
        there is only one.
        """
        step = self.batch_size or 1
        if self.count < 2 * step:
            raise InputError(f"{self.source}: at least {2 * step} inputs are needed to hold a part back for the check")
        wanted = held_back * self.count if held_back < 1 else held_back
        number = step * min(max(1, round(wanted / step)), self.count // step - 1)
        chosen = np.zeros(self.count, bool)
        chosen[np.random.default_rng([seed, self.count]).permutation(self.count)[:number]] = True
        return self._part(self.indices[~chosen]), self._part(self.indices[chosen])

    def chosen(self, positions: Indices, how: str) -> Inputs:
        """Only the inputs at these positions; `how` goes into the source."""
        part = self._part(self.indices[positions])
        return replace(part, source=f"{len(positions)} {how} out of {self.source}")

    def _part(self, indices: Indices) -> Inputs:
        return replace(self, count=len(indices), source=f"{len(indices)} of {self.source}", indices=indices)


def batching(specs: Sequence[TensorSpec], shapes: Shapes) -> Batching:
    """Dynamic first axes count inputs, in any number; an axis of another name, and fixed inputs beside them, are given whole.

    Where the batch's name turns up in other axes too, the number of that run is kept. Where all is fixed, the common first
    extent is the number; without a common one every run is one input.
    """
    leading = [spec for spec in specs if spec.dims]
    dynamic = [spec for spec in leading if not isinstance(spec.dims[0], int)]
    if not dynamic:
        extents = {shapes[spec.name][0] for spec in leading}
        return (
            Batching(frozenset(spec.name for spec in leading), extents.pop()) if len(extents) == 1 else Batching(frozenset(), 1)
        )
    name = next((spec.dims[0] for spec in dynamic if spec.dims[0]), None)
    batched = [spec for spec in dynamic if spec.dims[0] in (None, name)]
    names = [spec.dims[0] for spec in dynamic if spec not in batched] + [dim for spec in specs for dim in spec.dims[1:]]
    tied = any(isinstance(dim, str) and name in re.findall(r"\w+", dim) for dim in names)
    return Batching(frozenset(spec.name for spec in batched), shapes[batched[0].name][0] if tied else None)


def check_batch(model: Path, taken: int | None, batch: int | None) -> None:
    """Raises InputError where the model takes another number of inputs a call (None: any) than is to be timed."""
    if batch is not None and taken not in (None, batch):
        raise InputError(f"{model} takes exactly {taken} inputs a call: `batch` {batch} cannot be timed")


def synthetic_inputs(
    specs: Sequence[TensorSpec],
    shapes: Shapes,
    count: int,
    seed: int,
    image_range: ImageRange | None = None,
    limits: Mapping[str, int] | None = None,
) -> Inputs:
    """`count` inputs without data, rounded up to whole batches; shapes: concrete, of one run; limits: name -> ids below this.

    image_range None: images of zero mean and unit variance, which is what networks for normalised images expect.
    Input i of the model's k-th input comes from its own generator, SeedSequence(seed, spawn_key=(k, i)).
    """
    plan = batching(specs, shapes)
    if count < 1:
        raise InputError(f"{count} synthetic inputs: at least 1 is needed")
    rounded = -(-count // plan.size) * plan.size if plan.size else count
    limits = limits or {}
    samplers = {spec.name: sampler(spec, shapes[spec.name], image_range, limits.get(spec.name)) for spec in specs}

    def take(indices: Indices) -> dict[str, np.ndarray]:
        feeds = {}
        for position, spec in enumerate(specs):
            rows = indices if spec.name in plan.batched else _whole(shapes[spec.name], int(indices[0]) if plan.size else 0)
            seeds = [np.random.SeedSequence(seed, spawn_key=(position, int(row))) for row in rows]
            drawn = samplers[spec.name].draw([np.random.default_rng(each) for each in seeds])
            feeds[spec.name] = drawn if spec.name in plan.batched else drawn.reshape(shapes[spec.name])
        return feeds

    source = f"{rounded} synthetic {_kinds(samplers)} (seed {seed})"
    return Inputs(rounded, source, plan.size, np.arange(rounded), take)


def calibration_inputs(
    given: str | Path | np.ndarray | Mapping[str, np.ndarray],
    specs: Sequence[TensorSpec],
    shapes: Shapes,
    image_range: ImageRange | None = None,
) -> Inputs:
    """The user's inputs from a .npz or .npy file, a folder of images or .npy files, or arrays.

    Raises InputError where the path is missing or broken, holds nothing, or does not fit the model's inputs.
    """
    plan = batching(specs, shapes)
    if isinstance(given, str | Path):
        path = Path(given)
        origin, where = path.name or str(path), str(path)
        columns = read_columns(path, specs, shapes, plan.batched, image_range)
    else:
        origin = where = "arrays in memory"
        columns = array_columns(given, specs, shapes, plan.batched, image_range)
    counts = {name: column.count for name, column in columns.items() if column.count is not None}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise InputError(f"{where} holds {found}: the same number of each input is needed")
    total = next(iter(counts.values()), 1)
    count = total - total % (plan.size or 1)
    if not count:
        raise InputError(f"{where} holds {total} inputs, but the model takes exactly {plan.size} at a time")
    left_out = f" ({total - count} left out: the model takes {plan.size} at a time)" if total > count else ""
    source = f"{count} calibration inputs from {origin}{left_out}"
    indices = np.arange(count)
    return Inputs(
        count, source, plan.size, indices, lambda rows: {name: each.take(rows) for name, each in columns.items()}, total
    )


def _whole(shape: tuple[int, ...], run: int) -> Indices:
    """The rows of an input that is given whole: others in every run where runs are numbered, else always the same."""
    extent = shape[0] if shape else 1
    return np.arange(run * extent, (run + 1) * extent)


def _kinds(samplers: Mapping[str, Sampler]) -> str:
    kinds = list(dict.fromkeys(each.kind for each in samplers.values()))
    return kinds[0] if kinds == ["dead-leaves images"] else f"inputs: {', '.join(kinds)}"
