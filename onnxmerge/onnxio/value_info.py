"""value_info for an edited graph: what was read may be stale, and inference never corrects it, so it is redone; none is added."""

import onnx
from onnx import ModelProto, ValueInfoProto

from onnxmerge.onnxio.quiet import nothing_on_stdout
from onnxmerge.onnxio.traversal import graph_and_bodies


def infer_value_info(new: ModelProto, without_weights: ModelProto, original: ModelProto) -> None:
    """Write the value_info of the tensors that had one: shape and dtype as inferred, or where inference fails the dtype as read.

    Names of dimensions that inference made up are left out; doc strings and metadata of the values as read stay.

    Parameters
    ----------
    new : ModelProto
        Written to.
    without_weights : ModelProto
        The same nodes with small tensors only: inference runs on it.
    original : ModelProto
        The model as read.
    """
    as_read = {value.name: value for graph in graph_and_bodies(original.graph) for value in graph.value_info}
    if not as_read:
        return
    try:
        with nothing_on_stdout():
            inferred = onnx.shape_inference.infer_shapes(without_weights, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = without_weights
    named = {
        dim.dim_param
        for graph in graph_and_bodies(without_weights.graph)
        for value in [*graph.input, *graph.output]
        for dim in _dims(value)
    }
    for graph, source in zip(graph_and_bodies(new.graph), graph_and_bodies(inferred.graph), strict=True):
        declared = {value.name for value in [*graph.input, *graph.output]} | {tensor.name for tensor in graph.initializer}
        produced = [name for node in graph.node for name in node.output if name in as_read and name not in declared]
        found = {value.name: value for value in source.value_info}
        graph.value_info.extend(_value(found.get(name), as_read[name], named) for name in produced)


def _value(inferred: ValueInfoProto | None, as_read: ValueInfoProto, named: set[str]) -> ValueInfoProto:
    new = ValueInfoProto()
    new.CopyFrom(as_read if inferred is None else inferred)
    if inferred is None and new.type.HasField("tensor_type"):
        new.type.tensor_type.ClearField("shape")
    for dim in _dims(new):
        if dim.dim_param and dim.dim_param not in named:
            dim.ClearField("dim_param")
    if inferred is not None:
        new.doc_string = as_read.doc_string
        del new.metadata_props[:]
        new.metadata_props.extend(as_read.metadata_props)
        _put_denotations(new, as_read)
    return new


def _put_denotations(new: ValueInfoProto, as_read: ValueInfoProto) -> None:
    if as_read.type.denotation:
        new.type.denotation = as_read.type.denotation
    new_dims, old_dims = _dims(new), _dims(as_read)
    for new_dim, old_dim in zip(new_dims, old_dims, strict=False):
        if len(new_dims) == len(old_dims) and old_dim.denotation:
            new_dim.denotation = old_dim.denotation


def _dims(value: ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim) if value.type.HasField("tensor_type") else []
