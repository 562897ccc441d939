"""Concrete shapes of all tensors: one run on a small input with every intermediate tensor of the main graph as an output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from onnxmerge.errors import ModelError
from onnxmerge.execution.example_feeds import Shapes, example_feeds
from onnxmerge.execution.input_sizes import NOTHING_GIVEN, GivenShapes, Trial, first_trials, origins_of, other_shapes
from onnxmerge.execution.messages import runtime_message
from onnxmerge.execution.sessions import ModelSource, Session, open_session, path_of
from onnxmerge.execution.size_hints import size_hints
from onnxmerge.execution.tensor_specs import Feeds, TensorSpec
from onnxmerge.onnxio.wire_format import read_model
from onnxmerge.results import InputShape

VALUE_LIMIT = 64  # elements: shapes, indices and axes have at most a few of them
MOST_DISAGREEING = 6  # runs whose outputs have other shapes than declared, before the first of them is taken


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
Allowed = Callable[[Sequence[TensorSpec], Mapping[str, tuple[int, ...]]], None]


class FirstRuns(NamedTuple):
    """What a model's first runs showed.

    Attributes
    ----------
    first : dict of str to Observation
        Of a run with the sizes on which everything is counted, checked and timed.
    second : dict of str to Observation or None
        Of a run with others: what differs is dynamic. The batch, or the other sizes, stay the same where only so it runs; None
        where no input is dynamic or no second run succeeds.
    origins : dict of str to str
        By input where its sizes come from, see `origins_of`.
    pixels : Mapping of str to str
        By input how the pixels of the user's images become its values.
    """

    first: Observations
    second: Observations | None
    origins: dict[str, str]
    pixels: Mapping[str, str]

    @property
    def inputs(self) -> tuple[InputShape, ...]:
        """The sizes of the first run, for reports."""
        return tuple(
            InputShape(name, self.first[name].shape, origin, self.pixels.get(name, "")) for name, origin in self.origins.items()
        )


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
    model: ModelSource,
    *,
    given: GivenShapes = NOTHING_GIVEN,
    seed: int = 0,
    label: str | None = None,
    folder: Path | None = None,
    allowed: Allowed = anything_goes,
) -> FirstRuns:
    """Two runs on random inputs: the first of `first_trials` that runs and gives outputs of the shapes declared, then another.

    Of a model that nobody has run before use `first_run.first_observations`.

    Parameters
    ----------
    given : GivenShapes
        Sizes that are not to be chosen.
    seed : int
        Of the inputs. The others are those of `observe`.
    allowed : callable
        Called with the inputs before their values are made; a ModelError of it counts as one of the model's.

    Raises
    ------
    ModelError
        Where no first run succeeds, with the reason of the first try.
    """
    proto = read_graph(model, _label(model, label))
    session = _opened(proto, model, label, folder)
    trials = first_trials(session.inputs, size_hints(proto), given)
    declared = [spec for spec in session.outputs if spec.name in {output.name for output in proto.graph.output}]
    ran: list[tuple[Trial, Observations]] = []
    reason = None
    for trial in trials:
        try:
            ran.append((trial, _observe(session, _feeds(session, trial.shapes, seed, allowed, given))))
        except ModelError as error:
            reason = reason or error
            continue
        if agrees(session.inputs, declared, ran[-1][1]) or len(ran) == MOST_DISAGREEING:
            break
    if not ran:
        alone = len(trials) == 1 and not given.shapes
        raise reason if alone and reason is not None else ModelError(_never_runs(session.inputs, trials, given, reason))
    trial, first = next((each for each in ran if agrees(session.inputs, declared, each[1])), ran[0])
    second = _observe_otherwise(session, trial.shapes, seed, allowed, given)
    others = None if second is None else {spec.name: second[spec.name].shape for spec in session.inputs}
    return FirstRuns(first, second, origins_of(session.inputs, trial, others, given), given.pixels)


def agrees(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], observed: Observations) -> bool:
    """Whether the outputs had the sizes that are declared: numbers, and names that the inputs have too."""
    sizes: dict[int | str | None, set[int]] = {}
    for spec in inputs:
        for dim, size in zip(spec.dims, observed[spec.name].shape, strict=True):
            sizes.setdefault(dim, set()).add(size)
    for spec in outputs:
        shape = observed[spec.name].shape
        if len(shape) == len(spec.dims) and any(
            size not in ({dim} if isinstance(dim, int) else sizes.get(dim or "", {size}))
            for dim, size in zip(spec.dims, shape, strict=True)
        ):
            return False
    return True


def _never_runs(inputs: Sequence[TensorSpec], trials: Sequence[Trial], given: GivenShapes, reason: ModelError | None) -> str:
    settings = ", ".join(spec.name for spec in inputs if spec.is_setting and spec.name not in given.values)
    reason_told = (
        f"{reason}; {settings} was set to 1: inputs of yours as `calibration` give what it takes" if settings else reason
    )
    if given.shapes:
        sizes = ", ".join(InputShape(name, shape, "").text for name, shape in trials[0].shapes.items())
        whose = {"reference": "of the reference's sizes", "calibration": "of the sizes of the calibration inputs"}
        return f"with inputs {whose.get(next(iter(given.origins.values())), 'of the sizes given')}, {sizes}: {reason_told}"
    return f"no input size tried makes it run ({len(trials)} were tried; give yours with `input_shape`): {reason_told}"


def _observe_otherwise(session: Session, first: Shapes, seed: int, allowed: Allowed, given: GivenShapes) -> Observations | None:
    """A run with other sizes than those of the first, with as much changed as the model allows."""
    for shapes in other_shapes(session.inputs, first):
        try:
            return _observe(session, _feeds(session, shapes, seed, allowed, given))
        except ModelError:
            continue
    return None


def _feeds(session: Session, shapes: Shapes, seed: int, allowed: Allowed, given: GivenShapes) -> Feeds:
    allowed(session.inputs, shapes)
    values = {spec.name: np.array(given.values[spec.name], spec.dtype) for spec in session.inputs if spec.name in given.values}
    return example_feeds(session.inputs, shapes, seed) | values


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
    return _opened(read_graph(model, _label(model, label)), model, label, folder)


def _opened(proto: onnx.ModelProto, model: ModelSource, label: str | None, folder: Path | None) -> Session:
    label = _label(model, label)
    folder = folder if isinstance(model, bytes) else path_of(model).parent
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


def _label(model: ModelSource, label: str | None) -> str:
    return label or (str(model) if isinstance(model, Path) else "the model")


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
        return read_model(path_of(model))
    except Exception as error:  # protobuf's own errors, without importing protobuf
        raise ModelError(f"{label} cannot be read: {runtime_message(error)}") from error
