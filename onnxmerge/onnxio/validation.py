"""What is checked before anything is done with a file. Each refusal is one line and says what was found."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, TensorProto
from onnx.helper import make_tensor_value_info

from onnxmerge.errors import ModelError, one_line
from onnxmerge.onnxio.external_data import is_external
from onnxmerge.onnxio.quiet import nothing_on_stdout
from onnxmerge.onnxio.tensors import check_data
from onnxmerge.onnxio.traversal import bodies_of, graph_and_bodies, stored_tensors
from onnxmerge.onnxio.wire_format import is_large, read_model

PROTOBUF_LIMIT_BYTES = 2**31  # what protobuf can parse
_LAYER_NORMALIZATION = 17  # the opset that has it first


def read_checked(path: Path) -> ModelProto:
    """A file's model, its external weights left outside, after checking that it is valid and that all its weights are there.

    Raises
    ------
    ModelError
        Where it is not.
    """
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a directory, an ONNX file is needed")
        if not path.is_file():
            raise ModelError(f"{path} does not exist" if not path.exists() else f"{path} is not a regular file")
        if path.stat().st_size >= PROTOBUF_LIMIT_BYTES:
            raise ModelError(f"{path} is larger than the 2 GB that an ONNX file can be: save it with external data")
        with path.open("rb") as stream:
            beginning = stream.read(8)
        if not beginning:
            raise ModelError(f"{path} is empty")
        if beginning[4:] == b"ORTM":
            raise ModelError(f"{path} is in ONNX Runtime's own format: give the .onnx file that it was made from")
        proto = read_model(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX model, or is cut off: it cannot be parsed") from error
    try:
        _check(proto, path)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return proto


def _check(proto: ModelProto, path: Path) -> None:
    if not proto.HasField("graph"):
        raise ModelError("it holds no graph, so it is not an ONNX model")
    try:
        _check_text(proto)
    except UnicodeError as error:
        raise ModelError("a name or text in it is not UTF-8") from error
    for what, found in (("nodes", proto.graph.node), ("outputs", proto.graph.output)):
        if not found:
            raise ModelError(f"its graph has no {what}")
    _check_versions(proto)
    _check_names(proto.graph)
    for graph in graph_and_bodies(proto.graph):
        _check_sparse(graph)
        _check_references(graph)
    for tensor in stored_tensors(proto):
        check_data(tensor, path.parent)
    try:
        with nothing_on_stdout():
            onnx.checker.check_model(stand_in(proto, is_large(path)) or str(path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelError(f"not a valid ONNX model: {one_line(error)}") from error


def stand_in(proto: ModelProto, without_weights: bool) -> ModelProto | None:
    """A stand-in for the checker, None where it needs none.

    ONNX Runtime puts operators into ONNX's domain that its opset does not have. In the stand-in they are in a domain that is not
    checked. The checker would read the weights of a large file. There external initializers, which are checked elsewhere, are
    inputs.
    """
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    unknown = {"SimplifiedLayerNormalization", *(["LayerNormalization"] if opset < _LAYER_NORMALIZATION else [])}
    if not without_weights and not any(node.op_type in unknown for graph in graph_and_bodies(proto.graph) for node in graph.node):
        return None
    copy = ModelProto.FromString(proto.SerializeToString())
    for node in [node for graph in graph_and_bodies(copy.graph) for node in graph.node]:
        node.domain = "com.microsoft" if node.op_type in unknown else node.domain
    known = {value.name for value in copy.graph.input}
    outside = [tensor for tensor in copy.graph.initializer if is_external(tensor)]
    unknown_inputs = (each for each in outside if each.name not in known)
    copy.graph.input.extend(make_tensor_value_info(each.name, each.data_type, each.dims) for each in unknown_inputs)
    inside = [tensor for tensor in copy.graph.initializer if not is_external(tensor)]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(inside)
    return copy


def _check_text(message: Message) -> None:
    """Every name and text is UTF-8. protobuf reads others too, and then gives bytes, or fails where they are used."""
    if isinstance(message, TensorProto):  # without a copy of its data
        texts: list[Any] = [message.name, message.doc_string]
        messages: list[Message] = [*message.external_data, *message.metadata_props]
    else:
        texts, messages = [], []
        for field, value in message.ListFields():
            kept = messages if field.message_type is not None else texts if field.type == field.TYPE_STRING else []
            kept += [value] if isinstance(value, str | bytes | int | float | Message) else value
    if not all(isinstance(text, str) for text in texts):
        raise UnicodeError
    for each in messages:
        _check_text(each)


def _check_versions(proto: ModelProto) -> None:
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"its IR version is {proto.ir_version}; the installed onnx {onnx.__version__} knows 1 to {onnx.IR_VERSION}"
        )
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            raise ModelError(f"its opset is {entry.version}; the installed onnx {onnx.__version__} knows none above {newest}")


def _check_names(graph: GraphProto, outer: frozenset[str] = frozenset()) -> None:
    """An initializer is named once, and not like a tensor of a graph around it: readers disagree about which one counts."""
    own = [tensor.name for tensor in graph.initializer] + [tensor.values.name for tensor in graph.sparse_initializer]
    twice = [name for name, count in Counter(own).items() if count > 1]
    hidden = sorted(set(own) & outer)
    if twice or hidden:
        raise ModelError(
            f"initializer '{(twice + hidden)[0]}' {'occurs twice' if twice else 'hides a tensor of the graph around it'}"
        )
    visible = outer.union(own, (value.name for value in graph.input), (name for node in graph.node for name in node.output))
    for node in graph.node:
        for attribute in node.attribute:
            for body in bodies_of(attribute):
                _check_names(body, visible)


def _check_references(graph: GraphProto) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                where = f"the attribute '{attribute.name}' of node '{node.name or node.op_type}'"
                raise ModelError(f"{where} refers to one of a function, and the node is in none")


def _check_sparse(graph: GraphProto) -> None:
    for sparse in graph.sparse_initializer:
        if is_external(sparse.values) or is_external(sparse.indices):
            raise ModelError(f"sparse initializer '{sparse.values.name}' has external data, which is not supported")
