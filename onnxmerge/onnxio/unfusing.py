"""Layers that ONNX Runtime has fused (domain com.microsoft), taken apart into operators of ONNX, which it fuses again.

FusedConv(x, w, b, z)  = activation(Conv(x, w, b) + z)
FusedGemm(a, b, c)     = activation(Gemm(a, b, c))
FusedMatMul(a, b)      = alpha MatMul(a or its transpose, b or its transpose)
Attention(x, w, b)     = MultiHeadAttention(q, k, v), where q, k and v are the parts of x w + b; `pack_attentions` undoes this
MultiHeadAttention with a bias for q, k and v = MultiHeadAttention of the sums
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from onnxmerge.onnxio.tensors import tensor_of

DOMAIN = "com.microsoft"
# Attributes of the activation, in the order in which a FusedConv lists their values
_PARAMETERS: dict[str, tuple[str, ...]] = {
    **{"": (), "Relu": (), "Sigmoid": (), "Tanh": (), "HardSwish": (), "Softplus": (), "Softsign": ()},
    **{"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max"), "Elu": ("alpha",)},
}
_LIMITS_ARE_INPUTS = 11
"""Opset from which on the limits of Clip are inputs."""
_SIZES_ARE_INPUTS = 13
"""Opset from which on the sizes of Split are an input."""
_OF_HEADS = ("num_heads", "scale", "unidirectional", "mask_filter_value")
"""Attributes that an Attention and a MultiHeadAttention have in common."""
PAST = 4
"""Which input of an Attention is what it keeps of earlier positions."""
Shape = tuple[int, ...]


def is_fused(node: NodeProto) -> bool:
    """Whether a node is one of the fused layers that `unfused` takes apart."""
    attributes, given = _attributes(node), [*map(bool, node.input), *[False] * 10]
    if node.domain == DOMAIN and not any(node.output[1:]):
        if node.op_type == "Attention":
            return not (given[PAST] or attributes.get("do_rotary"))
        if node.op_type == "MultiHeadAttention":
            return all(given[:4]) and not any(given[6:8])
    if node.domain != DOMAIN or attributes.get("transBatchA") or attributes.get("transBatchB"):
        return False
    return node.op_type == "FusedMatMul" or (
        node.op_type in ("FusedConv", "FusedGemm") and attributes.get("activation", b"").decode() in _PARAMETERS
    )


def unfused(proto: ModelProto, tensors: Mapping[str, tuple[Shape, np.dtype]]) -> ModelProto:
    """A copy of a model without fused layers in its main graph.

    Parameters
    ----------
    proto : ModelProto
        The model; it stays as it is.
    tensors : Mapping[str, tuple of shape and dtype]
        Shape and data type of each tensor by name.
    """
    new = ModelProto.FromString(proto.SerializeToString())
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    nodes: list[NodeProto] = []
    for node in new.graph.node:
        if not is_fused(node) or _is_read_otherwise(node, tensors):
            nodes.append(node)
            continue
        parts = _Parts(node, tensors, opset)
        rules = {"FusedMatMul": parts.of_matmul, "Attention": parts.of_attention, "MultiHeadAttention": parts.of_heads}
        nodes += rules.get(node.op_type, parts.of_layer)()
    del new.graph.node[:]
    new.graph.node.extend(nodes)
    return new


def _is_read_otherwise(node: NodeProto, tensors: Mapping[str, tuple[Shape, np.dtype]]) -> bool:
    """Whether a MultiHeadAttention would not take the inputs of an Attention: ends and starts of every sequence as a mask; or
    whether one reads heads on an axis of their own."""
    shapes = [tensors[name][0] if name else () for name in node.input[:4]]
    if node.op_type == "Attention":
        return len(shapes) > 3 and shapes[3] == (2 * shapes[0][0],)
    return node.op_type == "MultiHeadAttention" and any(len(shape) != 3 for shape in shapes[:3])


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


class _Parts:
    """The nodes that stand in the place of one fused layer; the layer keeps its name, and the last node writes its output."""

    def __init__(self, node: NodeProto, tensors: Mapping[str, tuple[Shape, np.dtype]], opset: int) -> None:
        self.node, self.tensors, self.opset, self.attributes = node, tensors, opset, _attributes(node)
        self.dtype = tensors[node.output[0]][1]
        self.nodes: list[NodeProto] = []

    def of_layer(self) -> list[NodeProto]:
        """Conv or Gemm, what is added, and the activation."""
        own = {name: value for name, value in self.attributes.items() if not name.startswith("activation")}
        activation, inputs = self.attributes.get("activation", b"").decode(), list(self.node.input)
        values = self.attributes.get("activation_params") or [
            self.attributes[f"activation_{name}"] for name in _PARAMETERS[activation] if f"activation_{name}" in self.attributes
        ]
        tensor = self._add(self.node.op_type.removeprefix("Fused"), inputs[:3], own, self.node.name)
        if len(inputs) > 3 and inputs[3]:
            tensor = self._add("Add", [tensor, inputs[3]], {})
        if activation:
            named = dict(zip(_PARAMETERS[activation], values, strict=False))
            if activation == "Clip" and self.opset >= _LIMITS_ARE_INPUTS:
                tensor = self._add("Clip", [tensor, *(self._number(value) for value in named.values())], {})
            else:
                tensor = self._add(activation, [tensor], named)
        return self._finished()

    def of_matmul(self) -> list[NodeProto]:
        """Transposes of what is to be transposed, the product, and its factor."""
        operands = []
        for name, flag in zip(self.node.input, ("transA", "transB"), strict=True):
            axes = list(range(len(self.tensors[name][0])))
            is_matrix = self.attributes.get(flag, 0) and len(axes) > 1
            operands.append(self._add("Transpose", [name], {"perm": [*axes[:-2], axes[-1], axes[-2]]}) if is_matrix else name)
        tensor = self._add("MatMul", operands, {}, self.node.name)
        factor = self.attributes.get("alpha", 1.0)
        if factor != 1.0:
            self._add("Mul", [tensor, self._number(factor)], {})
        return self._finished()

    def of_attention(self) -> list[NodeProto]:
        """The projection of query, key and value with its bias, and what attends."""
        data, weight, bias, mask, _, summand = (*self.node.input, *[""] * 5)[:6]
        total = self.tensors[weight][0][1]
        sizes = self.attributes.get("qkv_hidden_sizes") or [total // 3] * 3
        tensor = self._add("MatMul", [data, weight], {}, self.node.name)
        if bias:
            tensor = self._add("Add", [tensor, bias], {})
        return self._attend(self._split(tensor, sizes, 2), mask, summand)

    def of_heads(self) -> list[NodeProto]:
        """Query, key and value with their parts of the bias, and what attends."""
        *data, bias, mask, summand = (*self.node.input, *[""] * 5)[:6]
        sizes = [self.tensors[name][0][-1] for name in data]
        parts = self._split(bias, sizes, 0)
        return self._attend([self._add("Add", [*pair], {}) for pair in zip(data, parts, strict=True)], mask, summand)

    def _attend(self, data: list[str], mask: str, summand: str) -> list[NodeProto]:
        """A MultiHeadAttention without a bias."""
        own = {name: self.attributes[name] for name in _OF_HEADS if name in self.attributes}
        name = self.node.name if self.node.op_type == "MultiHeadAttention" else ""
        inputs = [*data, *(["", mask, summand] if mask or summand else [])]
        self._add("MultiHeadAttention", inputs, {**own, "domain": DOMAIN}, name)
        return self._finished()

    def _split(self, tensor: str, sizes: list[int], axis: int) -> list[str]:
        outputs = [f"{self.node.output[0]}//{len(self.nodes)}.{part}" for part in range(len(sizes))]
        is_input = self.opset >= _SIZES_ARE_INPUTS
        inputs = [tensor, *([self._constant(np.array(sizes, np.int64))] if is_input else [])]
        attributes = {"axis": axis} if is_input else {"axis": axis, "split": sizes}
        self.nodes.append(helper.make_node("Split", inputs, outputs, **attributes))
        return outputs

    def _add(self, operator: str, inputs: list[str], attributes: dict[str, Any], name: str = "") -> str:
        output = f"{self.node.output[0]}//{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
        return output

    def _number(self, value: float) -> str:
        return self._constant(np.array(value, self.dtype))

    def _constant(self, values: np.ndarray) -> str:
        output = f"{self.node.output[0]}//{len(self.nodes)}"
        self.nodes.append(helper.make_node("Constant", [], [output], value=tensor_of(values, output)))
        return output

    def _finished(self) -> list[NodeProto]:
        self.nodes[-1].output[0] = self.node.output[0]
        return self.nodes
