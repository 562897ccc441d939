"""The edited graph as an ONNX model again.

Everything starts from the model as read, so that what was not edited cannot get lost: metadata, doc strings, functions,
annotations, declared inputs and outputs. onnx-graphsurgeon's own export drops most of these. Nodes and initializers are those
of the edited graph.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TensorShapeProto,
    ValueInfoProto,
)

from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.attributes import attribute_proto
from onnxmerge.onnxio.external_data import is_external
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.storage import (
    SMALL_TENSOR_BYTES,
    ToTensor,
    fits_one_message,
    size_bytes,
    stored_as_read,
    stored_inside,
    without_data,
)
from onnxmerge.onnxio.traversal import (
    attribute_tensors,
    constants,
    graph_and_bodies,
    tensor_names,
    tensor_names_in_attribute,
    topological_order,
)
from onnxmerge.onnxio.value_info import infer_value_info
from onnxmerge.onnxio.wire_format import copy_fields


@dataclass(frozen=True)
class _Scope:
    """One graph on its way out.

    Attributes
    ----------
    original : GraphProto
        The graph as read, empty for a new body.
    opset : int
        Version of ONNX's own operators.
    body_initializers : frozenset of str or None
        In the outermost graph the names of initializers that only bodies have; None in a body.
    to_tensor, attribute_to_tensor : callable
        How initializers, and tensors inside nodes, are stored.
    """

    original: GraphProto
    opset: int
    body_initializers: frozenset[str] | None
    to_tensor: ToTensor
    attribute_to_tensor: ToTensor


def export(model: Model, left_out: Container[str] = ()) -> ModelProto:
    """The model as edited, its weights inside; where one message cannot hold them, external ones stay outside.

    left_out: names of initializers that get no values.
    """
    whole = stored_inside(model.folder) if fits_one_message(model) else stored_as_read
    return export_with(model, lambda values, name: (without_data if name in left_out else whole)(values, name))


def export_with(model: Model, to_tensor: ToTensor) -> ModelProto:
    """The model as edited, its value_info inferred anew.

    Parameters
    ----------
    model : Model
        Not changed.
    to_tensor : callable
        How initializers are stored (see `storage`). Tensors in attributes are always inside.
    """
    new = _assembled(model, to_tensor, stored_inside(model.folder))
    infer_value_info(new, export_without_weights(model), model.proto)
    return new


def export_without_weights(model: Model) -> ModelProto:
    """The model as edited, for shape inference only: large tensors have shape and dtype but no values."""
    inside = stored_inside(model.folder)

    def to_tensor(values: gs.DenseValues, name: str) -> TensorProto:
        return inside(values, name) if size_bytes(values) <= SMALL_TENSOR_BYTES else without_data(values, name)

    return _assembled(model, to_tensor, to_tensor)


def export_node(model: Model, node: gs.Node) -> NodeProto:
    """One node of the edited graph by itself, its tensors inside."""
    inside = stored_inside(model.folder)
    return _node_proto(node, None, _Scope(GraphProto(), model.opset, None, inside, inside))


def _node_proto(node: gs.Node, original: NodeProto | None, scope: _Scope) -> NodeProto:
    """The node as edited; metadata, doc string, overload and device settings come from the node as read."""
    new = NodeProto()
    if original is not None:
        copy_fields(original, new, {"input", "output", "op_type", "name", "domain", "attribute"})
    new.op_type = node.op
    if node.name:
        new.name = node.name
    if node.domain:
        new.domain = node.domain
    new.input.extend(tensor.name for tensor in node.inputs)
    new.output.extend(tensor.name for tensor in node.outputs)
    as_read = {attribute.name: attribute for attribute in original.attribute} if original is not None else {}
    for name, value in node.attrs.items():
        attribute = _attribute(name, value, as_read.get(name), node, scope)
        if name in as_read and as_read[name].doc_string:
            attribute.doc_string = as_read[name].doc_string
        new.attribute.append(attribute)
    return new


def _attribute(name: str, value: Any, as_read: AttributeProto | None, node: gs.Node, scope: _Scope) -> AttributeProto:
    """The attribute of a node as edited: a body, a tensor, what onnx-graphsurgeon skipped, or a plain value."""
    if isinstance(value, gs.Graph):
        new = AttributeProto(name=name, type=AttributeProto.GRAPH)
        _fill(
            new.g, value, replace(scope, original=as_read.g if as_read is not None else GraphProto(name=value.name)), frozenset()
        )
        return new
    if isinstance(value, gs.Constant):
        values = gs.stored_values(value)
        assert not isinstance(values, SparseTensorProto)  # those stay opaque attributes
        tensor = scope.attribute_to_tensor(values, value.name)
        return AttributeProto(name=name, type=AttributeProto.TENSOR, t=tensor)
    if isinstance(value, AttributeProto):
        opaque = AttributeProto()
        opaque.CopyFrom(value)
        _store_external([opaque], scope.attribute_to_tensor)
        return opaque
    return attribute_proto(name, value, as_read, node, scope.opset)


def _store_external(attributes: list[AttributeProto], to_tensor: ToTensor) -> None:
    """Store the external tensors in attributes anew."""
    for tensor in attribute_tensors(attributes):
        if is_external(tensor):
            tensor.CopyFrom(to_tensor(tensor, tensor.name))


def _assembled(model: Model, to_tensor: ToTensor, attribute_to_tensor: ToTensor) -> ModelProto:
    """The model as edited, without value_info."""
    new = ModelProto()
    copy_fields(model.proto, new, {"graph", "metadata_props"})
    read = {each.key: each.value for each in model.proto.metadata_props}
    for key, value in (read | model.metadata).items():
        new.metadata_props.add(key=key, value=value)
    for function in new.functions:
        _store_external([attribute for node in function.node for attribute in node.attribute], attribute_to_tensor)
    training = [body for info in model.proto.training_info for body in (info.algorithm, info.initialization)]
    read_elsewhere = frozenset(name for body in training for node in body.node for name in node.input)
    in_bodies = frozenset(tensor.name for body in graph_and_bodies(model.proto.graph) for tensor in body.initializer)
    own = frozenset(tensor.name for tensor in model.proto.graph.initializer)
    scope = _Scope(model.proto.graph, model.opset, in_bodies - own, to_tensor, attribute_to_tensor)
    _fill(new.graph, model.graph, scope, read_elsewhere)
    if model.proto.ir_version < 4:
        listed = {value.name for value in new.graph.input}
        new.graph.input.extend(_declaration(tensor, None) for tensor in new.graph.initializer if tensor.name not in listed)
    return new


def _fill(new: GraphProto, graph: gs.Graph, scope: _Scope, read_elsewhere: frozenset[str]) -> None:
    """Fill an empty graph from an edited one. read_elsewhere: initializers that something outside of the graph reads."""
    old = scope.original
    rewritten = {"node", "initializer", "sparse_initializer", "input", "output", "value_info", "quantization_annotation"}
    copy_fields(old, new, rewritten)
    by_output = {name: node for node in old.node for name in node.output if name}
    by_name = {node.name: node for node in old.node if node.name}
    inner = replace(scope, body_initializers=None)
    for node in topological_order(graph):
        candidates = [by_output.get(tensor.name) for tensor in node.outputs] + [by_name.get(node.name)]
        same = (each for each in candidates if each and (each.op_type, each.domain) == (node.op, node.domain or ""))
        new.node.append(_node_proto(node, next(same, None), inner))
    if old.quantization_annotation:
        present = tensor_names(graph)
        new.quantization_annotation.extend(each for each in old.quantization_annotation if each.tensor_name in present)
    parameters = {entry.value for each in new.quantization_annotation for entry in each.quant_parameter_tensor_names}
    initializers = _initializers(graph, scope, read_elsewhere | parameters)
    for name, values in initializers.items():
        if isinstance(values, SparseTensorProto):
            new.sparse_initializer.append(values)
        else:
            new.initializer.append(scope.to_tensor(values, name))
    _declare(new, graph, old, initializers)


def _initializers(graph: gs.Graph, scope: _Scope, read_elsewhere: frozenset[str]) -> dict[str, gs.StoredValues]:
    """The constants that belong to this graph, in the order they were read, new ones behind.

    A body owns those that it had as read; every other constant, also one that only a body uses, goes to the outermost graph.
    Unused initializers are left out, unless they are in `read_elsewhere`, or the model had them unused and offered them as
    graph inputs.
    """
    old = scope.original
    as_read: dict[str, gs.StoredValues] = {tensor.name: tensor for tensor in old.initializer}
    as_read |= {tensor.values.name: tensor for tensor in old.sparse_initializer}
    found: dict[str, gs.StoredValues] = {}
    for constant in constants(graph):
        if constant.name in as_read or (scope.body_initializers is not None and constant.name not in scope.body_initializers):
            values = found.setdefault(constant.name, gs.stored_values(constant))
            if values is not gs.stored_values(constant):
                raise ValueError(f"two constants named '{constant.name}' with different values")
    used_as_read = {name for body in graph_and_bodies(old) for node in body.node for name in node.input}
    captured = {name for node in graph.nodes for value in node.attrs.values() for name in tensor_names_in_attribute(value)}
    needed = read_elsewhere | captured | ({value.name for value in old.input} - used_as_read)
    return {name: found.get(name, values) for name, values in as_read.items() if name in found or name in needed} | found


def _declare(new: GraphProto, graph: gs.Graph, old: GraphProto, initializers: Container[str]) -> None:
    """Graph inputs and outputs as they were declared; initializers that are also inputs with their new shapes."""
    inputs = {tensor.name: tensor for tensor in graph.inputs}
    weights = {tensor.name: tensor for tensor in new.initializer}
    for value in old.input:
        if value.name in inputs:
            new.input.append(value)
        elif value.name in initializers:
            new.input.append(_declaration(weights[value.name], value) if value.name in weights else value)
    declared = {value.name for value in old.input}
    new.input.extend(gs.declaration(tensor) for name, tensor in inputs.items() if name not in declared)
    outputs = {value.name: value for value in old.output}
    for tensor in graph.outputs:
        new.output.append(outputs.get(tensor.name) or gs.declaration(tensor))


def _declaration(tensor: TensorProto, old: ValueInfoProto | None) -> ValueInfoProto:
    """An initializer as a graph input, declared as before but for its type and shape."""
    new = ValueInfoProto(name=tensor.name)
    if old is not None:
        new.CopyFrom(old)
    kind = new.type.tensor_type
    kind.elem_type = tensor.data_type
    if [dim.dim_value for dim in kind.shape.dim] != list(tensor.dims):
        del kind.shape.dim[:]
        kind.shape.dim.extend(TensorShapeProto.Dimension(dim_value=size) for size in tensor.dims)
    kind.shape.SetInParent()  # a scalar has a shape, an empty one
    return new
