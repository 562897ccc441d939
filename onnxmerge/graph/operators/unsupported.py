"""Propagation rules of operators that no channel passes."""

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_propagation import ChannelPropagation
from onnxmerge.graph.nodes import is_standard, node_refusal
from onnxmerge.onnxio import surgeon as gs


def unknown(propagation: ChannelPropagation, node: gs.Node) -> Refusal:
    """An operator that is not in the table."""
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
