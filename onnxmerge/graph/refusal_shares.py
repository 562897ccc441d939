"""How much of a model each refusal keeps whole, and which one matters most."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from onnxmerge.errors import Refusal
from onnxmerge.graph.cost import input_parameters
from onnxmerge.graph.nodes import node_name
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio import surgeon as gs


def most_important_first(facts: TensorFacts, refusals: Iterable[Refusal], parameters: int) -> tuple[Refusal, ...]:
    """Refusals with the share of the parameters that their nodes read: as `Reason.order` says, the largest shares first.

    What several of these nodes read counts for each of them in equal parts, so that shares add up.

    Parameters
    ----------
    facts : TensorFacts
        The model.
    refusals : iterable of Refusal
        Why layers stay as they are.
    parameters : int
        Of the whole model.
    """
    refused = list(refusals)
    names = {each.where for each in refused}
    nodes = {node_name(node): node for node in _with_bodies(facts.model.graph.nodes) if node_name(node) in names}
    readers = Counter(name for node in nodes.values() for name in {tensor.name for tensor in node.inputs})
    read = {
        name: sum(count / readers[tensor] for tensor, count in input_parameters(facts, node).items())
        for name, node in nodes.items()
    }
    shared = [replace(each, parameters_share=read.get(each.where, 0.0) / max(1, parameters)) for each in refused]
    return tuple(sorted(shared, key=lambda each: (each.reason.order, -each.parameters_share)))


def _with_bodies(nodes: Iterable[gs.Node]) -> Iterator[gs.Node]:
    """The nodes, and those in their bodies."""
    for node in nodes:
        yield node
        for body in node.subgraphs(recursive=True):
            yield from body.nodes
