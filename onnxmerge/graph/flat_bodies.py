"""Models whose bodies of If and Loop are taken out into the main graph, so that their channels are found as all others are."""

from collections.abc import Callable
from pathlib import Path

from onnxmerge.errors import ModelError
from onnxmerge.execution.shapes import FirstRuns
from onnxmerge.graph.cost import MACS
from onnxmerge.onnxio.bodies import bodies_to_take_out, is_taken_out, put_back, taken_out, with_names_of_their_own
from onnxmerge.onnxio.export import export_with
from onnxmerge.onnxio.model import Model, from_proto
from onnxmerge.onnxio.model_files import TemporaryModel
from onnxmerge.onnxio.storage import stored_as_read
from onnxmerge.onnxio.traversal import graph_and_bodies

Flat = tuple[Model, FirstRuns]


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

    def tried(chosen: list[str]) -> Flat | None:
        flat = from_proto(taken_out(proto, chosen), model.path)
        temporary = TemporaryModel(flat)
        try:
            return flat, run(temporary.path, flat)
        except ModelError:
            return None

    keys = bodies_to_take_out(proto, MACS)
    found, chosen = tried(keys), list[str]()
    for key in keys if found is None and len(keys) > 1 else ():
        more = tried([*chosen, key])
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
