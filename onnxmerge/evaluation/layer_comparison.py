"""Where a candidate first deviates from its reference: every tensor that both have, in one run after another.

Tensors are paired by name and shape. Where channels were removed a tensor has fewer of them and cannot be compared: the
outputs of its consumers are compared instead. A node deviates where its output differs although all comparable tensors
upstream agree. The same operator on equal bits with the same constants gives equal bits, so after equal inputs any difference
counts where the node's constants differ too; elsewhere rounding is allowed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxmerge.errors import InputError
from onnxmerge.evaluation.channel_matching import NOT_FINITE, ChannelCorrelation
from onnxmerge.evaluation.channel_sums import ChannelSums
from onnxmerge.evaluation.node_views import LAYER_OPERATORS, GraphView, NodeView, read_graph_view
from onnxmerge.evaluation.weight_differences import difference
from onnxmerge.execution.sessions import ModelSource, Session
from onnxmerge.execution.shapes import open_with_all_outputs
from onnxmerge.execution.tensor_specs import Feeds
from onnxmerge.onnxio.finite import input_name
from onnxmerge.results import LayerComparison, NodeDeviation

# Relative L2 error that kernels of other implementations may differ by, by dtype
ROUNDING = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-12}
# Times the largest error upstream that a node must reach to be where a deviation starts: rounding that adds up grows slower.
_MIN_GROWTH = 5.0


@dataclass
class _Comparison:
    """Both graphs, and what was accumulated over the runs.

    sums: of the tensors that both models have, by name; correlations: of layer outputs that may have fewer channels;
    constants: of the reference and the candidate, those that nodes without dynamic inputs compute; rounding: of the coarsest
    dtype; skipped: tensors that cannot be compared.
    """

    reference: GraphView
    candidate: GraphView
    sums: dict[str, ChannelSums] = field(default_factory=dict)
    correlations: dict[str, ChannelCorrelation] = field(default_factory=dict)
    constants: list[dict[str, np.ndarray]] = field(default_factory=list)
    rounding: float = 0.0
    skipped: set[str] = field(default_factory=set)

    def add(self, reference: dict[str, np.ndarray], candidate: dict[str, np.ndarray]) -> None:
        """Add all tensors of one run of both."""
        for name, node in self.reference.producers.items():
            one, other = reference.get(name), candidate.get(name)
            if one is None or one.dtype.kind not in "biuf":
                continue
            axis = -1 if node.op_type == "MatMul" or one.ndim < 2 else 1
            is_layer = node.op_type in LAYER_OPERATORS and not self.same_channel_counts
            if is_layer and other is not None and one.ndim == other.ndim > 1:
                self.correlations.setdefault(name, ChannelCorrelation(axis)).add(one, other)
            if other is None or one.shape != other.shape or other.dtype.kind not in "biuf":
                self.skipped.add(name)
                continue
            self.sums.setdefault(name, ChannelSums(axis)).add(one, other)
            self.rounding = max(self.rounding, *(ROUNDING.get(array.dtype.name, 0.0) for array in (one, other)))

    @cached_property
    def same_channel_counts(self) -> bool:
        """Whether no layer lost channels."""
        return self.reference.layers == self.candidate.layers

    def constant(self, side: int, name: str) -> np.ndarray | None:
        """A constant of the reference (0) or the candidate (1), stored or computed."""
        stored = (self.reference, self.candidate)[side].weight(name)
        return self.constants[side].get(name) if stored is None else stored

    def max_error(self, tensors: Iterable[str]) -> float:
        """The largest relative L2 error of these tensors, 0 without any."""
        return max((self.sums[name].error for name in tensors), default=0.0)


def compare_layers(
    reference: ModelSource, candidate: ModelSource, batches: Iterable[Feeds], labels: tuple[str, str]
) -> LayerComparison:
    """Compare two models node by node, on the CPU without optimisation.

    Parameters
    ----------
    reference, candidate : bytes, Path or TemporaryModel
        The models; all tensors of one run of each are in memory at a time.
    batches : iterable of mapping
        Feeds of each run.
    labels : tuple of str
        What errors call the two models.

    Returns
    -------
    LayerComparison
        The nodes that deviate, the first of them, and changes that removing channels does not explain.

    Raises
    ------
    InputError
        Where there is no batch.
    ModelError
        Where a model cannot be read or run.
    """
    models = list(zip((reference, candidate), labels, strict=True))
    graphs = [read_graph_view(model, label) for model, label in models]
    sessions = [open_with_all_outputs(model, label, None) for model, label in models]
    comparison, runs = _Comparison(graphs[0], graphs[1]), 0
    for feeds in batches:
        values = [_arrays(session, feeds) for session in sessions]
        comparison.add(*values)
        if not runs:
            comparison.constants = [_constants(*each) for each in zip(graphs, values, strict=True)]
        runs += 1
    if not runs:
        raise InputError("there are no check inputs: at least one batch is needed")
    return _compare_nodes(comparison, runs)


def _arrays(session: Session, feeds: Feeds) -> dict[str, np.ndarray]:
    return {name: value for name, value in session.run(feeds).items() if isinstance(value, np.ndarray)}


def _constants(graph: GraphView, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    needed = {name for node in graph.nodes for name in node.constants.values()}
    return {name: value for name, value in values.items() if name in needed}


def _compare_nodes(comparison: _Comparison, runs: int) -> LayerComparison:
    """Node by node in the order they run."""
    upstream = _upstream(comparison)
    deviates: dict[str, bool] = {}
    first, deviations = None, []
    changes: list[tuple[str, str]] = []
    for node in comparison.reference.nodes:
        for tensor in (name for name in node.outputs if name in comparison.sums):
            deviates[tensor] = _deviates(comparison, node, tensor, upstream[tensor])
            if not deviates[tensor]:
                continue
            before, after = comparison.max_error(upstream[tensor]), comparison.sums[tensor].error
            starts = not any(deviates[name] for name in upstream[tensor]) and after > _MIN_GROWTH * before
            note = _note(comparison, node, tensor, starts)
            deviations.append(NodeDeviation(node.name, node.op_type, tensor, before, after, note))
            first = first or (deviations[-1] if starts else None)
        changes.append((node.name, _unexplained(comparison, node)))
    counts = len(comparison.sums), len(comparison.skipped), runs
    return LayerComparison(comparison.same_channel_counts, *counts, first, tuple(deviations), _until_not_finite(changes))


def _until_not_finite(changes: list[tuple[str, str]]) -> tuple[str, ...]:
    """NaN spreads to everything downstream: nothing is reported after the first node that gives it."""
    end = next((position for position, (_, text) in enumerate(changes, 1) if text == NOT_FINITE), len(changes))
    return tuple(f"{node} {text}" for node, text in changes[:end] if text)


def _upstream(comparison: _Comparison) -> dict[str, tuple[str, ...]]:
    """For each tensor the nearest comparable tensors upstream, through those that are not comparable."""
    upstream: dict[str, tuple[str, ...]] = {}
    for node in comparison.reference.nodes:
        nearest: dict[str, None] = {}
        for name in node.dynamic_inputs:
            nearest.update(dict.fromkeys((name,) if name in comparison.sums else upstream.get(name, ())))
        upstream.update(dict.fromkeys(node.outputs, tuple(nearest)))
    return upstream


def _deviates(comparison: _Comparison, node: NodeView, tensor: str, upstream: tuple[str, ...]) -> bool:
    sums = comparison.sums[tensor]
    if sums.exact:
        return False
    if sums.error > comparison.rounding:
        return True
    other = comparison.candidate.producers.get(tensor)
    if other is None or not all(comparison.sums[name].exact for name in upstream):
        return False
    alike = (other.op_type, other.attributes, other.dynamic_inputs) == (node.op_type, node.attributes, node.dynamic_inputs)
    return alike and _same_shapes(comparison, node, other) and bool(_difference(comparison, node, other))


def _same_shapes(comparison: _Comparison, node: NodeView, other: NodeView) -> bool:
    """Whether both sum the same terms, so that equal constants would give equal bits."""
    sides = []
    for side, each in enumerate((node, other)):
        constants = [comparison.constant(side, name) for name in each.constants.values()]
        sides.append([None if constant is None else constant.shape for constant in constants])
    return sides[0] == sides[1]


def _difference(comparison: _Comparison, node: NodeView, other: NodeView) -> str:
    """How the candidate's node differs in operator, attributes and constants; empty where it does not."""
    if other.op_type != node.op_type:
        return f"{node.op_type} became {other.op_type}"
    texts = ["its attributes differ"] if other.attributes != node.attributes else []
    for position in sorted({*node.constants, *other.constants}):
        pair = [comparison.constant(side, each.constants.get(position, "")) for side, each in enumerate((node, other))]
        texts.append(difference(pair[0], pair[1], input_name(node.op_type, position), node.op_type == "MatMul"))
    return "; ".join(filter(None, texts))


