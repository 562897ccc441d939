"""Layers that ONNX Runtime has fused (domain com.microsoft), taken apart into operators of ONNX, which it fuses again.

FusedConv(x, w, b, z)  = activation(Conv(x, w, b) + z)
FusedGemm(a, b, c)     = activation(Gemm(a, b, c))
FusedMatMul(a, b)      = alpha MatMul(a or its transpose, b or its transpose)
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


def is_fused(node: NodeProto) -> bool:
    """Whether a node is one of the fused layers that `unfused` takes apart."""
    attributes = _attributes(node)
    if node.domain != DOMAIN or attributes.get("transBatchA") or attributes.get("transBatchB"):
        return False
    return node.op_type == "FusedMatMul" or (
        node.op_type in ("FusedConv", "FusedGemm") and attributes.get("activation", b"").decode() in _PARAMETERS
    )


def unfused(proto: ModelProto, tensors: Mapping[str, tuple[int, np.dtype]]) -> ModelProto:
    """A copy of a model without fused layers in its main graph.

    Parameters
    ----------
    proto : ModelProto
        The model; it stays as it is.
    tensors : Mapping[str, tuple of int and dtype]
        Number of axes and data type of each tensor by name.
    """
    new = ModelProto.FromString(proto.SerializeToString())
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    nodes: list[NodeProto] = []
    for node in new.graph.node:
        if not is_fused(node):
            nodes.append(node)
            continue
        parts = _Parts(node, tensors, opset)
        nodes += parts.of_matmul() if node.op_type == "FusedMatMul" else parts.of_layer()
    del new.graph.node[:]
    new.graph.node.extend(nodes)
    return new


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


class _Parts:
    """The nodes that stand in the place of one fused layer; the layer keeps its name, and the last node writes its output."""

    def __init__(self, node: NodeProto, tensors: Mapping[str, tuple[int, np.dtype]], opset: int) -> None:
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
            axes = list(range(self.tensors[name][0]))
            is_matrix = self.attributes.get(flag, 0) and len(axes) > 1
            operands.append(self._add("Transpose", [name], {"perm": [*axes[:-2], axes[-1], axes[-2]]}) if is_matrix else name)
        tensor = self._add("MatMul", operands, {}, self.node.name)
        factor = self.attributes.get("alpha", 1.0)
        if factor != 1.0:
            self._add("Mul", [tensor, self._number(factor)], {})
        return self._finished()

    def _add(self, operator: str, inputs: list[str], attributes: dict[str, Any], name: str = "") -> str:
        output = f"{self.node.output[0]}//{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
        return output

    def _number(self, value: float) -> str:
        output = f"{self.node.output[0]}//{len(self.nodes)}"
        self.nodes.append(helper.make_node("Constant", [], [output], value=tensor_of(np.array(value, self.dtype), output)))
        return output

    def _finished(self) -> list[NodeProto]:
        self.nodes[-1].output[0] = self.node.output[0]
        return self.nodes
