"""Which sizes the dynamic axes of a model's inputs are given: the user's, else one that such a model is used at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxmerge.execution.batch_axes import Axes, batch_axes, without_axis
from onnxmerge.execution.example_feeds import Axis, Shapes, axes_of, dynamic_axes, example_shapes
from onnxmerge.execution.size_hints import SizeHints
from onnxmerge.execution.tensor_specs import TensorSpec

SIZES = {"batch": 1, "height": 224, "width": 224, "depth": 16, "line": 320, "tokens": 128, "samples": 16000, "frames": 100}
"""By use of an axis the size that is chosen: an image of ImageNet, 128 tokens, a second of sound (16 kHz, 100 frames), and for an
image of one line of text its usual width."""
TEXT_LINES = ((48, 320), (32, 320))  # height and width of images of one line of text, as recognisers take them
# Other sides of images, usual ones first; MNIST has 28 and CIFAR-10 32 pixels, Inception takes 299, detectors 320 to 640
SIDES = (32, 28, 64, 640, 320, 256, 299, 384, 512, 416, 96, 128, 112)
LENGTHS = (77, 64, 32, 512)  # of sequences; 77 is that of CLIP, 512 a window of speech detectors
MOST_LINE_PIXELS = 64  # height of images of one line of text
EXTENTS = (32, 64, 16, 8, 128, 256, 1, 512, 4096)  # of all axes alike, where their use tells nothing
MOST_HINTS = 8  # trials of one kind
SKEW = 32  # height and width differ by this in another run, so that a computed shape cannot take one for the other
OTHER_EXTENTS = (64, 96, 128, 32)  # of another run: cheap, and multiples of the strides of usual networks


@dataclass(frozen=True)
class GivenShapes:
    """What is known of the inputs beside the file.

    Attributes
    ----------
    shapes : Mapping of str to tuple of (int or None)
        By input the size of every axis, None for those that stay open.
    origins : Mapping of str to str
        By input where that comes from: "given", "calibration", or "reference" for those of another model.
    pixels : Mapping of str to str
        By input how the pixels of the user's images become its values.
    values : Mapping of str to list
        By input integers that are the same in every call, such as a sampling rate: a model may branch on them.
    counted : Mapping of str to (int, int)
        By input of calibration arrays the axis that was taken for the batch, of which `shapes` says nothing, and its size.
    """

    shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    pixels: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    counted: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def with_counted(self, axes: Axes) -> GivenShapes:
        """With the sizes of axes that were taken for the batch, where it lies on these others."""
        shapes = dict(self.shapes)
        for name, (axis, size) in self.counted.items():
            if axes.get(name) not in (None, axis) and name in shapes:
                shapes[name] = (*shapes[name][:axis], size, *shapes[name][axis + 1 :])
        return replace(self, shapes=shapes)

    def without_batch(self, axes: Axes) -> GivenShapes:
        """Without how many calibration inputs there are: that is no size of one call, and their values are not those of all."""
        found = self.opened({name: axis for name, axis in axes.items() if self.origins.get(name) == "calibration"})
        values = {name: value for name, value in self.values.items() if name not in axes or np.size(value) == 1}
        return replace(found, values=values)

    def opened(self, axes: Axes) -> GivenShapes:
        """Without the sizes of these axes."""
        known = {name: axis for name, axis in axes.items() if len(self.shapes.get(name, ())) > axis}
        open_at = {name: (*self.shapes[name][:axis], None, *self.shapes[name][axis + 1 :]) for name, axis in known.items()}
        return replace(self, shapes={**self.shapes, **open_at})


NOTHING_GIVEN = GivenShapes()


@dataclass(frozen=True)
class Trial:
    """Sizes of all inputs that may run.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        By input.
    from_graph : bool
        Whether constants of the file led to them.
    """

    shapes: dict[str, tuple[int, ...]]
    from_graph: bool = False


def first_trials(inputs: Sequence[TensorSpec], hints: SizeHints, given: GivenShapes) -> list[Trial]:
    """What is tried, in this order, with a batch of 1 and then of 2.

    Parameters
    ----------
    inputs : sequence of TensorSpec
        What the model takes.
    hints : SizeHints
        What its constants say.
    given : GivenShapes
        Sizes that are not to be chosen. Those of inputs that the model does not have, of other ranks, or of fixed axes are left
        out of account.

    Raises
    ------
    InputError
        For an input that is not a tensor.
    """
    axes, known, batches = dynamic_axes(inputs), _given_sizes(inputs, given), batch_axes(inputs)
    uses = {axis: _use(*place, batches) for axis, place in axes.items()}
    choices = _choices({uses[axis] for axis in axes.keys() - known.keys()}, hints)
    unhinted = [each for each in choices if not each[0] or len(each[0]) > 2]
    trials: dict[object, Trial] = {}
    for batch, (sizes, from_graph) in [*((1, each) for each in choices), *((2, each) for each in unhinted)]:
        of_use = {"": EXTENTS[0], "channels": hints.channels, **SIZES, **sizes, "batch": batch}
        named = {axis: of_use[use] for axis, use in uses.items()} | known
        shapes = _with_given(inputs, example_shapes(inputs, named), given)
        trials.setdefault(tuple(shapes.items()), Trial(shapes, from_graph))
    return list(trials.values())


def other_shapes(inputs: Sequence[TensorSpec], first: Shapes) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes of another run, as much changed as the model may allow: all axes, then the batch, or the others, alone.

    Height and width are apart before they are alike, and cheap sizes come before those that are near the first ones.
    """
    axes, batches = dynamic_axes(inputs), batch_axes(inputs)
    size = {axis: first[spec.name][number] for axis, (spec, number) in axes.items()}
    batch = {axis: 1 if size[axis] == 2 else 2 for axis, place in axes.items() if _is_batch(*place, batches)}
    others = [axis for axis in axes if axis not in batch]
    without_channels = [axis for axis in others if _use(*axes[axis], batches) != "channels"]
    for changing, skew in ((others, SKEW), (without_channels, SKEW), (without_channels, 0)):
        changed = [sizes for sizes in _changed(changing, size, skew) if 0 not in sizes.values()]
        distinct = [size | sizes for sizes in changed if all(sizes[axis] != size[axis] for axis in changing)]
        if batch:
            yield from (example_shapes(inputs, sizes | batch) for sizes in distinct)
            if not skew:
                yield example_shapes(inputs, size | batch)
        yield from (example_shapes(inputs, sizes) for sizes in distinct)


