"""Shapes of a model's inputs from sizes of their dynamic axes, and random values of these shapes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onnxmerge.errors import InputError
from onnxmerge.execution.tensor_specs import TensorSpec

Axis = str | tuple[str, int]
"""A dynamic axis: its symbolic name, the same wherever it occurs, or where it has none the input's name and the axis' number."""
Shapes = Mapping[str, tuple[int, ...]]


def dynamic_axes(inputs: Sequence[TensorSpec]) -> dict[Axis, tuple[TensorSpec, int]]:
    """Where each dynamic axis occurs first, the first axes of all inputs before others; sums of known ones are left out.

    Raises
    ------
    InputError
        For an input that is not a tensor.

    Examples
    --------
    >>> spec = TensorSpec("x", "tensor(float)", np.dtype(np.float32), ("N", 3, "H", None))
    >>> list(dynamic_axes([spec]))
    ['N', 'H', ('x', 3)]
    """
    for spec in inputs:
        if not spec.is_tensor:
            raise InputError(f"input {spec.name!r} is {spec.type}: only tensors can be fed")
    places = [(spec, axis) for spec in inputs for axis in range(len(spec.dims))]
    found: dict[Axis, tuple[TensorSpec, int]] = {}
    for spec, axis in sorted(places, key=lambda place: place[1] > 0):
        if not isinstance(spec.dims[axis], int):
            found.setdefault(_axis(spec, axis), (spec, axis))
    return {axis: place for axis, place in found.items() if not _is_sum(axis, found)}


def axes_of(spec: TensorSpec, axes: Collection[Axis]) -> set[Axis]:
    """Those of the `dynamic_axes` that the shape of one input depends on."""
    own = [_axis(spec, number) for number, dim in enumerate(spec.dims) if not isinstance(dim, int)]
    terms = [[axis] if axis in axes or not isinstance(axis, str) else _terms(axis) for axis in own]
    return {term for each in terms for term in each if term in axes}


def example_shapes(inputs: Sequence[TensorSpec], sizes: Mapping[Axis, int]) -> dict[str, tuple[int, ...]]:
    """Shape of every input by name, from a size of each of the `dynamic_axes`; "a + b" is the sum of its terms."""
    shapes = {}
    for spec in inputs:
        axes = enumerate(spec.dims)
        shapes[spec.name] = tuple(dim if isinstance(dim, int) else _size(_axis(spec, axis), sizes) for axis, dim in axes)
    return shapes


def example_feeds(inputs: Sequence[TensorSpec], shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of these shapes by name, settings as they are described; `seed` is that of the values."""
    generator = np.random.default_rng(seed)
    return {
        spec.name: spec.set_to(shapes[spec.name]) if spec.is_setting else random_values(generator, shapes[spec.name], spec.dtype)
        for spec in inputs
    }


def random_values(generator: np.random.Generator, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Floats from N(0, 1), integers 0 or 1 (safe as indices of embeddings), booleans at random, strings "a"."""
    if dtype.kind == "O":
        return np.full(shape, "a", dtype=object)
    if dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def _axis(spec: TensorSpec, axis: int) -> Axis:
    dim = spec.dims[axis]
    return dim if isinstance(dim, str) else (spec.name, axis)


def _is_sum(axis: Axis, known: Collection[Axis]) -> bool:
    return isinstance(axis, str) and len(terms := _terms(axis)) > 1 and all(term.isdigit() or term in known for term in terms)


def _terms(symbol: str) -> list[str]:
    return [term.strip() for term in symbol.split("+")]


def _size(axis: Axis, sizes: Mapping[Axis, int]) -> int:
    if axis in sizes or not isinstance(axis, str):
        return sizes[axis]
    return sum(int(term) if term.isdigit() else sizes[term] for term in _terms(axis))
