"""A model that can be edited: the file as it was read, and an onnx-graphsurgeon graph, which is the only thing that is edited."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto

from onnxmerge.errors import ModelError, one_line
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.traversal import graph_and_bodies, tensor_names


@dataclass
class Model:
    """A model that can be edited.

    Attributes
    ----------
    proto : ModelProto
        As read, never changed; weights in external files stay there.
    graph : Graph
        What is edited.
    path : Path
        Absolute; external data lies beside it.
    names_as_read : frozenset of str
        Every tensor name of the file.
    metadata : dict of str to str
        What is written to metadata_props beside what was read, or in its place.
    folded, folded_bytes
        Results of constant folding (`graph.constant_folding`), and their size.
    """

    proto: ModelProto
    graph: gs.Graph
    path: Path
    names_as_read: frozenset[str] = frozenset()
    metadata: dict[str, str] = field(default_factory=dict)
    folded: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    folded_bytes: int = field(default=0, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """Where the external data is."""
        return self.path.parent

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators."""
        versions = [entry.version for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx")]
        return versions[0] if versions else 1


def fresh_copy(model: Model) -> Model:
    """The model as it was read, with a graph of its own that may be edited; nothing is read or checked again."""
    return from_proto(model.proto, model.path)


def from_proto(proto: ModelProto, path: str | Path = "model.onnx") -> Model:
    """A model from memory. It is not validated: `model_files.load` does that with files.

    Parameters
    ----------
    proto : ModelProto
        Kept, and never changed.
    path : str or Path
        For messages, and where external data is looked for.

    Raises
    ------
    ModelError
        Where onnx-graphsurgeon does not understand the graph.
    """
    source = proto.graph if _all_strings_are_text(proto.graph) else _without_binary_strings(proto.graph)
    try:
        graph = gs.import_graph(source, proto)
    except (gs.OnnxGraphSurgeonException, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: the graph cannot be understood: {one_line(error)}") from error
    _restore_skipped_attributes(graph, proto.graph)
    names = tensor_names(graph).union(tensor.name for tensor in proto.graph.initializer)
    return Model(proto, graph, Path(path).absolute(), frozenset(names))


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _attribute_is_text(attribute: AttributeProto) -> bool:
    return all(map(_is_text, [attribute.s, *attribute.strings]))


def _all_strings_are_text(graph: GraphProto) -> bool:
    nodes = [node for each in graph_and_bodies(graph) for node in each.node]
    return all(_attribute_is_text(attribute) for node in nodes for attribute in node.attribute)


def _without_binary_strings(graph: GraphProto) -> GraphProto:
    """A copy without the string attributes that are no text: onnx-graphsurgeon decodes every string."""
    copy = GraphProto()
    copy.CopyFrom(graph)
    for each in graph_and_bodies(copy):
        for node in each.node:
            text = [attribute for attribute in node.attribute if _attribute_is_text(attribute)]
            if len(text) < len(node.attribute):
                text = [AttributeProto.FromString(attribute.SerializeToString()) for attribute in text]
                del node.attribute[:]
                node.attribute.extend(text)
    return copy


def _restore_skipped_attributes(graph: gs.Graph, source: GraphProto) -> None:
    """Give nodes the attributes that onnx-graphsurgeon skipped (types, sparse tensors, lists of bodies), as read."""
    for node, original in zip(graph.nodes, source.node, strict=True):
        skipped = any(attribute.name not in node.attrs for attribute in original.attribute)
        for attribute in original.attribute:
            if isinstance(node.attrs.get(attribute.name), gs.Graph):
                _restore_skipped_attributes(node.attrs[attribute.name], attribute.g)
        if skipped:
            node.attrs = OrderedDict((each.name, node.attrs.get(each.name, each)) for each in original.attribute)
