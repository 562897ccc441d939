"""What the outputs of a model hold as far as its graph tells: ids, which are equal or not, features, which are no classes, or
sigmoids, of which one for each input may be the probability of one of two classes.

Only what is certain counts: taken for features, class scores would lose more than they may, since their decisions go uncounted.
A classifier ends in a layer with weights, in a softmax or a sigmoid, or in a Relu and a mean over positions (SqueezeNet); no
other activation and no normalisation of each input comes last in one (a BatchNormalization does, in binary networks).
"""

import re
from collections.abc import Iterator, Mapping

from onnx import ModelProto, NodeProto

IDS, FEATURES, SIGMOID = "ids", "features", "sigmoid"
ID_SOURCES = frozenset(
    {("ArgMax", 0), ("ArgMin", 0), ("TopK", 1), ("NonZero", 0), ("NonMaxSuppression", 0), ("LabelEncoder", 0), ("Multinomial", 0)}
)
"""Operators that write ids, and which of their outputs holds them."""
FEATURE_SOURCES = frozenset(
    {"LpNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"}
    | {"RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
    | {"LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "HardSwish", "Swish", "Mish", "QuickGelu"}
)
GATES = frozenset({"Sigmoid", "HardSigmoid"})
"""x times one of these of x is an activation too."""
MOVES = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast", "Slice", "Gather", "Dropout"})
LAYOUTS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Dropout"})
"""Of `MOVES` those that keep all values as they are: a part of a map of sigmoids is no decision."""
MEANS = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean", "GlobalMaxPool", "MaxPool", "ReduceMax"})
FEATURE_NAMES = frozenset(
    {"embed", "embeds", "embedding", "embeddings", "feature", "features", "descriptor", "descriptors", "latent", "latents"}
    | {"hidden", "pooler"}
)
"""Words of the names that exporters give outputs of features: image_embeds, last_hidden_state, pooler_output."""

SCORE_NAMES = frozenset({"logit", "logits", "class", "classes", "score", "scores", "prob", "probs"})
"""Words of names beside which those of features say nothing: hidden_class, feature_logits."""


def output_kinds(proto: ModelProto) -> Mapping[str, str]:
    """`IDS`, `FEATURES` or `SIGMOID` by the name of an output of which that is certain.

    Examples
    --------
    >>> from onnx import parser
    >>> output_kinds(parser.parse_model('''<ir_version: 8, opset_import: ["": 17]> g (float[N, 9] x) =>
    ...     (int64[N] best, float[N, 9] scores, float[N, 9] unit)
    ...     { best = ArgMax<axis=1, keepdims=0>(x)  scores = Softmax(x)  unit = LpNormalization(x) }'''))
    {'best': 'ids', 'unit': 'features'}
    """
    producers = {name: (node, position) for node in proto.graph.node for position, name in enumerate(node.output) if name}
    found = ((output.name, _kind(output.name, producers)) for output in proto.graph.output)
    return {name: kind for name, kind in found if kind}


Producers = Mapping[str, tuple[NodeProto, int]]


def _kind(name: str, producers: Producers) -> str:
    node, position = _origin(name, producers, MOVES)
    if node is not None and (node.op_type, position) in ID_SOURCES:
        return IDS
    words = re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    is_path = "/" in name  # that of a node, which may lie in a part called so
    if not is_path and not FEATURE_NAMES.isdisjoint(words) and SCORE_NAMES.isdisjoint(words):
        return FEATURES
    node, _ = _origin(name, producers, LAYOUTS)
    if node is not None and node.op_type == "Sigmoid":
        return SIGMOID
    node, _ = _origin(name, producers, MOVES | MEANS)
    return FEATURES if node is not None and (node.op_type in FEATURE_SOURCES or _is_gated(node, producers)) else ""


def _origin(name: str, producers: Producers, passed: frozenset[str]) -> tuple[NodeProto | None, int]:
    """The node that computes what an output holds, behind operators that are passed, and which of its outputs that is."""
    node, position = producers.get(name, (None, 0))
    while node is not None and node.op_type in passed:
        node, position = producers.get(node.input[0], (None, 0))
    return node, position


def _is_gated(node: NodeProto, producers: Producers) -> bool:
    """Whether a node computes x sigmoid(x), or divides by the length of what it divides."""
    if node.op_type == "Mul":
        return any(each.op_type in GATES and each.input[0] in node.input for each in _read(node, producers))
    if node.op_type != "Div":
        return False
    divisor, _ = _origin(node.input[1], producers, MOVES | {"Clip", "Max", "Expand", "Sqrt", "Add"})
    return divisor is not None and divisor.op_type in ("ReduceL2", "ReduceSumSquare")


def _read(node: NodeProto, producers: Producers) -> Iterator[NodeProto]:
    """The nodes that write what a node reads."""
    return (producers[name][0] for name in node.input if name in producers)
