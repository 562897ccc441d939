"""Which axis of each input and output of a model counts inputs, as far as names and runs tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxmerge.execution.tensor_specs import TensorSpec

Axes = Mapping[str, int]
Shapes = Mapping[str, tuple[int, ...]]
Dims = tuple[int | str | None, ...]

SYMBOL = "batch"
"""Name of the batch where the model has none."""
WITHOUT_BATCH = -1
"""In place of the batch's axis of an output that runs show to have none."""
MOST_PROBED = 16
"""Inputs whose axes are told by runs: each takes one."""


@dataclass(frozen=True)
class Call:
    """How a model is called.

    Attributes
    ----------
    axes : Mapping of str to int
        The batch's axis of the inputs and outputs that have one.
    settings : Mapping of str to (int or bool)
        Values of inputs that are the same in every call.
    whole : sequence of str
        Outputs that have one and the same size whatever the batch is.
    """

    axes: Axes = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    whole: Sequence[str] = ()

    @property
    def assumed(self) -> dict[str, str]:
        """By setting, for reports, what it was taken to be, and how others are given."""
        values = {name: str(value).lower() for name, value in self.settings.items()}
        return {name: f"{value} assumed, as the graph tells: `calibration` gives others" for name, value in values.items()}

    def described(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec] = ()) -> tuple[TensorSpec, ...]:
        """The inputs, or else the outputs, with the inputs' name for the batch, and with the values of settings.

        Where `batch_axes` would take another axis by that name, it is called `SYMBOL`.
        """
        symbol = batch_symbol(inputs, self.axes) or SYMBOL
        found = batch_axes(self._described(inputs, symbol))
        is_found = all(found.get(spec.name) == self.axes[spec.name] for spec in inputs if spec.name in self.axes)
        return self._described(outputs or inputs, symbol if is_found else SYMBOL)

    def _described(self, specs: Sequence[TensorSpec], symbol: str) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(
                spec,
                dims=_named(spec.dims, self.axes.get(spec.name), symbol),
                setting=self.settings.get(spec.name),
                is_whole=spec.name in self.whole,
            )
            for spec in specs
        )


def _named(dims: Dims, axis: int | None, symbol: str) -> Dims:
    if axis is None:
        return dims
    known = (*dims, *[None] * (axis + 1 - len(dims)))  # the rank of an output may be unknown
    return (*known[:axis], symbol, *known[axis + 1 :])


def batch_symbol(specs: Sequence[TensorSpec], axes: Axes) -> str | None:
    """The name of the batch in some inputs or outputs, whose axis it is."""
    dims = (spec.dims[axes[spec.name]] for spec in specs if axes.get(spec.name, len(spec.dims)) < len(spec.dims))
    return next((dim for dim in dims if isinstance(dim, str)), None)


def batch_axes(specs: Sequence[TensorSpec]) -> dict[str, int]:
    """The batch's axis by input, as far as names tell.

    The batch is the first dynamic axis 0, or a dynamic axis whose name says so. Every input has it where that name stands; where
    it has none, at axis 0.

    Examples
    --------
    >>> import numpy as np
    >>> state = TensorSpec("state", "tensor(float)", np.dtype(np.float32), (2, "N", 128))
    >>> batch_axes([TensorSpec("x", "tensor(float)", np.dtype(np.float32), ("N", 512)), state])
    {'x': 0, 'state': 1}
    """
    leading = (spec.dims[0] for spec in specs if spec.dims and isinstance(spec.dims[0], str))
    symbol = next(filter(says_batch, (dim for spec in specs for dim in spec.dims)), next(leading, None))
    found = {}
    for spec in specs:
        if symbol is not None and symbol in spec.dims:
            found[spec.name] = spec.dims.index(symbol)
        elif spec.dims and spec.dims[0] is None:
            found[spec.name] = 0
    return found


