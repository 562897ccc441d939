"""Where a candidate first drifts from its reference: every tensor that both have, in one run after another.

Tensors are paired by name and shape. Where channels were removed a tensor has fewer of them and is not comparable: what its
readers give is compared instead. A node drifts where its output differs although everything comparable in front of it agrees.
With inputs equal to the bit, the same operator with the same numbers gives the same bits, so any difference counts where the
node's own numbers differ, and rounding is forgiven elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxmerge.errors import InputError
from onnxmerge.evaluation.channel_matching import NOT_FINITE, ChannelCorrelation
from onnxmerge.evaluation.channel_sums import ChannelSums
from onnxmerge.evaluation.node_views import LAYER_OPERATORS, NodeView, GraphView, read_graph_view
from onnxmerge.evaluation.weight_differences import difference
from onnxmerge.execution.sessions import ModelSource, Session
from onnxmerge.execution.shapes import open_with_all_outputs
from onnxmerge.execution.tensor_specs import Feeds
from onnxmerge.results import LayerComparison, NodeDeviation

ROUNDING = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-12}  # relative L2 that other kernels may differ by
_MIN_GROWTH = 5.0


@dataclass
class _TensorComparison:
    """Both models with all their tensors, and the sums of those that both have."""

    reference: GraphView
    candidate: GraphView
    sums: dict[str, ChannelSums] = field(default_factory=dict)
    twins: dict[str, ChannelCorrelation] = field(default_factory=dict)
    constants: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = field(default_factory=lambda: ({}, {}))
    rounding: float = 0.0
    skipped: set[str] = field(default_factory=set)

    def add(self, expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
        """The values of one run."""
        for name, node in self.reference.producers.items():
            one, other = expected.get(name), found.get(name)
            if one is None or one.dtype.kind not in "biuf":
                continue
            axis = -1 if node.op_type == "MatMul" or one.ndim < 2 else 1
            if other is not None and node.op_type in LAYER_OPERATORS and not self.same_channel_counts and one.ndim == other.ndim > 1:
                self.twins.setdefault(name, ChannelCorrelation(axis)).add(one, other)
            if other is None or one.shape != other.shape or other.dtype.kind not in "biuf":
                self.skipped.add(name)
                continue
            self.sums.setdefault(name, ChannelSums(axis)).add(one, other)
            self.rounding = max(self.rounding, *(ROUNDING.get(array.dtype.name, 0.0) for array in (one, other)))

    @cached_property
    def same_channel_counts(self) -> bool:
        """Whether no layer lost channels."""
        return self.reference.layers == self.candidate.layers

    def number(self, side: int, name: str) -> np.ndarray | None:
        """A constant of the reference (0) or the candidate (1), stored or made by nodes that read no input."""
        stored = (self.reference, self.candidate)[side].weight(name)
        return self.constants[side].get(name) if stored is None else stored


def compare_layers(
    reference: ModelSource, candidate: ModelSource, batches: Iterable[Feeds], labels: tuple[str, str]
) -> LayerComparison:
    """Both models on the CPU without optimisation. Memory: all tensors of one run of each. InputError without any batch."""
    pair = (reference, candidate)
    graphs = [read_graph_view(model, label) for model, label in zip(pair, labels, strict=True)]
    sessions = [open_with_all_outputs(model, label, None) for model, label in zip(pair, labels, strict=True)]
    tensors, runs = _TensorComparison(graphs[0], graphs[1]), 0
    for feeds in batches:
        values = [_arrays(session, feeds) for session in sessions]
        tensors.add(*values)
        if not runs:
            tensors.constants = tuple(_constants(*each) for each in zip(graphs, values, strict=True))  # type: ignore[assignment]
        runs += 1
    if not runs:
        raise InputError("there are no check inputs: at least one batch is needed")
    return _compare_nodes(tensors, runs)


def _arrays(session: Session, feeds: Feeds) -> dict[str, np.ndarray]:
    return {name: value for name, value in session.run(feeds).items() if isinstance(value, np.ndarray)}


def _constants(graph: GraphView, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    needed = {name for node in graph.nodes for name in node.constants.values()}
    return {name: value for name, value in values.items() if name in needed}


def _compare_nodes(tensors: _TensorComparison, runs: int) -> LayerComparison:
    """Node by node in the order they run."""
    upstream = _upstream(tensors)
    deviating: dict[str, bool] = {}
    first, nodes = None, []
    changes: list[tuple[str, str]] = []
    for node in tensors.reference.nodes:
        for tensor in (name for name in node.outputs if name in tensors.sums):
            inputs = upstream[tensor]
            deviating[tensor] = _deviates(tensors, node, tensor, inputs)
            if not deviating[tensor]:
                continue
            starts = not any(deviating[name] for name in inputs) and _exceeds_inputs(tensors, tensor, inputs)
            node = _node(tensors, node, tensor, inputs, starts)
            first = first or (node if starts else None)
            nodes.append(node)
        changes.append((node.name, _unexplained_change(tensors, node)))
    counts = len(tensors.sums), len(tensors.skipped), runs
    return LayerComparison(tensors.same_channel_counts, *counts, first, tuple(nodes), _until_not_finite(changes))


def _until_not_finite(changes: list[tuple[str, str]]) -> tuple[str, ...]:
    """NaN comes through to all that is behind it: only where it appears it is told."""
    lost = [place for place, (_, text) in enumerate(changes) if text == NOT_FINITE]
    shown = changes[: lost[0] + 1] if lost else changes
    return tuple(f"{node} {text}" for node, text in shown if text)


def _upstream(tensors: _TensorComparison) -> dict[str, tuple[str, ...]]:
    """Tensor -> the comparable tensors nearest in front of it, through those that are not comparable."""
    nearest: dict[str, dict[str, None]] = {}
    upstream = {}
    for node in tensors.reference.nodes:
        inputs: dict[str, None] = {}
        for name in node.dynamic_inputs:
            inputs.update({name: None} if name in tensors.sums else nearest.get(name, {}))
        for name in node.outputs:
            upstream[name], nearest[name] = tuple(inputs), inputs
    return upstream


def _deviates(tensors: _TensorComparison, node: NodeView, tensor: str, inputs: tuple[str, ...]) -> bool:
    sums = tensors.sums[tensor]
    if sums.exact:
        return False
    if sums.error > tensors.rounding:
        return True
    other = tensors.candidate.producers.get(tensor)
    if other is None or not all(tensors.sums[name].exact for name in inputs):
        return False
    alike = (other.op_type, other.attributes, other.dynamic_inputs) == (node.op_type, node.attributes, node.dynamic_inputs)
    return alike and _same_shapes(tensors, node, other) and bool(_difference(tensors, node, other))


def _same_shapes(tensors: _TensorComparison, node: NodeView, other: NodeView) -> bool:
    """Whether both sum up the same terms, so that equal numbers would give equal bits."""
    sides = []
    for side, each in enumerate((node, other)):
        numbers = [tensors.number(side, name) for name in each.constants.values()]
        sides.append([None if number is None else number.shape for number in numbers])
    return sides[0] == sides[1]


def _difference(tensors: _TensorComparison, node: NodeView, other: NodeView) -> str:
    """What of the node's own is not the same in the candidate, "" where all is."""
    if other.op_type != node.op_type:
        return f"{node.op_type} became {other.op_type}"
    found = ["its attributes differ"] if other.attributes != node.attributes else []
    for position in sorted({*node.constants, *other.constants}):
        pair = [tensors.number(side, each.constants.get(position, "")) for side, each in enumerate((node, other))]
        text = difference(pair[0], pair[1], node.input_name(position), node.op_type == "MatMul")
        found += [text] if text else []
    return "; ".join(found)


