"""Small edits of a graph: new constants, and the removal of nodes whose outputs nobody reads."""

from __future__ import annotations

import numpy as np
import onnx
from ml_dtypes import finfo

from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.bodies import OUTPUT_MARK
from onnxmerge.onnxio.mapped_files import Scratch
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.traversal import names_read, tensor_names

BLOCK = 1 << 22  # numbers that are looked at at a time


def names_taken(model: Model) -> set[str]:
    """The names that a new tensor cannot have.

    Names as read stay taken: what was said about the tensor of that name (annotations, metadata) is not true of a new one.
    """
    return tensor_names(model.graph) | model.names_as_read


def unused_name(hint: str, taken: set[str]) -> str:
    """The hint, or the hint with a number behind it, that is not taken yet; it is added to `taken`."""
    name, number = hint, 0
    while not name or name in taken:
        number += 1
        name = f"{hint}_{number}"
    taken.add(name)
    return name


def new_constant(
    model: Model, name_hint: str, array: np.ndarray, taken: set[str] | None = None, scratch: Scratch | None = None
) -> gs.Constant:
    """A constant under a name that nothing in the model has.

    Parameters
    ----------
    model : Model
        Where the constant will be used; it is not changed.
    name_hint : str
        Taken as it is where it is free, else with a number behind it.
    array : ndarray
        The values, of any dtype that ONNX has; they are copied, denormal ones as zeros.
    taken : set of str, optional
        `names_taken(model)`, kept by callers that make many constants; the new name is added to it.
    scratch : Scratch, optional
        Keeps large values; by default they stay in memory.

    Raises
    ------
    KeyError
        For a dtype that ONNX lacks.

    Examples
    --------
    >>> from onnx import parser
    >>> from onnxmerge.onnxio.export import export
    >>> from onnxmerge.onnxio.model import from_proto
    >>> model = from_proto(parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     g (float[2] x) => (float[2] y) <float[2] b = {1, 2}> { y = Add(x, b) }'''))
    >>> model.graph.nodes[0].inputs[1] = new_constant(model, "b", np.array([3, 4], np.float32))
    >>> [tensor.name for tensor in export(model).graph.initializer]
    ['b_1']
    """
    name = unused_name(name_hint, names_taken(model) if taken is None else taken)
    native = array.dtype.newbyteorder("=")
    onnx.helper.np_dtype_to_tensor_dtype(native)  # raises here, not at export, for a dtype that ONNX lacks
    values = without_denormals(np.array(array, native, order="C"))
    return gs.Constant(name, values if scratch is None else scratch.kept(values))


def without_denormals(array: np.ndarray) -> np.ndarray:
    """The same array (C order), its denormal numbers set to zero: they make kernels on a CPU several times slower.

    float16 keeps its own, which are as large as 6e-5: ONNX Runtime computes with them in float32, where they are normal.
    """
    if array.dtype.kind == "f" and array.dtype.itemsize > 2:
        flat, tiny = array.reshape(-1), np.finfo(array.dtype).tiny
        for part in np.split(flat, range(BLOCK, flat.size, BLOCK)):
            part[np.abs(part) < tiny] = 0
    return array


def in_range(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floating-point values in another data type; those beyond its range become its largest number, and not infinity.

    Examples
    --------
    >>> in_range(np.array([1.0, -1e5]), np.dtype(np.float16)).tolist()
    [1.0, -65504.0]
    """
    limits = finfo(dtype)
    return np.asarray(np.clip(values, float(limits.min), float(limits.max)), dtype)


def is_uniform(array: np.ndarray) -> bool:
    """Whether an array holds one number everywhere."""
    return array.size > 0 and bool((array == array.flat[0]).all())


def new_filled_tensor(model: Model, name_hint: str, array: np.ndarray, taken: set[str]) -> gs.Variable:
    """An array that `is_uniform` as the output of a new ConstantOfShape (opset 9 or later), which takes no room in the file."""
    shape = new_constant(model, f"{name_hint}_shape", np.array(array.shape, np.int64), taken)
    tensor = gs.Variable(unused_name(name_hint, taken), array.dtype)
    fill = {"value": new_constant(model, tensor.name, array.reshape(-1)[:1], set())}
    model.graph.nodes.insert(0, gs.Node("ConstantOfShape", tensor.name, fill, [shape], [tensor]))
    return tensor


def remove_unused_nodes(model: Model) -> None:
    """Remove the nodes whose outputs nobody reads; graph inputs and outputs stay. Unused initializers go at export."""
    _remove_unused_nodes(model.graph)


def _remove_unused_nodes(graph: gs.Graph) -> None:
    for body in graph.subgraphs():
        _remove_unused_nodes(body)
    producers = {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}
    marks = [tensor.name for node in graph.nodes for tensor in node.outputs if node.name.startswith(OUTPUT_MARK)]
    pending, used = [*(tensor.name for tensor in graph.outputs), *marks], set()
    while pending:
        node = producers.get(pending.pop())
        if node is None or id(node) in used:
            continue
        used.add(id(node))
        pending.extend(names_read(node))
    for node in graph.nodes:
        if id(node) not in used:
            _detach(node)
    graph.nodes[:] = [node for node in graph.nodes if id(node) in used]


def _detach(node: gs.Node) -> None:
    """Take the node, and the nodes in its bodies, out of the lists of its tensors' consumers."""
    for body in node.subgraphs():
        for inner in body.nodes:
            _detach(inner)
    node.inputs.clear()
    node.outputs.clear()
