"""The first run of a model that nobody has run before: in this process where it is known to be cheap, else in one with limits."""

import contextlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from onnxmerge.errors import InputError, ModelError
from onnxmerge.execution.batch_axes import Call
from onnxmerge.execution.input_sizes import NOTHING_GIVEN, GivenShapes, first_trials
from onnxmerge.execution.limited_process import ProcessFailure, answer_of, limit_own_memory
from onnxmerge.execution.sessions import open_session
from onnxmerge.execution.shapes import Observation
from onnxmerge.execution.size_hints import size_hints
from onnxmerge.execution.static_cost import StaticCost
from onnxmerge.execution.tensor_specs import Feeds, TensorSpec, input_specs
from onnxmerge.execution.trial_runs import FirstRuns, observe_twice
from onnxmerge.onnxio.export import export_without_weights
from onnxmerge.onnxio.external_data import byte_count, external_bytes, is_external
from onnxmerge.onnxio.model_files import load
from onnxmerge.onnxio.traversal import stored_tensors
from onnxmerge.onnxio.validation import read_checked

MEMORY_BYTES = 2_000_000_000  # by default, or twice the size of the file: its weights, and as much again for the rest
SECONDS = 40.0  # with the rest of a command less than a minute
VALUE_BYTES = 4  # of a number in a tensor; few models compute with larger ones
MODELS = 2  # each keeps the memory of its largest run, and two are compared
MAPS = 2  # how often ONNX Runtime maps a weight in a file, which the system counts as memory that may be written
BYTES_A_SECOND = 20_000_000  # and longer for large files: a slow disk


class _NotKnownToBeCheap(Exception):
    """A size that is to be tried in a process of its own."""


def first_observations(
    model: Path,
    proto: ModelProto | None = None,
    *,
    label: str,
    max_memory: int | None = None,
    given: GivenShapes = NOTHING_GIVEN,
) -> FirstRuns:
    """`observe_twice` for a file that nobody has run before.

    Parameters
    ----------
    model, proto : Path, ModelProto, optional
        An ONNX file, and what `read_checked` read from it, where that is at hand.
    label : str
        What errors call the model.
    max_memory : int, optional
        Bytes that a run may take beside the libraries; by default `MEMORY_BYTES`, or twice the size of the model.
    given : GivenShapes
        Sizes of the inputs that are not to be chosen.

    Raises
    ------
    ModelError
        Where the model is not valid, or does not run within the limits.
    """
    proto = proto or read_checked(model)
    cost = StaticCost(proto)

    def cheap(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
        if not cost.is_small(shapes):
            raise _NotKnownToBeCheap

    inputs = input_specs(proto)
    for spec in inputs:
        if 0 in spec.dims:
            raise ModelError(f"{label}: input '{spec.name}' holds no values: its shape is {spec.dims}")
    try:
        cheap(inputs, first_trials(inputs, size_hints(proto), given)[0].shapes)
        return observe_twice(model, label=label, allowed=cheap, given=given)
    except (_NotKnownToBeCheap, InputError):
        pass
    size = model.stat().st_size + external_bytes(proto, model)
    memory = max_memory or max(MEMORY_BYTES, 2 * size)
    try:
        mapped = MAPS * sum(byte_count(tensor) for tensor in stored_tensors(proto) if is_external(tensor))
        known = json.dumps([given.shapes, given.origins, {}, given.values, given.counted])
        arguments = [str(mapped), str(model.absolute()), label, known]
        answer = answer_of(__name__, arguments, SECONDS + size / BYTES_A_SECOND, memory)
    except ProcessFailure as failure:
        limits = f"the first run may take {memory / 1e9:g} GB: `max_memory`"
        raise ModelError(f"{label} does not run: trying it in ONNX Runtime {failure} ({limits})") from None
    if "error" in answer:
        raise ModelError(answer["error"])
    first, second = (
        None if each is None else {name: _observation(*value) for name, value in each.items()} for each in answer["runs"]
    )
    assert first is not None
    return FirstRuns(first, second, answer["origins"], given.pixels, Call(*answer["call"]))


def batch_that_fits(shapes: Mapping[str, tuple[int, ...]], feeds: Feeds, max_memory: int | None = None) -> int:
    """How many inputs can be run in one call, at least 1: all tensors of two models take `max_memory` then.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Shape of every tensor in the first run.
    feeds : mapping of str to ndarray
        One input; where it is larger than that of the first run, so are all tensors.
    max_memory : int, optional
        Bytes; by default `MEMORY_BYTES`.
    """
    growth = sum(value.size for value in feeds.values()) / max(1, sum(math.prod(shapes[name]) for name in feeds))
    needed = MODELS * VALUE_BYTES * growth * sum(map(math.prod, shapes.values()))
    return max(1, int((max_memory or MEMORY_BYTES) / max(1.0, needed)))


def main(memory_bytes: int, mapped_bytes: int, model: Path, label: str, given: GivenShapes) -> None:
    """The side of the other process: print what was observed as a line of JSON, the last; or the error."""

    def allowed(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
        needed = sum(math.prod(shapes[spec.name]) * max(8, spec.dtype.itemsize) for spec in inputs)
        if needed > memory_bytes:
            raise ModelError(f"its inputs take {needed / 1e9:,.1f} GB, and {memory_bytes / 1e9:g} GB are allowed (`max_memory`)")

    limit_own_memory(memory_bytes + mapped_bytes)
    answer: dict[str, Any]
    try:
        *runs, origins, _, call = observe_twice(model, label=label, allowed=allowed, given=given)
        open_session(model, optimise=True, prepack=False, label=label)  # folds constants
        with contextlib.suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            onnx.shape_inference.infer_shapes(export_without_weights(load(model)), data_prop=True)  # as export does
        written = [None if run is None else {name: _as_json(each) for name, each in run.items()} for run in runs]
        answer = {"runs": written, "origins": origins, "call": [call.axes, call.settings, call.whole]}
    except (ModelError, InputError) as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": f"{label} does not run in {memory_bytes / 1e9:g} GB of memory: `max_memory` allows more"}
    print(json.dumps(answer))


def _as_json(seen: Observation) -> list[Any]:
    return [seen.shape, seen.dtype.str, None if seen.value is None else seen.value.tolist()]


def _observation(shape: Sequence[int], dtype: str, value: Any) -> Observation:
    return Observation(tuple(shape), np.dtype(dtype), None if value is None else np.array(value, dtype).reshape(shape))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], GivenShapes(*json.loads(sys.argv[5])))