def _changed(axes: Sequence[Axis], size: Mapping[Axis, int], skew: int) -> Iterator[dict[Axis, int]]:
    """Other sizes of some axes, each further one larger by `skew`."""
    skews = {axis: skew * place for place, axis in enumerate(axes)}
    if axes:
        yield from ({axis: extent + skews[axis] for axis in axes} for extent in OTHER_EXTENTS)
        yield {axis: size[axis] + 32 + skews[axis] for axis in axes}
        yield {axis: size[axis] // 2 + skews[axis] for axis in axes}
        yield {axis: 2 * size[axis] + skews[axis] for axis in axes}


def origins_of(inputs: Sequence[TensorSpec], trial: Trial, other: Shapes | None, given: GivenShapes) -> dict[str, str]:
    """By input where its sizes come from: "fixed" in the file, all but the "batch", "given", "calibration", "graph" or "chosen".

    other: shapes of another run that succeeded; sizes of which none other runs are said by the graph.
    """
    axes, known, batch = dynamic_axes(inputs), _given_sizes(inputs, given), batch_axes(inputs)
    batches = {axis for axis, place in axes.items() if _is_batch(*place, batch)}
    origins = {}
    for spec in inputs:
        own = axes_of(spec, axes)
        at = batch.get(spec.name, 0)
        unchanged = other is None or without_axis(other[spec.name], at) == without_axis(trial.shapes[spec.name], at)
        if own and spec.name in given.shapes and (own - batches or None not in given.shapes[spec.name]):
            origins[spec.name] = given.origins[spec.name]
        elif own <= batches:
            origins[spec.name] = "batch" if own else "fixed"
        elif own - batches <= known.keys():
            origins[spec.name] = next(iter(given.origins.values()))
        else:
            origins[spec.name] = "graph" if trial.from_graph or unchanged else "chosen"
    return origins


def _choices(uses: set[str], hints: SizeHints) -> list[tuple[dict[str, int], bool]]:
    """Sizes by use of an axis other than the usual ones, and whether the file led to them."""
    is_image = bool(uses & {"height", "width"})
    choices: list[tuple[dict[str, int], bool]] = []
    if is_image:
        choices += [({"height": height, "width": width}, True) for height, width in hints.images[:MOST_HINTS]]
    usual_sizes: list[tuple[dict[str, int], bool]] = [({}, False)]
    if is_image:
        lines = [({"height": height, "width": width}, False) for height, width in TEXT_LINES]
        usual_sizes = [*lines, *usual_sizes] if hints.is_line else [*usual_sizes, *lines]
    choices += usual_sizes
    if is_image:
        hinted, usual = ((side, True) for side in hints.sides[:MOST_HINTS]), ((side, False) for side in SIDES)
        choices += [({"height": side, "width": side}, from_graph) for side, from_graph in (*hinted, *usual)]
    for use in sorted(uses & {"line", "tokens", "samples", "frames"}):
        choices += [({use: length}, True) for length in hints.lengths[:MOST_HINTS]]
        choices += [({use: length}, False) for length in LENGTHS]
    alike = [(dict.fromkeys(("", *SIZES), extent), False) for extent in EXTENTS]
    return choices + (alike if uses - {"batch"} else [])


def _is_batch(spec: TensorSpec, number: int, batches: Axes) -> bool:
    """Whether an axis counts inputs, or is an axis 0 that may: that of an input without a batch."""
    return number == batches.get(spec.name, 0)


def _use(spec: TensorSpec, number: int, batches: Axes) -> str:
    """What an axis counts, a key of `SIZES`, "channels", or "" where that is not known."""
    dims, rank = spec.dims, len(spec.dims)
    name, symbol = spec.name.lower(), str(dims[number]).lower()
    is_image = rank == 4 and spec.dtype.kind in "fu" and spec.dtype != np.dtype(np.uint32)
    if _is_batch(spec, number, batches):
        return "batch"
    if "mask" in name or (spec.dtype.kind != "f" and not is_image) or (rank > 2 and re.search("seq|len|past|tok", symbol)):
        return "tokens"
    if number == 0:
        return "frames"
    if rank < 4:
        return "samples" if rank == 2 or dims[3 - number] == 1 else "frames"
    if rank == 5:
        return ("channels", "depth", "height", "width")[number - 1]
    return _use_in_image(dims, number) if is_image else ""


def _use_in_image(dims: tuple[int | str | None, ...], number: int) -> str:
    """Of four axes: (N, C, H, W), or (N, H, W, C) where only the last one is fixed; others where one of H and W is fixed."""
    channels_last = isinstance(dims[3], int) and not isinstance(dims[1], int)
    first = 1 if channels_last else 2
    if number not in (first, first + 1):
        return "channels"
    channels, other = dims[3 if channels_last else 1], dims[2 * first + 1 - number]
    if not isinstance(other, int):
        return "width" if number > first else "height"
    if channels == 3:
        return "line" if other <= MOST_LINE_PIXELS else "height"
    return "frames" if channels == 1 else "tokens"


def with_given_sizes(inputs: Sequence[TensorSpec], given: GivenShapes) -> list[TensorSpec]:
    """The inputs with given sizes for their dynamic axes, but for the batch, which counts inputs."""
    known, batches = _given_sizes(inputs, given), batch_axes(inputs)

    def sized(spec: TensorSpec, number: int, dim: int | str | None) -> int | str | None:
        shape = given.shapes.get(spec.name, ())
        own = shape[number] if len(shape) == len(spec.dims) else known.get(dim) if isinstance(dim, str) else None
        return dim if _is_batch(spec, number, batches) or isinstance(dim, int) or own is None else own

    return [replace(spec, dims=tuple(sized(spec, *each) for each in enumerate(spec.dims))) for spec in inputs]


def _given_sizes(inputs: Sequence[TensorSpec], given: GivenShapes) -> dict[Axis, int]:
    """Sizes of dynamic axes that are given, for all inputs in which such an axis occurs."""
    sizes: dict[Axis, int] = {}
    axes = dynamic_axes(inputs)
    for spec in inputs:
        shape = given.shapes.get(spec.name, ())
        if len(shape) == len(spec.dims):
            for number, (dim, size) in enumerate(zip(spec.dims, shape, strict=True)):
                axis = dim if isinstance(dim, str) else (spec.name, number)
                if size is not None and axis in axes:
                    sizes[axis] = size
    return sizes


def _with_given(
    inputs: Sequence[TensorSpec], shapes: dict[str, tuple[int, ...]], given: GivenShapes
) -> dict[str, tuple[int, ...]]:
    """Shapes with the given sizes of axes that are sums, such as "past + sequence", in their place too."""
    for spec in inputs:
        wanted = given.shapes.get(spec.name, ())
        if len(wanted) == len(spec.dims):
            triples = zip(spec.dims, shapes[spec.name], wanted, strict=True)
            shapes[spec.name] = tuple(size if want is None or isinstance(dim, int) else want for dim, size, want in triples)
    return shapes
