"""Concrete shapes of all tensors: one run on a small input with every intermediate tensor of the main graph as an output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from onnxmerge.errors import ModelError
from onnxmerge.execution.messages import runtime_message
from onnxmerge.execution.sessions import ModelSource, Session, open_session, path_of
from onnxmerge.execution.tensor_specs import Feeds
from onnxmerge.onnxio.wire_format import read_model

VALUE_LIMIT = 64  # elements: shapes, indices and axes have at most a few of them


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
    return observed(open_with_all_outputs(model, label, folder), feeds)


def observed(session: Session, feeds: Feeds) -> Observations:
    """What `observe` gives, of a session that has every tensor as an output."""
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
    return opened_with_outputs(read_graph(model, label_of_source(model, label)), model, label, folder)


def opened_with_outputs(proto: onnx.ModelProto, model: ModelSource, label: str | None, folder: Path | None) -> Session:
    """`open_with_all_outputs` of a model that has been read."""
    label = label_of_source(model, label)
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


def label_of_source(model: ModelSource, label: str | None) -> str:
    """What errors call a model: by default its path."""
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
