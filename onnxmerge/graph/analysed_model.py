"""A model that is ready to be decided on: its channels, the shapes of its tensors, and what it costs."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx.inliner
from ml_dtypes import bfloat16
from onnx import ModelProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxmerge.errors import ModelError, one_line
from onnxmerge.execution.batch_axes import Call
from onnxmerge.execution.example_feeds import random_values
from onnxmerge.execution.first_run import first_observations
from onnxmerge.execution.input_sizes import NOTHING_GIVEN, GivenShapes
from onnxmerge.execution.shapes import Observations
from onnxmerge.execution.trial_runs import FirstRuns
from onnxmerge.graph.channel_analysis import analyse_channels
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.cost import total_macs, total_parameters
from onnxmerge.graph.flat_bodies import with_bodies_back, with_bodies_out, with_entered_bodies
from onnxmerge.graph.refusal_shares import most_important_first
from onnxmerge.graph.simplification import simplified
from onnxmerge.graph.tensor_facts import Shapes, TensorFacts
from onnxmerge.onnxio.bfloat16 import computed_in_bfloat16
from onnxmerge.onnxio.finite import is_finite, weights_not_finite
from onnxmerge.onnxio.model import Model, from_proto
from onnxmerge.onnxio.model_files import TemporaryModel, load, stored_bytes
from onnxmerge.onnxio.unfusing import DOMAIN, is_fused, unfused
from onnxmerge.results import InputShape, Size

FOR_ONE_PROVIDER = frozenset({"NhwcConv", "NhwcFusedConv", "NhwcMaxPool"})
"""Convolutions and poolings with channels last, of the domain com.microsoft, that the CPU may lack."""


@dataclass(frozen=True, eq=False)
class AnalysedModel:
    """A model with its channel groups and its cost.

    Attributes
    ----------
    model : Model
        The model as loaded, simplified, with bodies of If and Loop taken out (`flat_bodies`).
    channels : Channels
        Its channel analysis.
    observed : dict[str, Observation]
        Every tensor in a run on random inputs of the sizes on which everything is counted, checked and timed.
    size : Size
        Parameters, MACs for the shapes of that run, and bytes of the file as loaded.
    observed_otherwise : dict[str, Observation] or None
        Every tensor in a run with other sizes of the dynamic axes; None where nothing is dynamic.
    inputs : tuple[InputShape, ...]
        Sizes of the inputs in the first of these runs, and where they come from.
    simplifications : tuple of str
        What was simplified, a line each.
    call : Call
        Which axes are the batch, and the values of settings.
    """

    model: Model
    channels: Channels
    observed: Observations
    size: Size
    observed_otherwise: Observations | None = None
    inputs: tuple[InputShape, ...] = ()
    simplifications: tuple[str, ...] = ()
    call: Call = field(default_factory=Call)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> concrete shape in the first run."""
        return shapes_of(self.observed)

    def random_feeds(self, observed: Observations) -> dict[str, np.ndarray]:
        """Random inputs of the shapes and types that they had in a run, and the integers of that run; always the same."""
        generator, feeds = np.random.default_rng(0), dict[str, np.ndarray]()
        for seen, name in ((observed[tensor.name], tensor.name) for tensor in self.model.graph.inputs):
            drawn = random_values(generator, seen.shape, seen.dtype)
            feeds[name] = drawn if seen.value is None else seen.value
        return feeds


def shapes_of(observed: Observations) -> dict[str, tuple[int, ...]]:
    """Tensor name -> concrete shape in a run."""
    return {name: observation.shape for name, observation in observed.items()}


def values_of(observed: Observations) -> dict[str, np.ndarray]:
    """Tensor name -> value in a run, of those whose value was kept."""
    return {name: observation.value for name, observation in observed.items() if observation.value is not None}