def _note(comparison: _Comparison, node: NodeView, tensor: str, starts: bool) -> str:
    """What can be said of a node that deviates; the causes only where the deviation starts."""
    sums, other = comparison.sums[tensor], comparison.candidate.producers.get(tensor)
    texts = [] if sums.finite else ["its output holds NaN or infinity"]
    if not starts:
        return "; ".join(texts)
    same = [name for name, each in comparison.sums.items() if name != tensor and sums.finite and sums.same_as(each)]
    texts += [f"it holds what the reference calls {same[0]}"] if same else []
    originals = sums.permutation() if sums.finite and not same else {}
    if len(originals) > 1:
        pairs = ", ".join(f"{channel} holds {original}" for channel, original in list(originals.items())[:4])
        texts.append(f"channels are permuted: {pairs}{' and more' if len(originals) > 4 else ''}")
    missing = f"{tensor} is written by no node of the candidate"
    return "; ".join(filter(None, [*texts, missing if other is None else _difference(comparison, node, other)]))


def _unexplained(comparison: _Comparison, node: NodeView) -> str:
    """A change of a node's output that removing channels does not explain; empty where nothing is certain."""
    if not all(comparison.sums[name].finite for name in node.outputs if name in comparison.sums):
        return NOT_FINITE
    # pop frees the sums of all pairs of channels
    correlations = [comparison.correlations.pop(name) for name in node.outputs if name in comparison.correlations]
    return next(filter(None, (each.unexplained() for each in correlations)), "")
