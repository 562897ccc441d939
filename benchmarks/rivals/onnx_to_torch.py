"""A convolutional network in PyTorch, from the nodes and the weights of an ONNX file: what these networks have, and no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, numpy_helper
from torch import Tensor, nn

from rivals.cases import NotRun

SHAPE_ONLY = ("Shape", "Gather", "Unsqueeze", "Concat", "Constant", "Identity")
"""Nodes that compute the shape of a Flatten, or stand for an initializer."""


class Rebuilt(nn.Module):
    """The nodes of a graph in their order; `parts` has those with weights."""

    def __init__(self, nodes: list[tuple[NodeProto, int | None]], parts: list[nn.Module], source: str, result: str) -> None:
        super().__init__()
        self.nodes, self.source, self.result = nodes, source, result
        self.parts = nn.ModuleList(parts)

    def layer(self, name: str) -> nn.Module:
        """The part that a node became."""
        return next(self.parts[part] for node, part in self.nodes if node.name == name and part is not None)

    def forward(self, images: Tensor) -> Tensor:
        """The first output."""
        known = {self.source: images}
        for node, part in self.nodes:
            given = [known[name] for name in node.input if name in known]
            known[node.output[0]] = self.parts[part](given[0]) if part is not None else _apply(node, given)
        return known[self.result]


def rebuilt(model: onnx.ModelProto) -> Rebuilt:
    """The network of a file. Raises NotRun for operators that are not written here."""
    weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    nodes, parts = list[tuple[NodeProto, int | None]](), list[nn.Module]()
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
        if node.op_type in SHAPE_ONLY:
            continue
        made = _part(node, weights)
        nodes.append((node, None if made is None else len(parts)))
        parts += [] if made is None else [made]
    return Rebuilt(nodes, parts, model.graph.input[0].name, model.graph.output[0].name).eval()


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _part(node: NodeProto, weights: dict[str, np.ndarray]) -> nn.Module | None:
    given = [torch.from_numpy(weights[name].copy()) for name in node.input[1:] if name in weights]
    attributes = _attributes(node)
    made: nn.Module
    if node.op_type == "Conv":
        out, inputs, *kernel = given[0].shape
        pads, strides = attributes.get("pads", [0, 0, 0, 0])[:2], attributes.get("strides", [1, 1])
        made = nn.Conv2d(inputs, out, tuple(kernel), tuple(strides), tuple(pads), bias=len(given) > 1)
    elif node.op_type == "Gemm" and attributes.get("transB"):
        made = nn.Linear(given[0].shape[1], given[0].shape[0], bias=len(given) > 1)
    elif node.op_type == "BatchNormalization":
        flat = nn.BatchNorm1d if "classifier" in node.name else nn.BatchNorm2d
        made = flat(len(given[0]), eps=attributes.get("epsilon", 1e-5))
        made.running_mean, made.running_var = given[2], given[3]
    elif node.op_type in ("Relu", "Add", "Reshape", "MaxPool", "AveragePool"):
        return None
    else:
        raise NotRun(f"the operator {node.op_type} is not rebuilt in PyTorch here")
    made.weight = nn.Parameter(given[0])
    if len(given) > 1:
        made.bias = nn.Parameter(given[1])
    return made


def _apply(node: NodeProto, given: list[Tensor]) -> Tensor:
    if node.op_type == "Relu":
        return torch.relu(given[0])
    if node.op_type == "Add":
        return given[0] + given[1]
    if node.op_type == "Reshape":
        return torch.flatten(given[0], 1)
    attributes = _attributes(node)
    pool = nn.functional.max_pool2d if node.op_type == "MaxPool" else nn.functional.avg_pool2d
    return pool(given[0], tuple(attributes["kernel_shape"]), tuple(attributes["strides"]))
