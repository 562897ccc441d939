"""Propagation rules of operators that no channel passes."""

import re

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import is_standard, node_refusal
from onnxmerge.onnxio import surgeon as gs

# Operators of ONNX Runtime (domain com.microsoft) that compute with integers, by how their names begin.
_QUANTISED = re.compile(
    "Quantize|Dequantize|DynamicQuantize|QLinear|QGemm|QAttention|QOrdered|QMoE|QEmbed|MatMulInteger|MatMulNBits|MatMulBnb4"
    "|GatherBlockQuantized|ConvInteger"
)


def unknown(propagation: ChannelPropagation, node: gs.Node) -> Refusal:
    """An operator that is not in the table."""
    if node.domain == "com.microsoft" and _QUANTISED.match(node.op):
        return quantised(propagation, node)
    if node.domain == "com.microsoft.nchwc":
        return node_refusal(node, Reason.BLOCKED_LAYOUT)
    domain = "" if is_standard(node) else f" of domain {node.domain}"
    return node_refusal(node, Reason.UNKNOWN_OPERATOR, operator=f"{node.op}{domain}")


def mixes_channels(propagation: ChannelPropagation, node: gs.Node) -> Refusal:
    """A known operator that mixes channels, or carries them through a state."""
    return node_refusal(node, Reason.MIXES_CHANNELS)


def not_followed(propagation: ChannelPropagation, node: gs.Node) -> Refusal:
    """A known operator that may keep channels apart, which is not looked at."""
    return node_refusal(node, Reason.NOT_FOLLOWED)


def quantised(propagation: ChannelPropagation, node: gs.Node) -> Refusal:
    """Quantised operators carry scales that belong to the whole tensor."""
    return node_refusal(node, Reason.QUANTISED)


def has_quantised_weight(propagation: ChannelPropagation, node: gs.Node) -> bool:
    """Whether an input is a constant of the file that a DequantizeLinear unpacks."""
    unpacking = [tensor.inputs[0] for tensor in node.inputs if tensor.inputs and tensor.inputs[0].op == "DequantizeLinear"]
    return any(propagation.constant(each.inputs[0]) is not None for each in unpacking)
