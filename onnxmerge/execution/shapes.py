"""Concrete shapes of all tensors: one run on a small input with every intermediate tensor of the main graph as an output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx

from onnxmerge.errors import ModelError
from onnxmerge.execution.example_feeds import dynamic_axes, example_feeds, example_shapes
from onnxmerge.execution.messages import runtime_message
from onnxmerge.execution.sessions import ModelSource, Session, open_session, path_of
from onnxmerge.execution.tensor_specs import Feeds, TensorSpec

# Sizes of dynamic axes other than the first, in the order in which they are tried: 32 and 64 run on most networks and are
# quick, 224 is what many classifiers ask for, 16000 a second of sound.
EXTENTS = (32, 64, 224, 16, 8, 128, 256, 1, 512, 4096, 16000)
VALUE_LIMIT = 64  # elements: shapes, indices and axes have at most a few of them
SKEW = 32  # height and width differ by this, so that a computed shape cannot take one for the other


@dataclass(frozen=True)
class Observation:
    """What a tensor was in one run.

    Attributes
    ----------
    shape : tuple of int
        Its concrete shape.
    dtype : dtype
        Of its values.
    value : ndarray or None
        Only for at most `VALUE_LIMIT` integers or booleans.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    value: np.ndarray | None


Observations = dict[str, Observation]
Sizes = tuple[int, int, int]  # batch, extent and skew, as `example_feeds` takes them
Allowed = Callable[[Sequence[TensorSpec], Mapping[str, tuple[int, ...]]], None]


