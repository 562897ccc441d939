"""What follows a node: the scales, the join and the ReLU that its output meets, and how much an error there matters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxmerge.graph.flow import Flow, Weighted
from onnxmerge.graph.weights import canonical, weight_of
from onnxmerge.statistics.walk import Walk

PASSING = ("Identity", "Dropout", "Cast")


@dataclass(frozen=True)
class Outlook:
    """What follows a consumer: scale and shift (out,) of the BatchNormalizations behind it, then a join, then perhaps a ReLU.

    other: the computed tensor that its scaled output is added to, None without a join. is_followed: some node reads on.
    """

    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    other: str | None = None
    rectified: bool = False
    is_followed: bool = True

    def is_reachable(self, *walks: Walk) -> bool:
        """Whether the other side of the join has been computed where the walks stand; if not, that side will repair this."""
        return self.other is None or all(self.other in walk.live for walk in walks)

    def ahead(self, output: np.ndarray, walk: Walk, number: int) -> np.ndarray:
        """What the ReLU reads when the consumer gives `output` (N, out, *space) on a batch of the walk."""
        if self.scale is not None and self.shift is not None:
            space = (1, -1) + (1,) * (output.ndim - 2)
            output = output * self.scale.astype(output.dtype).reshape(space) + self.shift.astype(output.dtype).reshape(space)
        return output if self.other is None else output + np.asarray(walk.tensor(number, self.other))


def outlook_of(flow: Flow, weighted: Weighted, matched: Mapping[str, np.ndarray]) -> Outlook:
    """Look ahead from a node. matched: mean and variance of BatchNormalizations that a walk has given others, by name."""
    tensor, channels = weighted.node.outputs[0], weighted.out_ids.size
    scale, shift, other = None, None, None
    while len(tensor.outputs) == 1 and tensor not in flow.model.graph.outputs:
        reader = tensor.outputs[0]
        if reader.op == "BatchNormalization" and other is None:
            own = _normalisation(flow, reader, matched)
            if own is None or len(own[0]) != channels:
                break
            scale, shift = own if scale is None or shift is None else (own[0] * scale, own[0] * shift + own[1])
        elif reader.op == "Add" and other is None and len(reader.inputs) == 2:
            beside = next((t for t in reader.inputs if t is not tensor), None)
            if beside is None or flow.constant(beside) is not None or flow.shape(beside) != flow.shape(tensor):
                break
            other = str(beside.name)
        elif reader.op == "Relu":
            return Outlook(scale, shift, other, rectified=True)
        elif reader.op not in PASSING:
            break
        tensor = reader.outputs[0]
    is_followed = bool(tensor.outputs) and tensor not in flow.model.graph.outputs
    return Outlook(scale, shift, other, rectified=False, is_followed=is_followed)


def _normalisation(flow: Flow, node: gs.Node, matched: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """BatchNormalization as scale and shift (out,)."""
    values = [flow.constant(tensor) for tensor in node.inputs[1:5]]
    if any(value is None for value in values):
        return None
    gamma, beta, mean, variance = (value.astype(np.float64) for value in values if value is not None)
    name = str(node.outputs[0].name)
    mean = np.asarray(matched.get(f"{name}//mean", mean), np.float64)
    variance = np.asarray(matched.get(f"{name}//variance", variance), np.float64)
    scale = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return scale, beta - scale * mean


def scaled(weight: np.ndarray, outlook: Outlook) -> np.ndarray:
    """A canonical weight (g, out/g, in/g, positions) as the BatchNormalizations behind it scale its outputs, float64."""
    scale = np.ones(weight.shape[0] * weight.shape[1]) if outlook.scale is None else outlook.scale
    return weight.astype(np.float64) * scale.reshape(*weight.shape[:2], 1, 1)


class Sensitivity:
    """How much an error in each output channel of a weighted node moves what reads it: one step ahead, linearised.

    The metric of a node is S^T S with S = sum over its readers of V_c diag(a) / std(V_c x), V_c the reader's weights, a the scale
    of the BatchNormalizations between; a reader that itself is read by many counts for as many.
    """

    def __init__(
        self, flow: Flow, order: Mapping[str, int], output_variance: Mapping[str, float], outlooks: Mapping[str, Outlook]
    ) -> None:
        self._flow, self._order, self._variance, self._outlooks = flow, order, output_variance, outlooks
        self._readers: dict[int, list[tuple[Weighted, int]]] = defaultdict(list)
        for weighted in flow.weighted:
            for place, channel in enumerate(weighted.in_ids.reshape(-1).tolist()):
                if channel:
                    self._readers[channel].append((weighted, place))

    def metric(self, weighted: Weighted) -> np.ndarray | None:
        """(out, out) float64, positive semi-definite; None where nothing is known (the output is pinned)."""
        ids = weighted.out_ids.reshape(-1)
        readers: dict[str, tuple[Weighted, list[tuple[int, int]]]] = {}
        for row, channel in enumerate(ids.tolist()):
            for reader, place in self._readers.get(channel, []):
                if self._order[reader.key] > self._order[weighted.key] and reader.key in self._variance:
                    readers.setdefault(reader.key, (reader, []))[1].append((row, place))
        if not readers:
            return None
        total = np.zeros((len(ids), len(ids)))
        for reader, pairs in readers.values():
            rows, places = np.array(pairs).T
            part = self._reading(reader)[np.ix_(places, places)] * (self._weight(reader) / self._variance[reader.key])
            np.add.at(total, (rows[:, None], rows[None, :]), part)
        return total

    def _reading(self, reader: Weighted) -> np.ndarray:
        """(in, in): sum over outputs and kernel positions of products of two inputs' weights."""
        weight = scaled(canonical(reader, weight_of(self._flow, reader)), self._outlooks[reader.key])
        groups, _, inside, _ = weight.shape
        result = np.zeros((groups * inside, groups * inside))
        for g in range(groups):
            flat = weight[g].transpose(0, 2, 1).reshape(-1, inside)
            result[g * inside : (g + 1) * inside, g * inside : (g + 1) * inside] = flat.T @ flat
        return result

    def _weight(self, reader: Weighted) -> float:
        """How many nodes read what this reader writes, at least 1."""
        found = {other.key for channel in np.unique(reader.out_ids).tolist() for other, _ in self._readers.get(channel, [])}
        return float(max(1, len(found)))
