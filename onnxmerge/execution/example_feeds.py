"""Small random inputs of any sizes, to see whether and how a model runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxmerge.errors import InputError
from onnxmerge.execution.tensor_specs import TensorSpec


def example_feeds(inputs: Sequence[TensorSpec], batch: int, extent: int, seed: int = 0, skew: int = 0) -> dict[str, np.ndarray]:
    """Random inputs by name; a symbolic size is the same wherever it occurs, and "a + b" is the sum of its terms.

    Parameters
    ----------
    inputs : sequence of TensorSpec
        What the model takes.
    batch : int
        Size of the first axis where it is dynamic.
    extent : int
        Size of any other dynamic axis.
    seed : int
        Of the values.
    skew : int
        Each further dynamic axis is larger by this, so that height and width differ.

    Raises
    ------
    InputError
        For an input that is not a tensor.

    Examples
    --------
    >>> spec = TensorSpec("x", "tensor(float)", np.dtype(np.float32), ("N", 3, "H", "W"))
    >>> example_feeds([spec], batch=1, extent=16, skew=4)["x"].shape
    (1, 3, 16, 20)
    """
    generator = np.random.default_rng(seed)
    shapes = example_shapes(inputs, batch, extent, skew)
    return {spec.name: random_values(generator, shapes[spec.name], spec.dtype) for spec in inputs}


def example_shapes(inputs: Sequence[TensorSpec], batch: int, extent: int, skew: int) -> dict[str, tuple[int, ...]]:
    """Shapes of `example_feeds` by name, with the same parameters and errors."""
    sizes = _symbol_sizes(inputs, batch, extent, skew)
    shapes = {}
    for spec in inputs:
        if not spec.is_tensor:
            raise InputError(f"input {spec.name!r} is {spec.type}: only tensors can be fed")
        axes = enumerate(spec.dims)
        shapes[spec.name] = tuple(_size(dim, axis, sizes, batch, extent + skew * max(0, axis - 2)) for axis, dim in axes)
    return shapes


def random_values(generator: np.random.Generator, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Floats from N(0, 1), integers 0 or 1 (safe as indices of embeddings), booleans at random, strings "a"."""
    if dtype.kind == "O":
        return np.full(shape, "a", dtype=object)
    if dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def dynamic_axes(inputs: Sequence[TensorSpec]) -> tuple[bool, bool]:
    """Whether any first axis is dynamic, and whether any other is."""
    first = any(None in spec.shape[:1] for spec in inputs)
    other = any(None in spec.shape[1:] for spec in inputs)
    return first, other


def _symbol_sizes(inputs: Sequence[TensorSpec], batch: int, extent: int, skew: int) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spec in inputs:
        sizes.update({dim: batch for dim in spec.dims[:1] if isinstance(dim, str)})
    batch_symbols = len(sizes)
    for spec in inputs:
        for dim in spec.dims[1:]:
            if isinstance(dim, str):
                sizes.setdefault(dim, extent + skew * (len(sizes) - batch_symbols))
    return sizes


def _size(dim: int | str | None, axis: int, sizes: dict[str, int], batch: int, extent: int) -> int:
    if isinstance(dim, int):
        return dim
    if dim is None:
        return extent if axis else batch
    terms = [term.strip() for term in dim.split("+")]
    if len(terms) > 1 and all(term.isdigit() or term in sizes for term in terms):
        return sum(int(term) if term.isdigit() else sizes[term] for term in terms)
    return sizes[dim]