def anything_goes(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Inputs of any size are allowed."""


def observe(model: ModelSource, feeds: Feeds, *, label: str | None = None, folder: Path | None = None) -> Observations:
    """Every tensor of the main graph in one run on the CPU without optimisation; sequences and optionals are left out.

    Parameters
    ----------
    model : bytes, Path or TemporaryModel
        In memory or as a file.
    feeds : mapping of str to ndarray
        Its inputs.
    label : str, optional
        What errors call the model; by default its path.
    folder : Path, optional
        Where the external data of a model in memory is.

    Returns
    -------
    dict of str to Observation
        Feeds, node outputs and graph outputs by name.

    Raises
    ------
    ModelError
        Where the model cannot be read, opened or run.

    Examples
    --------
    >>> from onnx import parser
    >>> model = parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     g (float[N, 2] x) => (int64[2] y) { r = Relu(x)  y = Shape(r) }''')
    >>> seen = observe(model.SerializeToString(), {"x": np.ones((3, 2), np.float32)})
    >>> seen["r"].shape, seen["y"].value.tolist()
    ((3, 2), [3, 2])
    """
    return _observe(open_with_all_outputs(model, label, folder), feeds)


def observe_twice(
    model: ModelSource, *, seed: int = 0, label: str | None = None, folder: Path | None = None, allowed: Allowed = anything_goes
) -> tuple[Observations, Observations | None]:
    """Two runs on small random inputs: batch 1 with the first of `EXTENTS` that runs, then batch 2 with another extent.

    Of a model that nobody has run before use `first_run.first_observations`.

    Parameters
    ----------
    seed : int
        Of the inputs. The others are those of `observe`.
    allowed : callable
        Called with the inputs before their values are made; a ModelError of it counts as one of the model's.

    Returns
    -------
    first : dict of str to Observation
        Of the first run.
    second : dict of str to Observation or None
        What differs from the first is dynamic. The batch, or the other extents, stay the same where only so it runs; None where
        no input is dynamic or no second run succeeds.

    Raises
    ------
    ModelError
        Where no first run succeeds, with the reason of the first try.
    """
    session = open_with_all_outputs(model, label, folder)
    reason = None
    tries = first_sizes(session.inputs)
    for sizes in tries:
        try:
            first = _observe(session, _feeds(session, sizes, seed, allowed))
        except ModelError as error:
            reason = reason or error
            continue
        return first, _observe_otherwise(session, sizes, seed, allowed)
    if len(tries) == 1 and reason is not None:
        raise reason
    raise ModelError(f"no input size tried makes it run (axes other than the first: {EXTENTS}): {reason}")


def first_sizes(inputs: Sequence[TensorSpec]) -> list[Sizes]:
    """The sizes of dynamic axes that are tried, in this order."""
    batch_is_dynamic, extent_is_dynamic = dynamic_axes(inputs)
    return [(*each, 0) for each in product((1, 2) if batch_is_dynamic else (1,), EXTENTS if extent_is_dynamic else (1,))]


def _observe_otherwise(session: Session, sizes: Sizes, seed: int, allowed: Allowed) -> Observations | None:
    """A run with other sizes than those of the first, with as much changed as the model allows."""
    for other in _other_sizes(*sizes[:2], *dynamic_axes(session.inputs)):
        try:
            return _observe(session, _feeds(session, other, seed, allowed))
        except ModelError:
            continue
    return None


def _other_sizes(batch: int, extent: int, batch_is_dynamic: bool, extent_is_dynamic: bool) -> Iterator[Sizes]:
    """Sizes to try: both changed, then one of them, with height and width apart before alike."""
    extents = [each for each in (extent + 32, extent // 2, 2 * extent) if each >= 1] if extent_is_dynamic else []
    other_batch = 3 - batch  # 1 and 2 are the batches that are tried
    for skew in (SKEW, 0):
        if batch_is_dynamic:
            yield from ((other_batch, each, skew) for each in extents)
            if not skew:
                yield other_batch, extent, 0
        yield from ((batch, each, skew) for each in extents)


def _feeds(session: Session, sizes: Sizes, seed: int, allowed: Allowed) -> Feeds:
    allowed(session.inputs, example_shapes(session.inputs, *sizes))
    return example_feeds(session.inputs, *sizes[:2], seed, sizes[2])


def _observe(session: Session, feeds: Feeds) -> Observations:
    values = {**feeds, **session.run(feeds)}
    return {name: _observation(value) for name, value in values.items() if isinstance(value, np.ndarray)}


def _observation(array: np.ndarray) -> Observation:
    has_value = array.dtype.kind in "iub" and array.size <= VALUE_LIMIT
    return Observation(array.shape, array.dtype, array.copy() if has_value else None)


def open_with_all_outputs(model: ModelSource, label: str | None, folder: Path | None) -> Session:
    """A session whose outputs are all tensors that numpy can hold.

    Weights in external files stay there: only the graph is read and written. Types are left to ONNX Runtime to infer. The
    parameters and errors are those of `observe`.
    """
    label = label or (str(model) if isinstance(model, Path) else "the model")
    folder = folder if isinstance(model, bytes) else path_of(model).parent
    proto = read_graph(model, label)
    computed = [name for node in proto.graph.node for name in node.output if name]

    def opened(names: Sequence[str]) -> Session:
        return open_session(_with_outputs(proto, names), optimise=False, label=label, folder=folder)

    try:
        session = opened(computed)
    except ModelError:
        opened(())  # raises where the model itself is at fault
        session = opened(_possible_outputs(opened, [], computed))
    readable = tuple(output for output in session.outputs if output.is_tensor and output.dtype.kind in "biufO")
    return replace(session, outputs=readable)


def _possible_outputs(opened: Callable[[Sequence[str]], Session], accepted: list[str], names: list[str]) -> list[str]:
    """The names that may be outputs, found by halving: cheap where few may not."""
    try:
        opened([*accepted, *names])
    except ModelError:
        if len(names) < 2:
            return accepted
        middle = len(names) // 2
        return _possible_outputs(opened, _possible_outputs(opened, accepted, names[:middle]), names[middle:])
    return [*accepted, *names]


def _with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The model's bytes with more outputs, without copying its weights; ONNX Runtime infers the types of the new ones."""
    count = len(proto.graph.output)
    known = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    try:
        return proto.SerializeToString()
    finally:
        del proto.graph.output[count:]


def read_graph(model: ModelSource, label: str) -> onnx.ModelProto:
    """The model, with external data left outside.

    Raises
    ------
    ModelError
        Where it cannot be read; the message begins with the label.
    """
    try:
        if isinstance(model, bytes):
            return onnx.load_model_from_string(model)
        return onnx.load(path_of(model), load_external_data=False)
    except Exception as error:  # protobuf's own errors, without importing protobuf
        raise ModelError(f"{label} cannot be read: {runtime_message(error)}") from error
