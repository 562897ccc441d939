"""The graph that is edited, with types: the only module that imports onnx-graphsurgeon, which has none.

A type checker sees the classes below, with the attributes and methods that this package uses. At run time the names are
onnx-graphsurgeon's own classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import GraphProto, SparseTensorProto, TensorProto, ValueInfoProto

if TYPE_CHECKING:
    DataType = np.dtype[Any] | int  # an ONNX data type that numpy lacks is its number in onnx.TensorProto

    class Tensor:
        """What nodes read and write. Tensors with the same name compare equal, so compare with `is`.

        Attributes
        ----------
        name : str
            Empty for an optional input or output that is left out.
        inputs, outputs : list of Node
            The nodes that write the tensor (at most one), and those that read it: one entry for each input that it is.
        dtype, shape
            As declared in the file; None where it says nothing. A dynamic axis is a str.
        """

        name: str
        inputs: list[Node]
        outputs: list[Node]

        @property
        def dtype(self) -> DataType | None: ...
        @property
        def shape(self) -> Sequence[int | str] | None: ...

    class Variable(Tensor):
        """A tensor that is computed, or a graph input."""

        def __init__(
            self, name: str, dtype: DataType | None = None, shape: Sequence[int | str] | None = None, type: str = "tensor_type"
        ) -> None: ...
        @staticmethod
        def empty() -> Variable:
            """Stands for an optional input or output that is left out."""

    class Constant(Tensor):
        """A tensor with a value. Use `stored_values`, which loads nothing; `values` of an external tensor is wrong."""

        def __init__(self, name: str, values: np.ndarray) -> None: ...

    class Node:
        """An operator.

        Attributes
        ----------
        op, name : str
            Operator type, and the name of this node ("" for none).
        domain : str or None
            Of the operator; None or "" is ONNX's own.
        attrs : dict
            Attributes by name, as Python values; bodies are Graph, tensors are Constant.
        inputs, outputs : list of Tensor
            Changing these lists changes the tensors' own lists of nodes too.
        """

        op: str
        name: str
        domain: str | None
        attrs: dict[str, Any]
        inputs: list[Tensor]
        outputs: list[Tensor]

        def __init__(
            self,
            op: str,
            name: str | None = None,
            attrs: dict[str, Any] | None = None,
            inputs: Sequence[Tensor] | None = None,
            outputs: Sequence[Tensor] | None = None,
            domain: str | None = None,
        ) -> None: ...
        def subgraphs(self, recursive: bool = False) -> Iterator[Graph]:
            """The bodies of If, Loop and Scan."""

    class Graph:
        """A graph, or the body of a node.

        Attributes
        ----------
        name : str
            Name of the graph.
        opset : int
            Version of ONNX's own operators.
        nodes : list of Node
            In an order that runs.
        inputs, outputs : list of Tensor
            Graph inputs and outputs; initializers are not among the inputs.
        """

        name: str
        opset: int
        nodes: list[Node]
        inputs: list[Tensor]
        outputs: list[Tensor]

        def subgraphs(self, recursive: bool = False) -> Iterator[Graph]:
            """The bodies of the graph's nodes."""

    class OnnxGraphSurgeonException(Exception):
        """Raised for a graph that onnx-graphsurgeon cannot hold."""

else:
    from onnx_graphsurgeon import Constant, Graph, Node, OnnxGraphSurgeonException, Tensor, Variable

from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

# What a constant holds: the tensor as read from the file, or the array of an edit.
DenseValues = TensorProto | np.ndarray
StoredValues = DenseValues | SparseTensorProto

__all__ = [
    "Constant",
    "DenseValues",
    "Graph",
    "Node",
    "OnnxGraphSurgeonException",
    "StoredValues",
    "Tensor",
    "Variable",
    "declaration",
    "import_graph",
    "stored_values",
]


def import_graph(source: GraphProto, model: onnx.ModelProto) -> Graph:
    """The graph of a file as one that can be edited; nothing is printed and no weight is loaded.

    Functions are left out: they are never edited, and importing them loses their overloads.

    Parameters
    ----------
    source : GraphProto
        The graph.
    model : ModelProto
        Where opsets, producer and IR version are taken from.

    Raises
    ------
    OnnxGraphSurgeonException, KeyError, ValueError, TypeError, AttributeError
        Where onnx-graphsurgeon does not understand the graph; it raises whatever happens to it.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    with G_LOGGER.suppress():
        graph: Graph = OnnxImporter.import_graph(
            source,
            opset=opset,
            import_domains=list(model.opset_import),
            producer_name=model.producer_name,
            producer_version=model.producer_version,
            ir_version=model.ir_version,
        )
    return graph


def stored_values(constant: Constant) -> StoredValues:
    """What a constant holds, without loading it: the tensor as read from the file, or the array of an edit."""
    values: Any = constant._values  # type: ignore[attr-defined]  # `.values` would load it
    stored: StoredValues = values.tensor if isinstance(values, LazyValues) else values
    return stored


def declaration(tensor: Tensor) -> ValueInfoProto:
    """Name, type and shape of a graph input or output."""
    declared: ValueInfoProto = OnnxExporter.export_value_info_proto(tensor, False)
    return declared
