"""Crossing rules: what becomes of channels that are positive multiples of one another when they cross a node.

Merging replaces channel i by s times channel j, s > 0. That is exact behind an operator f if f(s x) = s f(x) for the same f on
both channels, or if f scales and shifts each channel by known numbers. A rule looks at every operand that does not carry the
channels: what is not known to leave them multiples refuses.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from onnxmerge.errors import Reason
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.nodes import has_input
from onnxmerge.graph.operators.resize_pad_expand import crops
from onnxmerge.onnxio import surgeon as gs

MeanStd = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation of each channel."""

_ROUNDED_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """y = scale x + offset on every channel.

    Attributes
    ----------
    scale, offset : ndarray of shape (extent of the channel axis,) or (1,), float64
        One number for each channel, or one for all.
    mean_std : tuple of two ndarray of shape (extent of the channel axis,), or None
        Mean and deviation of y, where they are stated.
    """

    scale: np.ndarray = field(default_factory=lambda: np.ones(1))
    offset: np.ndarray = field(default_factory=lambda: np.zeros(1))
    mean_std: MeanStd | None = None

    @property
    def is_uniform(self) -> bool:
        """Whether it is one factor for all channels, which leaves multiples what they are."""
        return not self.offset.any() and self.mean_std is None and bool((self.scale == self.scale[0]).all())


# Of a node, and the indices of the inputs that carry the channels: None where f(s x) = s f(x) for s > 0, alike for every channel;
# an affine map of each channel; or why it is neither.
CrossingRule = Callable[[Channels, gs.Node, list[int]], ChannelAffine | Reason | None]


def not_homogeneous(channels: Channels, node: gs.Node, carrying: list[int]) -> Reason:
    """The rule of an operator behind which multiples are none, or of which that is not known."""
    return Reason.NOT_HOMOGENEOUS


def filters(channels: Channels, node: gs.Node, carrying: list[int]) -> Reason:
    """A depthwise convolution."""
    return Reason.FILTER_PER_CHANNEL


def homogeneous(channels: Channels, node: gs.Node, carrying: list[int]) -> Reason | None:
    """f(s x) = s f(x) in the first input, whatever the others are: Relu, pooling, moving values."""
    return None if carrying == [0] else Reason.NOT_HOMOGENEOUS


def homogeneous_in_all(channels: Channels, node: gs.Node, carrying: list[int]) -> None:
    """f(s x) = s f(x) in the inputs that carry the channels: Concat, a matrix that mixes positions."""
    return


def values(channels: Channels, node: gs.Node, carrying: list[int]) -> Reason | None:
    """Attention: f(s x) = s f(x) in the values."""
    return None if carrying == [2] else Reason.MULTIPLIES_CHANNELS


def dropout(channels: Channels, node: gs.Node, carrying: list[int]) -> ChannelAffine | Reason:
    """Dropout changes nothing, but for training; its mask does not scale."""
    training = channels.constant(node.inputs[2]) if has_input(node, 2) else np.array(False)
    mask_is_read = len(node.outputs) > 1 and channels.facts.is_read(node.outputs[1])
    return Reason.NOT_HOMOGENEOUS if training is None or training.any() or mask_is_read else ChannelAffine()


def cast(channels: Channels, node: gs.Node, carrying: list[int]) -> ChannelAffine | Reason:
    """Cast changes nothing between types that only round."""
    return ChannelAffine() if node.attrs.get("to") in _ROUNDED_FLOATS else Reason.NOT_HOMOGENEOUS


def identity(channels: Channels, node: gs.Node, carrying: list[int]) -> ChannelAffine:
    """Identity."""
    return ChannelAffine()


def prelu(channels: Channels, node: gs.Node, carrying: list[int]) -> Reason | None:
    """PRelu: with one constant slope for all channels."""
    slope = channels.constant(node.inputs[1])
    is_one = carrying == [0] and slope is not None and bool((slope == slope.reshape(-1)[0]).all())
    return None if is_one else Reason.SLOPE_PER_CHANNEL


