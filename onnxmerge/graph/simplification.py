"""A model with fewer nodes that computes the same but for rounding."""

from dataclasses import dataclass

from onnxmerge.execution.shapes import Observations
from onnxmerge.graph.folded_numbers import fold_numbers
from onnxmerge.graph.hard_sigmoids import write_hard_sigmoids
from onnxmerge.graph.zero_states import drop_zero_states
from onnxmerge.onnxio.edits import remove_unused_nodes
from onnxmerge.onnxio.export import export_with
from onnxmerge.onnxio.model import Model, fresh_copy, from_proto
from onnxmerge.onnxio.model_files import external_files
from onnxmerge.onnxio.storage import stored_as_read


@dataclass(frozen=True)
class Simplified:
    """What stands in the place of a model.

    Attributes
    ----------
    model : Model
        The other model itself where nothing was done.
    texts : tuple of str
        What was done, a line each.
    new_tensors : dict of str to str
        Its new tensors by name, each with one of the other model that has the same shape and type.
    """

    model: Model
    texts: tuple[str, ...]
    new_tensors: dict[str, str]

    def observed(self, before: Observations) -> Observations:
        """What was observed of the other model, and of new tensors."""
        return before | {new: before[old] for new, old in self.new_tensors.items() if old in before}


def simplified(model: Model, observed: Observations) -> Simplified:
    """The model with HardSigmoids for chains of nodes, numbers in weights, and no states of zeros.

    Weights in other files stay as they are.

    Parameters
    ----------
    model : Model
        Left as it is.
    observed : dict of str to Observation
        Every tensor of it in a run.
    """
    copy = fresh_copy(model)
    text, new_tensors = write_hard_sigmoids(copy, observed)
    texts = [text, "" if external_files(model) else fold_numbers(copy, observed), drop_zero_states(copy)]
    if not any(texts):
        return Simplified(model, (), {})
    remove_unused_nodes(copy)
    return Simplified(from_proto(export_with(copy, stored_as_read), model.path), tuple(filter(None, texts)), new_tensors)