def batch_first(outputs: Mapping[str, Any], axes: Axes) -> Mapping[str, Any]:
    """The outputs with the batch on axis 0, one input for those `WITHOUT_BATCH`; axes: which it is by output."""
    arrays = {name: value for name, value in outputs.items() if isinstance(value, np.ndarray)}
    moved = {name: axis for name, axis in axes.items() if axis > 0 and name in arrays and arrays[name].ndim > axis}
    whole = {name: arrays[name][np.newaxis] for name, axis in axes.items() if axis == WITHOUT_BATCH and name in arrays}
    return {**outputs, **{name: np.moveaxis(arrays[name], axis, 0) for name, axis in moved.items()}, **whole}


def without_axis(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The other sizes."""
    return shape[:axis] + shape[axis + 1 :]


def says_batch(dim: int | str | None) -> bool:
    """Whether a name, and no formula, says that an axis is the batch."""
    return isinstance(dim, str) and re.fullmatch(r"\w*batch\w*", dim.lower()) is not None


def possible_axes(specs: Sequence[TensorSpec], known: Axes) -> dict[str, int]:
    """By input the axis that may be the batch under another name, or without one: the first dynamic one.

    An axis whose name an input has beside the batch is something else, and so is a formula, such as 2 * N.
    """
    if not known:
        return {}
    others = {dim for spec in specs if spec.name in known for dim in spec.dims if isinstance(dim, str)}
    found = {}
    for spec in specs:
        axis = next((number for number, dim in enumerate(spec.dims) if not isinstance(dim, int)), None)
        if spec.name in known or axis is None or spec.dims[axis] in others:
            continue
        if re.fullmatch(r"[\w.:]+", str(spec.dims[axis])):
            found[spec.name] = axis
    return dict(list(found.items())[:MOST_PROBED])


def tied_axes(
    specs: Sequence[TensorSpec], possible: Axes, known: Axes, shapes: Shapes, runs: Callable[[Shapes], bool]
) -> dict[str, int]:
    """Those of the `possible_axes` that have the size of the batch in every run, or else the model does not run.

    Parameters
    ----------
    specs : Sequence of TensorSpec
        The inputs, with the names of the file: axes of one name have one size.
    possible, known : Mapping of str to int
        Axes by input.
    shapes : Mapping of str to tuple of int
        Shape of every input in a run.
    runs : callable
        Whether the model runs on inputs of these shapes.
    """

    def sized(sizes: Mapping[str, int], batch: int = 2) -> Shapes:
        axes = {**known, **possible}
        return {
            name: tuple(sizes.get(name, batch) if number == axes.get(name) else size for number, size in enumerate(shape))
            for name, shape in shapes.items()
        }

    if runs(sized(dict.fromkeys(possible, 3))) or not (runs(sized({})) and runs(sized({}, batch=4))):  # 2 may be 1 broadcast
        return {}
    names = {spec.name: spec.dims[possible[spec.name]] or (spec.name,) for spec in specs if spec.name in possible}
    return {
        name: axis
        for name, axis in possible.items()
        if not runs(sized({each: 3 for each in names if names[each] == names[name]}))
    }


def named_axes(specs: Sequence[TensorSpec], symbol: str | None) -> dict[str, int]:
    """Where the name of the batch stands in some inputs or outputs."""
    return {spec.name: spec.dims.index(symbol) for spec in specs if symbol is not None and symbol in spec.dims}


def changing_axes(names: Iterable[str], first: Shapes, second: Shapes, sizes: tuple[int, int]) -> dict[str, int]:
    """The first axis of each tensor that was as large as the batch in two runs.

    Parameters
    ----------
    names : iterable of str
        The tensors.
    first, second : Mapping of str to tuple of int
        Shapes in the two runs.
    sizes : tuple of int
        Of the batch in the two runs; nothing is told where they are the same.
    """
    pairs = {name: list(zip(first.get(name, ()), second.get(name, ()), strict=False)) for name in names if sizes[0] != sizes[1]}
    return {name: each.index(sizes) for name, each in pairs.items() if sizes in each}