def pad(channels: Channels, node: gs.Node, carrying: list[int]) -> Reason | None:
    """Pad: with zeros, or with values of the channel."""
    value = channels.constant(node.inputs[2]) if has_input(node, 2) else np.array(node.attrs.get("value", 0.0))
    fills_in = node.attrs.get("mode", "constant") in ("constant", b"constant") and (value is None or value.any())
    return Reason.FILLS_IN_VALUE if fills_in else homogeneous(channels, node, carrying)


def resize(channels: Channels, node: gs.Node, carrying: list[int]) -> Reason | None:
    """Resize: outside of the region that it reads it fills in zeros."""
    fills_in = crops(node) and float(node.attrs.get("extrapolation_value", 0.0))
    return Reason.FILLS_IN_VALUE if fills_in else homogeneous(channels, node, carrying)


def batch_normalization(channels: Channels, node: gs.Node, carrying: list[int]) -> ChannelAffine | Reason:
    """BatchNormalization: scale gamma / std, offset beta - gamma mean / std, but with the statistics of what it reads."""
    values = [channels.constant(tensor) for tensor in node.inputs[1:5]]
    if carrying != [0] or node.attrs.get("training_mode", 0) or any(value is None for value in values):
        return Reason.NOT_HOMOGENEOUS
    gamma, beta, mean, variance = (value.astype(np.float64) for value in values if value is not None)
    scale = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return ChannelAffine(scale, beta - scale * mean, (beta, np.abs(scale) * np.sqrt(variance)))


def product(channels: Channels, node: gs.Node, carrying: list[int]) -> ChannelAffine | Reason | None:
    """Mul, Div: by a constant it scales; by a computed tensor, which is the same for every channel, it is homogeneous."""
    if len(carrying) > 1 or (node.op == "Div" and carrying != [0]):
        return Reason.MULTIPLIES_CHANNELS
    (data,), (other,) = carrying, [index for index in (0, 1) if index not in carrying]
    constant = channels.constant(node.inputs[other])
    if constant is None:
        return None
    factor = _per_channel(channels, node.inputs[data], constant)
    if factor is None or (node.op == "Div" and not factor.all()):
        return Reason.CONSTANT_NOT_PER_CHANNEL
    return ChannelAffine(1.0 / factor if node.op == "Div" else factor)


def summation(channels: Channels, node: gs.Node, carrying: list[int]) -> ChannelAffine | Reason | None:
    """Add, Sub, Sum, Mean, Max, Min: homogeneous in all inputs together; a constant that is added is an offset."""
    others = [index for index, tensor in enumerate(node.inputs) if tensor.name and index not in carrying]
    constants = [channels.constant(node.inputs[index]) for index in others]
    if all(constant is not None and not constant.any() for constant in constants):
        return None if others or len(carrying) > 1 else ChannelAffine()
    if node.op not in ("Add", "Sub") or constants[0] is None:
        return Reason.DOES_NOT_SCALE
    if node.op == "Sub" and carrying != [0]:
        return Reason.SUBTRACTED_FROM_CONSTANT
    offset = _per_channel(channels, node.inputs[carrying[0]], constants[0])
    return Reason.CONSTANT_NOT_PER_CHANNEL if offset is None else ChannelAffine(offset=-offset if node.op == "Sub" else offset)


def _per_channel(channels: Channels, data: gs.Tensor, value: np.ndarray) -> np.ndarray | None:
    """(1,) or (channels,) float64: a constant that varies along the channel axis of `data` only; None where it does not."""
    ids = channels.tensor_ids[data.name]
    extents = (1,) * (ids.ndim - value.ndim) + value.shape
    if value.ndim > ids.ndim or any(extent > 1 and ids.shape[axis] == 1 for axis, extent in enumerate(extents)):
        return None
    return value.astype(np.float64).reshape(-1)
