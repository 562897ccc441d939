"""The edited graph as an ONNX model again. Everything starts from what was read, so what was not edited cannot get lost:
metadata, doc strings, functions, annotations, declared inputs and outputs. Nodes and initializers are the edited graph's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import Message
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
from onnxmerge.onnxio.attributes import attribute_proto, tensors_within
from onnxmerge.onnxio.model import Model, constants, graphs, in_order, names_in, names_used
from onnxmerge.onnxio.storage import SMALL_BYTES, Place, as_held, bare_tensor, fits_inside, held_bytes, inside
from onnxmerge.onnxio.tensors import is_external
from onnxmerge.onnxio.value_info import put_value_info


@dataclass(frozen=True)
class Scope:
    """One graph on its way out: the graph as read (empty for a new body), and where tensors go."""

    original: GraphProto
    opset: int
    elsewhere: frozenset[str] | None  # outermost graph: names that a body's initializers have; None in a body
    place: Place  # initializers
    place_attribute: Place  # tensors inside nodes


def export(model: Model) -> ModelProto:
    """The model as edited, its weights inside (from 2 GB on, external ones stay outside)."""
    return export_with(model, (lambda values, name: inside(values, name, model.folder)) if fits_inside(model) else as_held)


def export_with(model: Model, place: Place) -> ModelProto:
    """The model as edited, each initializer as `place` returns it, value_info inferred anew."""
    new = _assembled(model, place, lambda values, name: inside(values, name, model.folder))
    put_value_info(new, bare(model), model.proto)
    return new


def bare(model: Model) -> ModelProto:
    """The model as edited, for shape inference only: large tensors have shape and dtype but no bytes."""

    def without_bytes(values: gs.DenseValues, name: str) -> TensorProto:
        return inside(values, name, model.folder) if held_bytes(values) <= SMALL_BYTES else bare_tensor(values, name)

    return _assembled(model, without_bytes, without_bytes)


def standalone(model: Model, node: gs.Node) -> NodeProto:
    """One node of the edited graph by itself, its tensors inside."""
    place: Place = lambda values, name: inside(values, name, model.folder)  # noqa: E731
    return node_proto(node, None, Scope(GraphProto(), model.opset, None, place, place))


def node_proto(node: gs.Node, original: NodeProto | None, scope: Scope) -> NodeProto:
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


def _attribute(name: str, value: Any, old: AttributeProto | None, node: gs.Node, scope: Scope) -> AttributeProto:
    if isinstance(value, gs.Graph):
        new = AttributeProto(name=name, type=AttributeProto.GRAPH)
        _fill(new.g, value, replace(scope, original=old.g if old is not None else GraphProto(name=value.name)), frozenset())
        return new
    if isinstance(value, gs.Constant):
        values = gs.stored_values(value)
        assert not isinstance(values, SparseTensorProto)  # those stay opaque attributes
        tensor = scope.place_attribute(values, value.name)
        return AttributeProto(name=name, type=AttributeProto.TENSOR, t=tensor)
    if isinstance(value, AttributeProto):
        opaque = AttributeProto()
        opaque.CopyFrom(value)
        _embed([opaque], scope.place_attribute)
        return opaque
    return attribute_proto(name, value, old, node, scope.opset)


def _embed(attributes: list[AttributeProto], place: Place) -> None:
    for tensor in tensors_within(attributes):
        if is_external(tensor):
            tensor.CopyFrom(place(tensor, tensor.name))


def _assembled(model: Model, place: Place, place_attribute: Place) -> ModelProto:
    new = ModelProto()
    copy_fields(model.proto, new, {"graph"})
    for function in new.functions:
        _embed([attribute for node in function.node for attribute in node.attribute], place_attribute)
    training = [body for info in model.proto.training_info for body in (info.algorithm, info.initialization)]
    read_elsewhere = frozenset(name for body in training for node in body.node for name in node.input)
    in_bodies = frozenset(tensor.name for body in graphs(model.proto.graph) for tensor in body.initializer)
    own = frozenset(tensor.name for tensor in model.proto.graph.initializer)
    scope = Scope(model.proto.graph, model.opset, in_bodies - own, place, place_attribute)
    _fill(new.graph, model.graph, scope, read_elsewhere)
    if model.proto.ir_version < 4:
        listed = {value.name for value in new.graph.input}
        new.graph.input.extend(_declaration(tensor, None) for tensor in new.graph.initializer if tensor.name not in listed)
    return new


def _fill(new: GraphProto, graph: gs.Graph, scope: Scope, read_elsewhere: frozenset[str]) -> None:
    old = scope.original
    rewritten = {"node", "initializer", "sparse_initializer", "input", "output", "value_info", "quantization_annotation"}
    copy_fields(old, new, rewritten)
    by_output = {name: node for node in old.node for name in node.output if name}
    by_name = {node.name: node for node in old.node if node.name}
    inner = replace(scope, elsewhere=None)
    for node in in_order(graph):
        candidates = [by_output.get(tensor.name) for tensor in node.outputs] + [by_name.get(node.name)]
        same = (each for each in candidates if each and (each.op_type, each.domain) == (node.op, node.domain or ""))
        new.node.append(node_proto(node, next(same, None), inner))
    if old.quantization_annotation:
        present = names_used(graph)
        new.quantization_annotation.extend(each for each in old.quantization_annotation if each.tensor_name in present)
    parameters = {entry.value for each in new.quantization_annotation for entry in each.quant_parameter_tensor_names}
    kept = _initializers(graph, scope, read_elsewhere | parameters)
    for name, values in kept.items():
        if isinstance(values, SparseTensorProto):
            new.sparse_initializer.append(values)
        else:
            new.initializer.append(scope.place(values, name))
    _declare(new, graph, old, kept)


def _initializers(graph: gs.Graph, scope: Scope, also: frozenset[str]) -> dict[str, gs.StoredValues]:
    """The constants that belong to this graph, in the order they were read, new ones behind.

    A body owns those it held when read; every other constant, also one that only a body uses, goes to the outermost graph.
    Unused initializers are left out, unless the model had them unused and offered them as graph inputs.
    """
    old = scope.original
    as_read: dict[str, gs.StoredValues] = {tensor.name: tensor for tensor in old.initializer}
    as_read |= {tensor.values.name: tensor for tensor in old.sparse_initializer}
    found: dict[str, gs.StoredValues] = {}
    for constant in constants(graph):
        if constant.name in as_read or (scope.elsewhere is not None and constant.name not in scope.elsewhere):
            values = found.setdefault(constant.name, gs.stored_values(constant))
            if values is not gs.stored_values(constant):
                raise ValueError(f"two constants named '{constant.name}' with different values")
    used_as_read = {name for body in graphs(old) for node in body.node for name in node.input}
    captured = {name for node in graph.nodes for value in node.attrs.values() for name in names_in(value)}
    wanted = also | captured | ({value.name for value in old.input} - used_as_read)
    return {name: found.get(name, values) for name, values in as_read.items() if name in found or name in wanted} | found


def _declare(new: GraphProto, graph: gs.Graph, old: GraphProto, kept: dict[str, gs.StoredValues]) -> None:
    """Graph inputs and outputs as they were declared; initializers that are also inputs with their new shapes."""
    inputs = {tensor.name: tensor for tensor in graph.inputs}
    weights = {tensor.name: tensor for tensor in new.initializer}
    for value in old.input:
        if value.name in inputs:
            new.input.append(value)
        elif value.name in kept:
            new.input.append(_declaration(weights[value.name], value) if value.name in weights else value)
    declared = {value.name for value in old.input}
    new.input.extend(gs.declaration(tensor) for name, tensor in inputs.items() if name not in declared)
    outputs = {value.name: value for value in old.output}
    for tensor in graph.outputs:
        new.output.append(outputs.get(tensor.name) or gs.declaration(tensor))


def _declaration(tensor: TensorProto, old: ValueInfoProto | None) -> ValueInfoProto:
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


def copy_fields(old: Any, new: Any, without: set[str]) -> None:
    """Every field of a message but those named, also the ones that a later ONNX will add."""
    for field, value in old.ListFields():
        if field.name in without:
            continue
        if isinstance(value, Message):
            getattr(new, field.name).CopyFrom(value)
        elif isinstance(value, str | bytes | int | float):
            setattr(new, field.name, value)
        else:
            getattr(new, field.name).extend(value)
