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
from onnxmerge.evaluation.channel_matching import NOT_FINITE, TwinSums
from onnxmerge.evaluation.channel_sums import ChannelSums
from onnxmerge.evaluation.node_views import WEIGHTED, Wire, Wiring, wiring_of
from onnxmerge.evaluation.weight_differences import difference
from onnxmerge.execution.sessions import ModelSource, Session
from onnxmerge.execution.shapes import open_with_all_outputs
from onnxmerge.execution.tensor_specs import Feeds
from onnxmerge.results import LayerComparison, NodeDeviation

ROUNDING = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-12}  # relative L2 that other kernels may differ by
_LEAP = 5.0


@dataclass
class _Traces:
    """Both models with all their tensors, and the sums of those that both have."""

    reference: Wiring
    candidate: Wiring
    sums: dict[str, ChannelSums] = field(default_factory=dict)
    twins: dict[str, TwinSums] = field(default_factory=dict)
    constants: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = field(default_factory=lambda: ({}, {}))
    rounding: float = 0.0
    apart: set[str] = field(default_factory=set)

    def add(self, expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
        """The values of one run."""
        for name, wire in self.reference.writers.items():
            one, other = expected.get(name), found.get(name)
            if one is None or one.dtype.kind not in "biuf":
                continue
            axis = -1 if wire.operator == "MatMul" or one.ndim < 2 else 1
            if other is not None and wire.operator in WEIGHTED and not self.same_channel_counts and one.ndim == other.ndim > 1:
                self.twins.setdefault(name, TwinSums(axis)).add(one, other)
            if other is None or one.shape != other.shape or other.dtype.kind not in "biuf":
                self.apart.add(name)
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
    wirings = [wiring_of(model, label) for model, label in zip(pair, labels, strict=True)]
    sessions = [open_with_all_outputs(model, label, None) for model, label in zip(pair, labels, strict=True)]
    traces, runs = _Traces(wirings[0], wirings[1]), 0
    for feeds in batches:
        values = [_arrays(session, feeds) for session in sessions]
        traces.add(*values)
        if not runs:
            traces.constants = tuple(_constants(*each) for each in zip(wirings, values, strict=True))  # type: ignore[assignment]
        runs += 1
    if not runs:
        raise InputError("there are no check inputs: at least one batch is needed")
    return _judged(traces, runs)


def _arrays(session: Session, feeds: Feeds) -> dict[str, np.ndarray]:
    return {name: value for name, value in session.run(feeds).items() if isinstance(value, np.ndarray)}


def _constants(wiring: Wiring, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    needed = {name for wire in wiring.wires for name in wire.constants.values()}
    return {name: value for name, value in values.items() if name in needed}


def _judged(traces: _Traces, runs: int) -> LayerComparison:
    """Node by node in the order they run."""
    fronts = _fronts(traces)
    drifting: dict[str, bool] = {}
    first, nodes = None, []
    mistakes: list[tuple[str, str]] = []
    for wire in traces.reference.wires:
        for tensor in (name for name in wire.writes if name in traces.sums):
            front = fronts[tensor]
            drifting[tensor] = _drifts(traces, wire, tensor, front)
            if not drifting[tensor]:
                continue
            starts = not any(drifting[name] for name in front) and _leaps(traces, tensor, front)
            node = _node(traces, wire, tensor, front, starts)
            first = first or (node if starts else None)
            nodes.append(node)
        mistakes.append((wire.name, _mistake(traces, wire)))
    counts = len(traces.sums), len(traces.apart), runs
    return LayerComparison(traces.same_channel_counts, *counts, first, tuple(nodes), _told(mistakes))


def _told(mistakes: list[tuple[str, str]]) -> tuple[str, ...]:
    """NaN comes through to all that is behind it: only where it appears it is told."""
    lost = [place for place, (_, text) in enumerate(mistakes) if text == NOT_FINITE]
    told = mistakes[: lost[0] + 1] if lost else mistakes
    return tuple(f"{node} {text}" for node, text in told if text)


def _fronts(traces: _Traces) -> dict[str, tuple[str, ...]]:
    """Tensor -> the comparable tensors nearest in front of it, through those that are not comparable."""
    nearest: dict[str, dict[str, None]] = {}
    fronts = {}
    for wire in traces.reference.wires:
        front: dict[str, None] = {}
        for name in wire.reads:
            front.update({name: None} if name in traces.sums else nearest.get(name, {}))
        for name in wire.writes:
            fronts[name], nearest[name] = tuple(front), front
    return fronts


def _drifts(traces: _Traces, wire: Wire, tensor: str, front: tuple[str, ...]) -> bool:
    sums = traces.sums[tensor]
    if sums.exact:
        return False
    if sums.error > traces.rounding:
        return True
    other = traces.candidate.writers.get(tensor)
    if other is None or not all(traces.sums[name].exact for name in front):
        return False
    alike = (other.operator, other.attributes, other.reads) == (wire.operator, wire.attributes, wire.reads)
    return alike and _same_shapes(traces, wire, other) and bool(_difference(traces, wire, other))


def _same_shapes(traces: _Traces, wire: Wire, other: Wire) -> bool:
    """Whether both sum up the same terms, so that equal numbers would give equal bits."""
    sides = []
    for side, each in enumerate((wire, other)):
        numbers = [traces.number(side, name) for name in each.constants.values()]
        sides.append([None if number is None else number.shape for number in numbers])
    return sides[0] == sides[1]


def _difference(traces: _Traces, wire: Wire, other: Wire) -> str:
    """What of the node's own is not the same in the candidate, "" where all is."""
    if other.operator != wire.operator:
        return f"{wire.operator} became {other.operator}"
    found = ["its attributes differ"] if other.attributes != wire.attributes else []
    for position in sorted({*wire.constants, *other.constants}):
        pair = [traces.number(side, each.constants.get(position, "")) for side, each in enumerate((wire, other))]
        text = difference(pair[0], pair[1], wire.slot(position), wire.operator == "MatMul")
        found += [text] if text else []
    return "; ".join(found)


def _leaps(traces: _Traces, tensor: str, front: tuple[str, ...]) -> bool:
    """Rounding of a coarse type that adds up over many layers starts nowhere."""
    return traces.sums[tensor].error > _LEAP * max((traces.sums[name].error for name in front), default=0.0)


def _node(traces: _Traces, wire: Wire, tensor: str, front: tuple[str, ...], starts: bool) -> NodeDeviation:
    before = max((traces.sums[name].error for name in front), default=0.0)
    return NodeDeviation(wire.name, wire.operator, tensor, before, traces.sums[tensor].error, _note(traces, wire, tensor, starts))


def _note(traces: _Traces, wire: Wire, tensor: str, starts: bool) -> str:
    """What can be said of the node, in the order of what explains most."""
    sums, other = traces.sums[tensor], traces.candidate.writers.get(tensor)
    found = [] if sums.finite else ["its output holds NaN or infinity"]
    if not starts:
        return "; ".join(found)
    twins = [name for name, twin in traces.sums.items() if name != tensor and sums.finite and sums.same_as(twin)]
    found += [f"it holds what the reference calls {twins[0]}"] if twins else []
    moved = sums.permutation() if sums.finite and not twins else {}
    if len(moved) > 1:
        pairs = ", ".join(f"{channel} holds {twin}" for channel, twin in list(moved.items())[:4])
        found.append(f"channels are permuted: {pairs}{' and more' if len(moved) > 4 else ''}")
    own = _difference(traces, wire, other) if other is not None else f"{tensor} is written by no node of the candidate"
    return "; ".join([*found, own] if own else found)


def _mistake(traces: _Traces, wire: Wire) -> str:
    """What is wrong with a node whatever was removed, "" where nothing is certain."""
    tensors = [name for name in wire.writes if name in traces.sums]
    if not all(traces.sums[name].finite for name in tensors):
        return NOT_FINITE
    twins = [traces.twins.pop(name) for name in wire.writes if name in traces.twins]  # frees the sums of all pairs of channels
    return next(filter(None, (each.mistake() for each in twins)), "")
