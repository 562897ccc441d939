"""What a pruned model must compute, found without asking the program: the reference with the removed channels zeroed.

Which channels a layer reads no more is seen from its weight, whose numbers are all different. Removing a channel means that it
adds nothing to any layer that reads it, so a Mul with zeros in front of each of these layers says the same, and leaves the graph
between as it was: whatever else depended on the removed channels (a norm, a size used as a number) shows in the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper
from running import run

RECURRENT = ("LSTM", "GRU", "RNN")
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", *RECURRENT)


PRODUCTS = ("MatMul", "Einsum", "Attention", "MultiHeadAttention")


class NotAPart(Exception):
    """The weight of a pruned model is no part of the reference's."""


@dataclass(frozen=True)
class Layer:
    """A node with a constant weight: which input that is, and on which axes the input channels are (weight, data from behind)."""

    node: onnx.NodeProto
    weight_input: int
    weight_axis: int
    axis_from_end: int

    @property
    def weights(self) -> list[str]:
        """The tensors that the masks are read from."""
        return list(self.node.input[1:3]) if self.node.op_type in RECURRENT else [self.node.input[self.weight_input]]

    @property
    def data_input(self) -> int:
        """The other input."""
        return 1 - self.weight_input


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((each.i for each in node.attribute if each.name == name), default)


def einsum_axes(node: onnx.NodeProto) -> tuple[int, int]:
    """The axes that "data,weight->output" sums over: of the weight, and of the data counted from its end."""
    equation = next(each.s.decode() for each in node.attribute if each.name == "equation")
    (data, weight), output = equation.split("->")[0].split(","), equation.split("->")[1]
    summed = next(letter for letter in weight if letter in data and letter not in output)
    return weight.index(summed), len(data) - data.index(summed)


def constant_names(model: onnx.ModelProto) -> set[str]:
    """Tensors that depend on nothing but the file."""
    names = {tensor.name for tensor in model.graph.initializer} | {""}
    for node in model.graph.node:
        bodies = any(each.HasField("g") for each in node.attribute)
        if names.issuperset(node.input) and not bodies and not node.op_type.startswith("Random"):
            names.update(node.output)
    return names - {""}


def layers_of(model: onnx.ModelProto) -> dict[str, Layer]:
    """By the tensor that they write."""
    constants, found = constant_names(model), {}
    for node in model.graph.node:
        if node.op_type not in LAYERS or constants.issuperset(node.input):
            continue
        if node.op_type == "MatMul" and node.input[0] in constants:
            found[node.output[0]] = Layer(node, 0, -1, 2)
        elif node.op_type == "Einsum" and node.input[1] in constants:
            found[node.output[0]] = Layer(node, 1, *einsum_axes(node))
        elif node.op_type in RECURRENT:
            found[next(filter(None, node.output))] = Layer(node, 1, 2, 1)
        elif node.input[1] in constants:
            axes = {"Conv": (1, 0), "ConvTranspose": (0, 0), "MatMul": (-2, 1)}
            gemm = (1 if attribute(node, "transB", 0) else 0, 2 if attribute(node, "transA", 0) else 1)
            found[node.output[0]] = Layer(node, 1, *axes.get(node.op_type, gemm))
    return found


def values_of(model: onnx.ModelProto, feeds: dict[str, np.ndarray], names: set[str]) -> dict[str, np.ndarray]:
    """Constants by name, computed where nodes make them."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in names}
    computed = tuple(sorted(names - stored.keys()))
    if computed:
        stored |= zip(computed, run(model, feeds, computed)[len(model.graph.output) :], strict=True)
    return stored


def origin(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Where each number of `new` stands in the flattened `old`. NotAPart where one stands nowhere."""
    flat = old.reshape(-1)
    order = np.argsort(flat)
    position = np.minimum(np.searchsorted(flat, new, sorter=order), flat.size - 1)
    if not np.array_equal(flat[order[position]], new):
        raise NotAPart
    return order[position]


