"""Models whose bodies of If and Loop are taken out into the main graph, so that their channels are found as all others are."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto, numpy_helper

from onnxmerge.errors import ModelError
from onnxmerge.execution.shapes import Observations
from onnxmerge.execution.tensor_specs import input_specs
from onnxmerge.execution.trial_runs import FirstRuns
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.cost import MACS
from onnxmerge.onnxio.bodies import (
    bodies_by_key,
    bodies_to_take_out,
    body_key,
    draws_numbers,
    is_taken_out,
    loop_of,
    put_back,
    taken_out,
    with_names_of_their_own,
)
from onnxmerge.onnxio.export import export_with
from onnxmerge.onnxio.model import Model, from_proto
from onnxmerge.onnxio.model_files import TemporaryModel
from onnxmerge.onnxio.storage import stored_as_read
from onnxmerge.onnxio.traversal import graph_and_bodies, tensors_read

Flat = tuple[Model, FirstRuns]
MOST_TRIED = 12
"""Bodies that are tried one by one where they do not run together: each try may take as long as a first run."""


def with_bodies_out(model: Model, run: Callable[[Path, Model], FirstRuns]) -> Flat | None:
    """The model with the bodies that hold layers taken out, and what was observed of it; None where there are none.

    Both bodies of an If run then, whatever the condition is; a body that does not run on these inputs stays where it is.

    Parameters
    ----------
    model : Model
        Left as it is.
    run : callable
        Runs a file of a model for the first time, and raises ModelError where that does not work.
    """
    if not bodies_to_take_out(model.proto, MACS):
        return None
    proto = with_names_of_their_own(model.proto)

    def tried(chosen: list[str], known: int) -> Flat | None:
        """None too where no node is taken out beside those known, since the body lies in one that does not run."""
        flat = from_proto(taken_out(proto, chosen), model.path)
        if len(flat.proto.graph.node) <= known:
            return None
        temporary = TemporaryModel(flat)
        try:
            return flat, run(temporary.path, flat)
        except ModelError:
            return None

    keys = bodies_to_take_out(proto, MACS)
    found, chosen = tried(keys, 0), list[str]()
    for key in keys if found is None and 1 < len(keys) <= MOST_TRIED else ():
        more = tried([*chosen, key], len((model if found is None else found[0]).proto.graph.node))
        found, chosen = (found, chosen) if more is None else (more, [*chosen, key])
    return found


def has_bodies_out(model: Model) -> bool:
    """Whether nodes of bodies stand in the main graph."""
    return any(map(is_taken_out, graph_and_bodies(model.proto.graph)))


def with_bodies_back(model: Model) -> Model:
    """The model, edited or not, with all nodes in the bodies that they were taken from."""
    if not has_bodies_out(model):
        return model
    return from_proto(put_back(export_with(model, stored_as_read)), model.path)


def with_entered_bodies(channels: Channels, model: Model, runs: Iterable[Observations | None]) -> Channels:
    """The same channels, with the groups that only bodies which no input enters hold marked (`ChannelGroup.is_entered`).

    Parameters
    ----------
    channels : Channels
        Of a model whose bodies are taken out.
    model : Model
        The same with its bodies in place.
    runs : iterable of dict of str to Observation
        Every tensor in runs of the first of these.
    """
    bodies, closed = bodies_by_key(model.proto), _never_entered(channels.model.proto, [run for run in runs if run])
    inside = {
        name
        for key in closed & bodies.keys()
        for body in graph_and_bodies(bodies[key])
        for node in body.node
        for name in node.output
    }
    groups = (
        replace(group, is_entered=any(link.key not in inside for link in (*group.producers, *group.consumers)))
        for group in channels.groups
    )
    return replace(channels, groups=tuple(groups))


def _never_entered(proto: ModelProto, runs: list[Observations]) -> set[str]:
    """Keys of the bodies of If that none of these runs enters, where sizes, settings and constants alone decide that."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    specs = input_specs(proto)
    is_open = any(spec.dims and not isinstance(spec.dims[0], int) for spec in specs)  # elsewhere [1] is one for each input
    varying = {spec.name for spec in specs if not (spec.is_setting and (is_open or not spec.dims))}
    closed = set[str]()
    for node in proto.graph.node:
        is_drawn = draws_numbers(node.op_type, len(node.input)) or bool(loop_of(node.name))
        if is_drawn or (node.op_type not in ("Shape", "Size") and not varying.isdisjoint(tensors_read(node))):
            varying.update(node.output)
        if node.op_type == "If" and (name := node.input[0]) not in varying:
            values = [run[name].value for run in runs if name in run] or [numpy_helper.to_array(stored[name])]
            taken = {"then_branch" if value.all() else "else_branch" for value in values if value is not None}
            closed |= {body_key(node, branch) for branch in ("then_branch", "else_branch") if taken and branch not in taken}
    return closed
