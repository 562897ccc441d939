"""Concrete shapes: one run on a tiny input with every intermediate tensor of the main graph as an output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx

from onnxmerge.errors import InputError, ModelError
from onnxmerge.execution.sessions import Feeds, ModelSource, Session, TensorSpec, one_line, open_session, path_of

EXTENTS = (32, 64, 224, 16, 8, 128, 256, 1, 512, 4096, 16000)
VALUE_LIMIT = 64
SKEW = 32  # height and width apart, so that a computed shape cannot take one for the other


@dataclass(frozen=True)
class Observation:
    """What a tensor was in one run; its value only for at most 64 integers or booleans (shapes, indices, axes)."""

    shape: tuple[int, ...]
    dtype: np.dtype
    value: np.ndarray | None


Observations = dict[str, Observation]


def observe(model: ModelSource, feeds: Feeds, *, label: str | None = None, folder: Path | None = None) -> Observations:
    """Every tensor of the main graph (feeds, node outputs, graph outputs) in one run on the CPU without optimisation.

    Sequences and optionals are left out. folder: where external data of a model given as bytes lies.
    Raises ModelError where the model cannot be read, opened or run.
    """
    traced = open_traced(model, label, folder)
    return _observe(traced, feeds)


def observe_twice(
    model: ModelSource, *, seed: int = 0, label: str | None = None, folder: Path | None = None
) -> tuple[Observations, Observations | None]:
    """Two runs on tiny random inputs: batch 1 with the first extent that runs, then batch 2 with another extent.

    What changed between them is dynamic. The second keeps the batch, or the other extents, where only so it runs; None where
    no input is dynamic or no second run succeeds. Raises ModelError with the last reason where no first run succeeds.
    """
    traced = open_traced(model, label, folder)
    batches, extents = dynamic_axes(traced.inputs)
    firsts = product((1, 2) if batches else (1,), EXTENTS if extents else (1,))
    reason = None
    for batch, extent in firsts:
        try:
            first = _observe(traced, tiny_feeds(traced.inputs, batch, extent, seed))
        except ModelError as error:
            reason = reason or error
            continue
        return first, _second(traced, batch, extent, seed)
    raise ModelError(f"no input size tried makes it run (axes other than the first: {EXTENTS}): {reason}")


def observed_shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Concrete shape of every tensor of a file in the first of two tiny runs."""
    return {name: seen.shape for name, seen in observe_twice(model, label=str(model))[0].items()}


def tiny_feeds(inputs: Sequence[TensorSpec], batch: int, extent: int, seed: int = 0, skew: int = 0) -> dict[str, np.ndarray]:
    """Random inputs: floats N(0, 1), integers 0 or 1 (safe as indices of embeddings), booleans at random, strings "a".

    Dynamic axes: the first is batch, the others extent, each further one larger by skew; a name has one size everywhere;
    "a + b" is the sum of its terms.
    Raises InputError for an input that is not a tensor.
    """
    generator = np.random.default_rng(seed)
    sizes = _symbol_sizes(inputs, batch, extent, skew)
    feeds = {}
    for spec in inputs:
        if not spec.is_tensor:
            raise InputError(f"input {spec.name!r} is {spec.type}: only tensors can be fed")
        shape = [_size(dim, axis, sizes, batch, extent + skew * max(0, axis - 2)) for axis, dim in enumerate(spec.dims)]
        feeds[spec.name] = random_values(generator, shape, spec.dtype)
    return feeds


def dynamic_axes(inputs: Sequence[TensorSpec]) -> tuple[bool, bool]:
    """Whether any first axis is dynamic, and whether any other is."""
    firsts = any(None in spec.shape[:1] for spec in inputs)
    others = any(None in spec.shape[1:] for spec in inputs)
    return firsts, others


def _second(traced: Session, batch: int, extent: int, seed: int) -> Observations | None:
    batches, extents = dynamic_axes(traced.inputs)
    others = [extent + 32, extent // 2, 2 * extent] if extents else []
    other_batch = 3 - batch
    sizes = [(other_batch, other, SKEW) for other in others] if batches else []
    sizes += [(batch, other, SKEW) for other in others]
    sizes += [(other_batch, other, 0) for other in others] if batches else []
    sizes += [(other_batch, extent, 0)] if batches else []
    sizes += [(batch, other, 0) for other in others]
    for number, other, skew in sizes:
        if other < 1:
            continue
        try:
            return _observe(traced, tiny_feeds(traced.inputs, number, other, seed, skew))
        except ModelError:
            continue
    return None


def _observe(traced: Session, feeds: Feeds) -> Observations:
    seen = {**feeds, **traced.run(feeds)}
    return {name: _observation(value) for name, value in seen.items() if isinstance(value, np.ndarray)}


def _observation(array: np.ndarray) -> Observation:
    small = array.dtype.kind in "iub" and array.size <= VALUE_LIMIT
    return Observation(array.shape, array.dtype, array.copy() if small else None)


def open_traced(model: ModelSource, label: str | None, folder: Path | None) -> Session:
    """A session whose outputs are all tensors that numpy can hold.

    Weights in external files stay there: only the graph is read and written. Types are left to ONNX Runtime to infer.
    """
    label = label or (str(model) if isinstance(model, Path) else "the model")
    folder = folder if isinstance(model, bytes) else path_of(model).parent
    proto = read_graph(model, label)
    extra = [name for node in proto.graph.node for name in node.output if name]

    def opened(names: Sequence[str]) -> Session:
        return open_session(_with_outputs(proto, names), optimise=False, label=label, folder=folder)

    try:
        session = opened(extra)
    except ModelError:
        opened(())  # says so where the model itself is at fault
        session = opened(_acceptable(opened, [], extra))
    readable = tuple(output for output in session.outputs if output.is_tensor and output.dtype.kind in "biufO")
    return replace(session, outputs=readable)


def _acceptable(opened: Callable[[Sequence[str]], Session], accepted: list[str], names: list[str]) -> list[str]:
    """The names that may be outputs, found by halving: cheap where few may not."""
    try:
        opened([*accepted, *names])
    except ModelError:
        if len(names) < 2:
            return accepted
        middle = len(names) // 2
        return _acceptable(opened, _acceptable(opened, accepted, names[:middle]), names[middle:])
    return [*accepted, *names]


def _with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The model's bytes with more outputs, without copying its weights; ONNX Runtime infers the types of the new ones."""
    given = len(proto.graph.output)
    known = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    try:
        return proto.SerializeToString()
    finally:
        del proto.graph.output[given:]


def read_graph(model: ModelSource, label: str) -> onnx.ModelProto:
    """The model with external data left outside. Raises ModelError."""
    try:
        if isinstance(model, bytes):
            return onnx.load_model_from_string(model)
        return onnx.load(path_of(model), load_external_data=False)
    except Exception as error:  # protobuf's own errors, without importing protobuf
        raise ModelError(f"{label} cannot be read: {one_line(error)}") from error


def _symbol_sizes(inputs: Sequence[TensorSpec], batch: int, extent: int, skew: int) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spec in inputs:
        sizes.update({dim: batch for dim in spec.dims[:1] if isinstance(dim, str)})
    named = len(sizes)
    for spec in inputs:
        for dim in spec.dims[1:]:
            if isinstance(dim, str):
                sizes.setdefault(dim, extent + skew * (len(sizes) - named))
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


def random_values(generator: np.random.Generator, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "O":
        return np.full(shape, "a", dtype=object)
    if dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)
