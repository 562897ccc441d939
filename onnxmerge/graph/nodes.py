"""Names of nodes, and refusals that name them."""

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.onnxio import surgeon as gs

# Spellings of the domain of the operators that ONNX itself defines.
STANDARD_DOMAINS = (None, "", "ai.onnx")


def node_key(node: gs.Node) -> str:
    """The first tensor that the node writes: unique in a model, which names of nodes need not be; "" where it writes none."""
    return next((str(output.name) for output in node.outputs if output.name), "")


def node_name(node: gs.Node) -> str:
    """A node's name; an unnamed node goes by its first output, which viewers find and `include` takes."""
    return str(node.name or node_key(node))


def node_refusal(node: gs.Node, reason: Reason, **details: object) -> Refusal:
    """Why the channels that enter a node stay; its operator is the detail `operator` unless another one is given."""
    details.setdefault("operator", node.op)
    return refusal(node_name(node), reason, "", **details)


def is_standard(node: gs.Node) -> bool:
    """Whether the node's operator is one that ONNX itself defines."""
    return node.domain in STANDARD_DOMAINS


def operator_key(node: gs.Node) -> str:
    """What tables of operators call the node's operator: "Conv", or with the domain in front "com.microsoft.FusedConv"."""
    return str(node.op) if is_standard(node) else f"{node.domain}.{node.op}"


def has_input(node: gs.Node, index: int) -> bool:
    """Whether the node is given its input number `index`; optional inputs may be absent or have an empty name."""
    return len(node.inputs) > index and bool(node.inputs[index].name)


def non_negative_axis(axis: int, rank: int) -> int:
    """The same axis, counted from the front."""
    return int(axis) + rank if axis < 0 else int(axis)