def _exceeds_inputs(tensors: _TensorComparison, tensor: str, inputs: tuple[str, ...]) -> bool:
    """Rounding of a coarse type that adds up over many layers starts nowhere."""
    return tensors.sums[tensor].error > _MIN_GROWTH * max((tensors.sums[name].error for name in inputs), default=0.0)


def _node(tensors: _TensorComparison, node: NodeView, tensor: str, inputs: tuple[str, ...], starts: bool) -> NodeDeviation:
    before = max((tensors.sums[name].error for name in inputs), default=0.0)
    return NodeDeviation(node.name, node.op_type, tensor, before, tensors.sums[tensor].error, _note(tensors, node, tensor, starts))


def _note(tensors: _TensorComparison, node: NodeView, tensor: str, starts: bool) -> str:
    """What can be said of the node, in the order of what explains most."""
    sums, other = tensors.sums[tensor], tensors.candidate.producers.get(tensor)
    found = [] if sums.finite else ["its output holds NaN or infinity"]
    if not starts:
        return "; ".join(found)
    twins = [name for name, twin in tensors.sums.items() if name != tensor and sums.finite and sums.same_as(twin)]
    found += [f"it holds what the reference calls {twins[0]}"] if twins else []
    moved = sums.permutation() if sums.finite and not twins else {}
    if len(moved) > 1:
        pairs = ", ".join(f"{channel} holds {twin}" for channel, twin in list(moved.items())[:4])
        found.append(f"channels are permuted: {pairs}{' and more' if len(moved) > 4 else ''}")
    own = _difference(tensors, node, other) if other is not None else f"{tensor} is written by no node of the candidate"
    return "; ".join([*found, own] if own else found)


def _unexplained_change(tensors: _TensorComparison, node: NodeView) -> str:
    """What is wrong with a node whatever was removed, "" where nothing is certain."""
    tensors = [name for name in node.outputs if name in tensors.sums]
    if not all(tensors.sums[name].finite for name in tensors):
        return NOT_FINITE
    twins = [tensors.twins.pop(name) for name in node.outputs if name in tensors.twins]  # frees the sums of all pairs of channels
    return next(filter(None, (each.unexplained() for each in twins)), "")