def read_channels(layer: Layer, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """(input channels,) 1 for those that the layer still reads, else 0."""
    axis = 0 if old.ndim == 1 else layer.weight_axis % old.ndim
    indices = np.unravel_index(origin(old, new), old.shape)
    groups = attribute(layer.node, "group", 1) if layer.node.op_type == "Conv" else 1
    channels = indices[axis] + indices[0] // (old.shape[0] // groups) * old.shape[1] if groups > 1 else indices[axis]
    mask = np.zeros(old.shape[axis] * groups, np.float32)
    mask[channels] = 1
    return mask


def without_states(name: str, old: np.ndarray, new: np.ndarray) -> onnx.TensorProto:
    """What the units of a recurrent layer read of one another, zero for those that the pruned model has no more."""
    (columns,) = {tuple(each) for each in np.unravel_index(origin(old, new), old.shape)[2].reshape(-1, new.shape[2])}
    return numpy_helper.from_array(old * np.isin(np.arange(old.shape[2]), columns).astype(old.dtype), name)


def masked(model: onnx.ModelProto, small: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The reference with zeros for every channel that a layer of the pruned model reads no more."""
    before, after = layers_of(model), layers_of(small)
    before = {key: layer for key, layer in before.items() if key in after}
    old, new = (
        values_of(one, feeds, {name for layer in layers for name in layer.weights})
        for one, layers in ((model, before.values()), (small, [after[key] for key in before]))
    )
    result = onnx.ModelProto.FromString(model.SerializeToString())
    nodes = {name: node for node in result.graph.node for name in node.output if name}
    for number, (key, layer) in enumerate(before.items()):
        if layer.node.op_type in RECURRENT:
            states = (old[layer.node.input[2]], new[after[key].node.input[2]])
            result.graph.initializer.append(without_states(f"states_{number}", *states))
            nodes[key].input[2] = f"states_{number}"
        weight, kept = old[layer.node.input[layer.weight_input]], new[after[key].node.input[after[key].weight_input]]
        if weight.shape == kept.shape and np.array_equal(weight, kept):
            continue
        try:
            mask = read_channels(layer, weight, kept)
        except NotAPart:
            raise NotAPart(f"the weight of {layer.node.op_type} {key} is no part of the reference's") from None
        if mask.all():
            continue
        behind = layer.axis_from_end - 1 if layer.axis_from_end else weight.ndim - 2
        result.graph.initializer.append(numpy_helper.from_array(mask.reshape(-1, *(1,) * behind), f"mask_{number}"))
        node = nodes[key]
        inputs = [node.input[layer.data_input], f"mask_{number}"]
        position = list(result.graph.node).index(node)
        result.graph.node.insert(position, helper.make_node("Mul", inputs, [f"masked_{number}"]))
        node.input[layer.data_input] = f"masked_{number}"
    mask_products(result, small, feeds)
    return result


def mask_products(reference: onnx.ModelProto, small: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """Put zeros in front of every product of two computed tensors that sums over fewer channels in the pruned model.

    Which ones it still reads is seen from the values of its first operand, since all before it is masked already.
    """
    constants = constant_names(reference)
    other = {node.output[0]: node for node in small.graph.node if node.output}
    for node in list(reference.graph.node):
        if node.op_type not in PRODUCTS or constants.intersection(node.input[:2]) or node.output[0] not in other:
            continue
        whole, part = (
            run(model, feeds, (name,))[-1]
            for model, name in ((reference, node.input[0]), (small, other[node.output[0]].input[0]))
        )
        if whole.ndim < 2 or whole.shape[-1] == part.shape[-1]:
            continue
        mask = kept_columns(whole, part)
        name = f"mask_of_{node.output[0]}"
        reference.graph.initializer.append(numpy_helper.from_array(mask, name))
        position = list(reference.graph.node).index(node)
        reference.graph.node.insert(position, helper.make_node("Mul", [node.input[0], name], [f"masked_by_{name}"]))
        reference.graph.node[position + 1].input[0] = f"masked_by_{name}"


def kept_columns(whole: np.ndarray, part: np.ndarray) -> np.ndarray:
    """1 for the columns of each matrix (rows, columns) in a stack that are in `part`, else 0; of extent 1 where they agree."""
    together = [each.reshape(1, -1, each.shape[-1]) for each in (whole, part)]
    try:  # what a ReLU left zero in one matrix alone tells nothing
        return _kept_in_each(*together).reshape(-1)
    except NotAPart:
        if whole.ndim > 3:  # the batch is more rows
            whole, part = (np.concatenate(each, axis=-2) for each in (whole, part))
        return _kept_in_each(whole, part)


def _kept_in_each(whole: np.ndarray, part: np.ndarray) -> np.ndarray:
    mask = np.zeros((*whole.shape[:-2], 1, whole.shape[-1]), np.float32)
    for index in np.ndindex(whole.shape[:-2]):
        distances = np.linalg.norm(whole[index][:, :, None] - part[index][:, None, :], axis=0)
        for of_column in distances.T:
            of_column[mask[index][0] > 0] = np.inf  # one stands for one: those that a ReLU left zero are alike
            if of_column.min() > 1e-3 * np.linalg.norm(whole[index]):
                raise NotAPart("a factor of a product is no part of the reference's")
            mask[index][0, of_column.argmin()] = 1
    for axis in range(mask.ndim - 2):
        if (mask == mask.take([0], axis)).all():
            mask = mask.take([0], axis)
    return mask
