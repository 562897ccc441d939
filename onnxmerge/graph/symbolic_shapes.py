"""Which extents, and which entries of computed shapes, are the same whatever is fed: proved from the graph, not seen in runs.

Each has a *symbol*: `STATIC`, or a name. What has one name is equal in every run. Names begin at the dynamic axes of graph
inputs, and ONNX's shape inference carries them from node to node. It needs operands whole; those that the graph computes are
followed here, entry by entry. What cannot be followed, such as min(height, 16), gets a name of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, TypeProto, helper

from onnxmerge.execution.shapes import VALUE_LIMIT
from onnxmerge.graph.constant_folding import FOLDABLE, evaluate
from onnxmerge.graph.nodes import has_input, is_standard, non_negative_axis
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.export import export_node
from onnxmerge.onnxio.tensors import tensor_of

if TYPE_CHECKING:
    from onnxmerge.graph.tensor_facts import TensorFacts

STATIC = ""
Symbols = np.ndarray  # of str

# Operators that move the entries of their first input, and those that compute each entry from those at its position.
_MOVING = frozenset({"Gather", "Slice", "Split", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Expand", "Tile"})
# fmt: off
_ELEMENTWISE = frozenset({
    "CastLike", "Where", "Add", "Sub", "Mul", "Div", "Mod", "Pow", "Neg", "Abs", "Sign", "Sqrt", "Reciprocal", "Exp", "Log",
    "Floor", "Ceil", "Min", "Max", "Sum", "Clip", "Not", "And", "Or", "Equal", "Greater", "Less",
})
# fmt: on
# By operator: the input that says which axes it changes, and the inputs that say how.
_OPERANDS = {"Expand": (0, (1,)), "Tile": (0, (1,)), "Pad": (3, (1,)), "Slice": (3, (1, 2, 4)), "Resize": (0, (2, 3))}


class SymbolicShapes:
    """The symbols of a model's tensors, found in one pass over its nodes.

    Parameters
    ----------
    facts : TensorFacts
        The model, and the numbers that static extents and entries are.
    """

    def __init__(self, facts: TensorFacts) -> None:
        self._facts = facts
        self._extents: dict[str, Symbols] = {}
        self._entries: dict[str, Symbols] = {}
        self._types: dict[str, int] = {}
        for tensor in facts.model.graph.inputs:
            self._note(tensor, [each if isinstance(each, int) else None for each in tensor.shape or ()])
        for node in facts.model.graph.nodes:
            if any(output.name and facts.constant(output) is None for output in node.outputs):
                self._visit(node)

    def extents(self, tensor: gs.Tensor) -> Symbols:
        """(rank,) symbols of a tensor's extents."""
        if tensor.name not in self._extents:
            is_constant = self._facts.constant(tensor) is not None
            self._extents[tensor.name] = _names(tensor, (len(self._facts.shape(tensor) or ()),), is_constant, "[]")
        return self._extents[tensor.name]

    def entries(self, tensor: gs.Tensor) -> Symbols:
        """Symbols of a tensor's entries, in its shape; one name for all where the graph computes a large one."""
        if tensor.name not in self._entries:
            is_constant, shape = self._facts.constant(tensor) is not None, self._facts.shape(tensor) or ()
            self._entries[tensor.name] = _names(tensor, shape if math.prod(shape) <= VALUE_LIMIT else (), is_constant)
        return self._entries[tensor.name]

    def _note(self, tensor: gs.Tensor, dimensions: list[int | str | None]) -> None:
        """Note a number, a name or nothing for each extent. A number that the run contradicts is not believed."""
        shape = self._facts.shape(tensor)
        if shape is None or len(dimensions) != len(shape):
            return
        symbols = self._extents[tensor.name] = _names(tensor, (len(shape),), False, "[]")
        for axis, (dimension, extent) in enumerate(zip(dimensions, shape, strict=True)):
            if dimension == extent:
                symbols[axis] = STATIC
            elif isinstance(dimension, str) and dimension:
                symbols[axis] = dimension

    def _visit(self, node: gs.Node) -> None:
        if any(True for _ in node.subgraphs()) or not is_standard(node):
            return
        for name, inferred in self._inferred(node).items():
            output = next(each for each in node.outputs if each.name == name)
            self._types[name] = inferred.tensor_type.elem_type
            if inferred.tensor_type.HasField("shape"):
                self._note(output, [each.dim_value or each.dim_param for each in inferred.tensor_type.shape.dim])
        self._follow_operands(node)
        for output, symbols in zip(node.outputs, self._written(node), strict=False):
            if output.name and symbols.shape == self._facts.shape(output):
                self._entries[output.name] = symbols

    def _inferred(self, node: gs.Node) -> dict[str, TypeProto]:
        """What ONNX's shape inference says of the outputs."""
        types, data, model = {}, {}, self._facts.model
        for tensor in node.inputs:
            value = self._facts.value(tensor)
            kind = self._types.get(tensor.name) or self._type(tensor, value)
            kind = TensorProto.FLOAT if kind == TensorProto.BFLOAT16 else kind  # which few operators had before opset 22
            if value is not None and value.size <= VALUE_LIMIT and (self.entries(tensor) == STATIC).all():
                data[tensor.name] = tensor_of(value, tensor.name)
            shape, symbols = self._facts.shape(tensor), self.extents(tensor)
            extents = shape and [symbol or extent for extent, symbol in zip(shape, symbols, strict=True)]
            types[tensor.name] = helper.make_tensor_type_proto(kind, extents)
        try:
            schema = onnx.defs.get_schema(node.op, model.opset, "")
            return onnx.shape_inference.infer_node_outputs(
                schema, export_node(model, node), types, data, {}, list(model.proto.opset_import), model.proto.ir_version
            )
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, onnx.defs.SchemaError):
            return {}

    def _type(self, tensor: gs.Tensor, value: np.ndarray | None) -> int:
        """The data type of a graph input or a constant, or of what shape inference could not follow: most likely float."""
        dtype = tensor.dtype if value is None else value.dtype
        return dtype if isinstance(dtype, int) else helper.np_dtype_to_tensor_dtype(np.dtype(dtype or np.float32))

    def _follow_operands(self, node: gs.Node) -> None:
        """Extents of the output that ONNX does not know, since a part of an operand is not static."""
        output, shape = node.outputs[0], self._facts.shape(node.outputs[0])
        if shape is None or not has_input(node, 0):
            return
        known, before = self.extents(output), self.extents(node.inputs[0])
        found, operands = known, self._operands(node, len(shape))
        if node.op == "ConstantOfShape":
            found = self.entries(node.inputs[0])
        elif node.op == "Reshape" and has_input(node, 1) and self.entries(node.inputs[1]).shape == known.shape:
            found = self._target(node)
        elif operands is not None:
            before = np.concatenate([np.full(len(shape) - len(before), STATIC, object), before])
            stays = [axis not in operands for axis in range(len(shape))]
            is_static = [all(each == STATIC for each in (before[axis], *operands.get(axis, ()))) for axis in range(len(shape))]
            found = np.where(stays, before, np.where(is_static, STATIC, known))
        followed = (known != STATIC) & np.array([symbol == STATIC or symbol.endswith("]") for symbol in found], bool)
        known[followed] = found[followed]

    def _target(self, node: gs.Node) -> Symbols:
        """Of a Reshape: entries of the target. 0 copies; -1 is static where the others have all names of the input."""
        data, target = node.inputs[:2]
        value, before, found = self._facts.value(target), self.extents(data), self.entries(target).copy()
        if value is None:
            return found
        is_static = found == STATIC
        inferred, copied = is_static & (value == -1), is_static & (value == 0) & (not node.attrs.get("allowzero", 0))
        copied[len(before) :] = False
        found[copied] = before[np.flatnonzero(copied)]
        all_others = Counter(filter(None, before)) == Counter(filter(None, found[~inferred]))
        found[inferred] = STATIC if all_others else self.extents(node.outputs[0])[inferred]
        return found

    def _operands(self, node: gs.Node, rank: int) -> dict[int, list[str]] | None:
        """Axis -> symbols of the entries that say what becomes of its extent; None where that is not known."""
        axes_at, indices = _OPERANDS.get(node.op, (0, ()))
        given = [self.entries(node.inputs[index]).reshape(-1) for index in indices if has_input(node, index)]
        given = [symbols for symbols in given if symbols.size]
        if not given or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
        count = len(given[0]) // (1 + (node.op == "Pad"))
        axes = node.attrs.get("axes", range(count) if node.op == "Slice" else range(rank - count, rank))
        if axes_at and has_input(node, axes_at):
            axes = self._facts.value(node.inputs[axes_at]) if (self.entries(node.inputs[axes_at]) == STATIC).all() else None
        if axes is None:
            return None
        where = [non_negative_axis(axis, rank) for axis in axes]
        return {axis: [each for symbols in given for each in symbols[at :: len(where)]] for at, axis in enumerate(where)}

    def _written(self, node: gs.Node) -> Iterator[Symbols]:
        """The symbols of the entries of small outputs."""
        shapes = [self._facts.shape(output) for output in node.outputs if output.name]
        if node.op == "Shape":
            yield self.extents(node.inputs[0])[node.attrs.get("start", 0) : node.attrs.get("end")]
            return
        if any(shape is None or math.prod(shape) > VALUE_LIMIT for shape in shapes) or node.op not in FOLDABLE:
            return
        given = [(self.extents if node.op == "Size" else self.entries)(tensor) for tensor in node.inputs if tensor.name]
        is_static = [symbols == STATIC for symbols in given]
        if node.op in ("Identity", "Cast"):
            yield given[0]
        elif node.op == "Concat":
            yield np.concatenate(given, node.attrs["axis"])
        elif node.op in _MOVING and all(each.all() for each in is_static[1:]):
            yield from self._moved(node, given[0])
        elif node.op in _ELEMENTWISE:
            if node.op == "Where":  # nothing is chosen between equal entries
                one, other = (self._facts.value(tensor) for tensor in node.inputs[1:])
                is_static[0] = is_static[0] | (one == other if one is not None and other is not None else False)
            is_static = np.logical_and.reduce(np.broadcast_arrays(*is_static))
            yield _names(node.outputs[0], is_static.shape, is_static)
        else:
            for output in node.outputs:
                yield _names(output, self._facts.shape(output) or (), all(each.all() for each in is_static))

    def _moved(self, node: gs.Node, symbols: Symbols) -> Iterator[Symbols]:
        """The first input's symbols, where the operator moves them: it is evaluated on their positions."""
        positions = np.arange(symbols.size).reshape(symbols.shape)
        operands = [self._facts.value(tensor) if tensor.name else None for tensor in node.inputs[1:]]
        for moved in evaluate(self._facts.model, export_node(self._facts.model, node), [positions, *operands]):
            yield np.asarray(symbols.reshape(-1)[moved], object)


def _names(tensor: gs.Tensor, shape: tuple[int, ...], is_static: ArrayLike = False, brackets: str = "()") -> Symbols:
    """A name for each position that is not static."""
    names = [f"{tensor.name}{brackets[0]}{number}{brackets[1]}" for number in range(math.prod(shape))]
    return np.where(is_static, STATIC, np.array(names, object).reshape(shape))
