"""Whether an axis counts inputs, as the values of runs tell: each of these is then computed by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxmerge.execution.batch_axes import Axes, says_batch
from onnxmerge.execution.tensor_specs import Feeds, TensorSpec

RECURRENT = frozenset({"LSTM", "GRU", "RNN", "Loop", "Scan"})
"""Operators that go along a sequence, which is in front of the batch in most of them."""
SAME = 1e-3
"""Relative difference of outputs that count as the same."""

Run = Callable[[Feeds], Mapping[str, Any]]


def other_axes(specs: Sequence[TensorSpec], axes: Axes, operators: Collection[str]) -> Iterator[dict[str, int]]:
    """What else the batch's axes may be, where no name says so: the further open axes of the first input that has it.

    Only where it is in doubt: another input of numbers has open axes and no batch, or the model goes along a sequence.

    Parameters
    ----------
    specs : Sequence of TensorSpec
        The inputs, with the names of the file.
    axes : Mapping of str to int
        The batch's axis by input, as far as names and sizes tell.
    operators : collection of str
        Types of the model's operators.
    """
    leading = next((spec for spec in specs if spec.name in axes), None)
    if leading is None or any(says_batch(dim) for spec in specs for dim in spec.dims):
        return
    opened = {spec.name: _open_axes(spec) for spec in specs if not spec.is_setting and _open_axes(spec)}
    in_doubt = any(name not in axes for name in opened) or not RECURRENT.isdisjoint(operators)
    for axis in opened.get(leading.name, []) if in_doubt else ():
        name = leading.dims[axis]
        found, others = {leading.name: axis}, [dim for dim in leading.dims[:axis] if dim is not None]
        for spec in (each for each in specs if each.name in opened and each is not leading):
            if isinstance(name, str) and name in spec.dims:
                found[spec.name] = spec.dims.index(name)
            elif spec.name in axes and axes[spec.name] == axes[leading.name] and axis in opened[spec.name]:
                found[spec.name] = axis
            elif spec.name not in axes and spec.dims[opened[spec.name][0]] not in others:
                found[spec.name] = opened[spec.name][0]
        if axis != axes[leading.name]:
            yield found


def _open_axes(spec: TensorSpec) -> list[int]:
    return [axis for axis, dim in enumerate(spec.dims) if not isinstance(dim, int)]


def are_apart(run: Run, feeds: Feeds, axes: Axes, outputs: Sequence[str]) -> bool:
    """Whether inputs along some axes are computed as each of them alone is.

    Parameters
    ----------
    run : callable
        Gives the model's outputs, among others.
    feeds : Mapping of str to ndarray
        Several inputs, two or more.
    axes : Mapping of str to int
        The axes by name of an input.
    outputs : Sequence of str
        The outputs that are compared; one of them must be longer by an axis of the inputs' number.
    """
    count = next(feeds[name].shape[axis] for name, axis in axes.items())
    whole, told = run(feeds), 0
    for row in range(count):
        alone = run({name: value.take([row], axes[name]) if name in axes else value for name, value in feeds.items()})
        for name in outputs:
            one, several = np.asarray(alone[name]), np.asarray(whole[name])
            if one.ndim != several.ndim or one.dtype.kind != "f":
                continue
            axis = next(
                (number for number, pair in enumerate(zip(one.shape, several.shape, strict=True)) if pair == (1, count)), None
            )
            if axis is None:
                continue
            part = several.take([row], axis)
            if part.shape != one.shape or not _are_alike(one, part):
                return False
            told += 1
    return told > 0


def _are_alike(one: np.ndarray, other: np.ndarray) -> bool:
    size = float(np.linalg.norm(one.astype(np.float64)))
    return float(np.linalg.norm(one.astype(np.float64) - other)) <= SAME * size
