"""What follows a layer: the affine map of BatchNormalizations, the join and the ReLU that its output meets."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.nodes import is_standard
from onnxmerge.onnxio import surgeon as gs

# Operators between a layer and its activation that change no value.
_VALUE_KEEPING = ("Identity", "Dropout", "Cast")


@dataclass(frozen=True, eq=False)
class DownstreamAffine:
    """What follows a layer: y -> [relu](scale * y + shift [+ added]).

    Attributes
    ----------
    scale, shift : ndarray of shape (out,) or None
        Of the BatchNormalizations behind the layer, taken together; None without any.
    added : str or None
        Name of the computed tensor that is added after that; None without one.
    has_relu : bool
        Whether a ReLU follows.
    is_followed : bool
        Whether any node reads on; False for a layer whose output, up to these steps, is a graph output.
    """

    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    added: str | None = None
    has_relu: bool = False
    is_followed: bool = True

    def is_reachable(self, *runs: LayerwiseRun) -> bool:
        """Whether `added` has been computed where the runs stand."""
        return self.added is None or all(self.added in run.available for run in runs)

    def before_relu(self, output: np.ndarray, added: np.ndarray | None) -> np.ndarray:
        """What the ReLU reads when the layer gives `output` (N, out, *space); added: the values of the tensor of that name."""
        if self.scale is not None and self.shift is not None:
            space = (1, -1) + (1,) * (output.ndim - 2)
            output = output * self.scale.astype(output.dtype).reshape(space) + self.shift.astype(output.dtype).reshape(space)
        return output if added is None else output + added

    def scaled(self, weight: np.ndarray) -> np.ndarray:
        """A weight of the layer, (groups, outputs per group, inputs per group, kernel size), times the scale of each output."""
        scale = np.ones(weight.shape[0] * weight.shape[1]) if self.scale is None else self.scale
        return weight.astype(np.float64) * scale.reshape(*weight.shape[:2], 1, 1)


def downstream_affine_of(channels: Channels, layer: Layer, matched: Mapping[str, np.ndarray]) -> DownstreamAffine:
    """Follow a layer's output as far as only one node reads it.

    Parameters
    ----------
    channels : Channels
        The channel analysis of the model.
    layer : Layer
        The layer.
    matched : Mapping[str, ndarray]
        Mean and variance that a run has given BatchNormalizations in place of the stored ones, under ``"{output}//mean"`` and
        ``"{output}//variance"``.
    """
    tensor, outputs = layer.node.outputs[0], channels.model.graph.outputs
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    added: str | None = None
    while layer.is_linear and len(tensor.outputs) == 1 and tensor not in outputs:
        node = tensor.outputs[0]
        if not is_standard(node):
            break
        if node.op == "BatchNormalization" and added is None and layer.output_axis == 1:
            affine = _batch_normalization(channels, node, matched)
            if affine is None or len(affine[0]) != layer.out_ids.size:
                break
            scale, shift = affine if scale is None or shift is None else (affine[0] * scale, affine[0] * shift + affine[1])
        elif node.op == "Add" and added is None and len(node.inputs) == 2:
            added = _computed_summand(channels, node, tensor)
            if added is None:
                break
        elif node.op == "Relu":
            return DownstreamAffine(scale, shift, added, has_relu=True)
        elif node.op not in _VALUE_KEEPING:
            break
        tensor = node.outputs[0]
    is_followed = bool(tensor.outputs) and tensor not in outputs
    return DownstreamAffine(scale, shift, added, has_relu=False, is_followed=is_followed)


def _computed_summand(channels: Channels, node: gs.Node, tensor: gs.Tensor) -> str | None:
    """Name of what an Add adds to `tensor`; None where it is a constant, of another shape, or `tensor` itself."""
    other = next((each for each in node.inputs if each is not tensor), None)
    if other is None or channels.constant(other) is not None or channels.shape(other) != channels.shape(tensor):
        return None
    return str(other.name)


def _batch_normalization(
    channels: Channels, node: gs.Node, matched: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """A BatchNormalization as scale and shift (out,) float64; None where it does not use constants alone."""
    values = [channels.constant(tensor) for tensor in node.inputs[1:5]]
    if any(value is None for value in values) or node.attrs.get("training_mode", 0):
        return None
    gamma, beta, mean, variance = (value.astype(np.float64) for value in values if value is not None)
    name = str(node.outputs[0].name)
    mean = np.asarray(matched.get(f"{name}//mean", mean), np.float64)
    variance = np.asarray(matched.get(f"{name}//variance", variance), np.float64)
    scale = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return scale, beta - scale * mean