def analyse_model(
    path: Path, max_memory: int | None = None, given: GivenShapes = NOTHING_GIVEN, whole_heads: bool = False
) -> AnalysedModel:
    """Load a model, run it on small random inputs, and find its channel groups.

    Parameters
    ----------
    path : Path
        An ONNX file.
    max_memory : int, optional
        Bytes that its first run may take; by default as `first_observations` says.
    given : GivenShapes
        Sizes of its inputs that are not to be chosen.
    whole_heads : bool
        Whether what goes of an attention is whole heads.

    Raises
    ------
    ModelError
        The file is no valid model, the model does not run, or a weight holds NaN or infinity.
    """
    stored = load(path)
    model, runs = _flat_and_run(stored, path, max_memory, given, None)
    whole = with_bodies_back(model)
    size = size_of(whole, shapes_of(runs.first), stored_bytes(path, stored.proto))
    simpler = simplified(model, runs.first)
    model, bodies_are_out, observed = simpler.model, whole is not model, simpler.observed(runs.first)
    observed_otherwise = None if runs.second is None else simpler.observed(runs.second)
    shapes = shapes_of(observed)
    other_shapes = None if observed_otherwise is None else shapes_of(observed_otherwise)
    channels = analyse_channels(TensorFacts(model, shapes, values_of(observed), other_shapes), whole_heads)
    if bodies_are_out:
        channels = with_entered_bodies(channels, whole, (runs.first, runs.second))
    of_layers = [
        f"the weight of {each.name} holds NaN or infinity" for each in channels.layers if not is_finite(each.stored_weight)
    ]
    not_finite = weights_not_finite(model.proto, model.folder) + of_layers
    if not_finite:
        raise ModelError(f"{path}: {not_finite[0]}; export the model anew")
    refusals = most_important_first(channels.facts, channels.refusals, size.parameters)
    channels = replace(channels, refusals=refusals)
    return AnalysedModel(model, channels, observed, size, observed_otherwise, runs.inputs, simpler.texts, runs.call)


def _flat_and_run(
    model: Model, path: Path, max_memory: int | None, given: GivenShapes, known: FirstRuns | None
) -> tuple[Model, FirstRuns]:
    """A model without functions, bodies and layers that ONNX Runtime has fused, and what was observed of it.

    path: its file, as messages call it; known: what was observed of that, None where it is to be run.
    """
    source = path
    if model.proto.functions:
        model = _inlined(model)
        temporary = TemporaryModel(model)
        source, known = temporary.path, None
    try:
        runs = known or first_observations(source, model.proto, label=path.name, max_memory=max_memory, given=given)
    except ModelError as error:
        fused = (node.op_type for node in model.proto.graph.node if node.domain == DOMAIN)
        made_for = [operator for operator in fused if operator in FOR_ONE_PROVIDER]
        if made_for:
            cure = "give the model from before it was optimised, or optimise at level extended at most"
            raise ModelError(
                f"{path} holds {made_for[0]}, which ONNX Runtime makes for one execution provider: {cure}"
            ) from error
        raise
    if any(map(is_fused, model.proto.graph.node)):
        narrow = {name: np.dtype(bfloat16) for name in computed_in_bfloat16(model.proto)}  # which a run gives as float32
        tensors = {name: (tuple(seen.shape), narrow.get(name, seen.dtype)) for name, seen in runs.first.items()}
        stored = model.proto.graph.initializer
        tensors |= {each.name: (tuple(each.dims), tensor_dtype_to_np_dtype(each.data_type)) for each in stored}
        model = from_proto(unfused(model.proto, tensors), model.path)
        temporary = TemporaryModel(model)
        runs = first_observations(temporary.path, model.proto, label=path.name, max_memory=max_memory, given=given)

    shapes = {each.name: each.shape for each in runs.inputs}  # of one call that the model takes: bodies may take others
    settled = GivenShapes(shapes, dict.fromkeys(shapes, "reference"), values={**runs.call.settings, **given.values})

    def run(file: Path, flat: Model) -> FirstRuns:
        found = first_observations(file, flat.proto, label=path.name, max_memory=max_memory, given=settled)
        return found._replace(origins=runs.origins, pixels=runs.pixels, call=runs.call)

    return with_bodies_out(model, run) or (model, runs)


def _inlined(model: Model) -> Model:
    """The model with the nodes of its functions in their place: functions hold layers, and are not followed."""
    try:
        return from_proto(onnx.inliner.inline_local_functions(model.proto), model.path)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{model.path}: its functions cannot be inlined: {one_line(error)}") from error


def size_of_file(path: Path, proto: ModelProto, runs: FirstRuns, max_memory: int | None = None) -> Size | None:
    """Size of a file for the sizes of its first run, the same that `analyse_model` finds; None where it cannot be analysed.

    Parameters
    ----------
    path : Path
        An ONNX file.
    proto : ModelProto
        What `read_checked` read from it.
    runs : FirstRuns
        What was observed of it.
    max_memory : int, optional
        Bytes that a run of its bodies, functions or fused layers may take.
    """
    shapes = {each.name: each.shape for each in runs.inputs}
    values = {name: value.tolist() for name in shapes if (value := runs.first[name].value) is not None}
    try:
        given = GivenShapes(shapes, runs.origins, values=values)
        found, inner = _flat_and_run(from_proto(proto, path), path, max_memory, given, runs)
        return size_of(with_bodies_back(found), shapes_of(inner.first), stored_bytes(path, proto))
    except ModelError:
        return None


def size_of(model: Model, shapes: Shapes, file_bytes: int) -> Size:
    """Parameters, MACs for the shapes given, and the bytes of the file."""
    return Size(total_parameters(model), total_macs(model, shapes), file_bytes)
