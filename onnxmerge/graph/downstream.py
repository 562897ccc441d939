"""What follows a layer: the affine map of BatchNormalizations, the join and the ReLU that its output meets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.channel_ids import Flow
from onnxmerge.graph.layers import Layer
from onnxmerge.onnxio import surgeon as gs

PASSING = ("Identity", "Dropout", "Cast")


@dataclass(frozen=True)
class DownstreamAffine:
    """What follows a consumer: scale and shift (out,) of the BatchNormalizations behind it, then a join, then perhaps a ReLU.

    other: the computed tensor that its scaled output is added to, None without a join. is_followed: some node reads on.
    """

    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    other: str | None = None
    rectified: bool = False
    is_followed: bool = True

    def is_reachable(self, *walks: LayerwiseRun) -> bool:
        """Whether the other side of the join has been computed where the walks stand; if not, that side will repair this."""
        return self.other is None or all(self.other in walk.live for walk in walks)

    def ahead(self, output: np.ndarray, walk: LayerwiseRun, number: int) -> np.ndarray:
        """What the ReLU reads when the consumer gives `output` (N, out, *space) on a batch of the walk."""
        if self.scale is not None and self.shift is not None:
            space = (1, -1) + (1,) * (output.ndim - 2)
            output = output * self.scale.astype(output.dtype).reshape(space) + self.shift.astype(output.dtype).reshape(space)
        return output if self.other is None else output + np.asarray(walk.tensor(number, self.other))


def downstream_affine_of(flow: Flow, layer: Layer, matched: Mapping[str, np.ndarray]) -> DownstreamAffine:
    """Look ahead from a node. matched: mean and variance of BatchNormalizations that a walk has given others, by name."""
    tensor, channels = layer.node.outputs[0], layer.out_ids.size
    scale, shift, other = None, None, None
    while len(tensor.outputs) == 1 and tensor not in flow.model.graph.outputs:
        node = tensor.outputs[0]
        if node.op == "BatchNormalization" and other is None:
            own = _normalisation(flow, node, matched)
            if own is None or len(own[0]) != channels:
                break
            scale, shift = own if scale is None or shift is None else (own[0] * scale, own[0] * shift + own[1])
        elif node.op == "Add" and other is None and len(node.inputs) == 2:
            beside = next((t for t in node.inputs if t is not tensor), None)
            if beside is None or flow.constant(beside) is not None or flow.shape(beside) != flow.shape(tensor):
                break
            other = str(beside.name)
        elif node.op == "Relu":
            return DownstreamAffine(scale, shift, other, rectified=True)
        elif node.op not in PASSING:
            break
        tensor = node.outputs[0]
    is_followed = bool(tensor.outputs) and tensor not in flow.model.graph.outputs
    return DownstreamAffine(scale, shift, other, rectified=False, is_followed=is_followed)


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


def scaled(weight: np.ndarray, downstream: DownstreamAffine) -> np.ndarray:
    """A canonical weight (g, out/g, in/g, positions) as the BatchNormalizations behind it scale its outputs, float64."""
    scale = np.ones(weight.shape[0] * weight.shape[1]) if downstream.scale is None else downstream.scale
    return weight.astype(np.float64) * scale.reshape(*weight.shape[:2], 1, 1)
