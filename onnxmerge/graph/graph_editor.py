"""Edits of one graph: new constants behind inputs of nodes, biases behind nodes, and constants in the place of branches."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from onnxmerge.graph.constant_folding import constant_value
from onnxmerge.graph.layers import Layer
from onnxmerge.graph.layouts import ALIGNMENT
from onnxmerge.graph.nodes import has_input, node_name
from onnxmerge.graph.operators.node_edits import NodeEdit
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.edits import in_range, is_uniform, names_taken, new_constant, new_filled_tensor, unused_name
from onnxmerge.onnxio.mapped_files import Scratch
from onnxmerge.onnxio.model import Model


@dataclass
class GraphEditor:
    """Puts new constants behind inputs of nodes; equal values for one old tensor stay one tensor.

    Attributes
    ----------
    model : Model
        The model whose graph is edited.
    written : dict
        New tensors by name of the old one, data type, shape and digest.
    scratch : Scratch
        Keeps large ones.
    taken : set[str]
        Names that a new tensor cannot have.
    """

    model: Model
    written: dict[tuple[str, str, tuple[int, ...], bytes], gs.Tensor] = field(default_factory=dict)
    scratch: Scratch = field(default_factory=Scratch)
    taken: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.taken = names_taken(self.model)

    def set_input(self, node: gs.Node, index: int, value: np.ndarray, is_shared: bool = False) -> None:
        """Replace one input of one node, leaving other readers of the old tensor alone.

        is_shared: another layer reads it, so that of a Transpose the input is replaced, which that one may read too.
        """
        name = node.inputs[index].name if has_input(node, index) else f"{node_name(node)}.{index}"
        while len(node.inputs) <= index:
            node.inputs.append(gs.Variable.empty())
        computed_by = node.inputs[index].inputs[0] if is_shared and node.inputs[index].inputs else None
        if computed_by is None or computed_by.op != "Transpose":
            node.inputs[index] = self._constant(name, value, bool(node.inputs[index].inputs))
            return
        perm = computed_by.attrs.get("perm", list(range(value.ndim))[::-1])
        stored = self._constant(computed_by.inputs[0].name, value.transpose(np.argsort(perm)))
        node.inputs[index] = gs.Variable(unused_name(name, self.taken), value.dtype)
        transpose = gs.Node("Transpose", computed_by.name, {"perm": perm}, [stored], [node.inputs[index]])
        nodes = self.model.graph.nodes
        nodes.insert(next(i for i, other in enumerate(nodes) if other is node), transpose)

    def _constant(self, name: str, value: np.ndarray, was_computed: bool = False) -> gs.Tensor:
        """A new constant in the place of the tensor called `name`, the same for equal values.

        was_computed: that tensor took no room in the file, so that a value which is the same everywhere takes none either.
        """
        key = (name, str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).digest())
        if key not in self.written:
            is_filled = was_computed and self.model.opset >= 9 and is_uniform(value)
            self.written[key] = (
                new_filled_tensor(self.model, name, value, self.taken)
                if is_filled
                else new_constant(self.model, name, value, self.taken, self.scratch)
            )
        return self.written[key]

    def apply(self, node: gs.Node, edit: NodeEdit) -> None:
        """Carry out what an edit rule asks for."""
        if edit.operator:
            node.op = edit.operator
            node.attrs.clear()
            node.inputs = node.inputs[:1]
        for index, number in edit.added.items():
            tensor = gs.Variable(unused_name(f"{node.inputs[index].name}_edited", self.taken), number.dtype)
            self._insert_add(node.inputs[index], number, tensor, "removed", node)
            node.inputs[index] = tensor
        if edit.added_to_output is not None:
            output = node.outputs[0]
            node.outputs[0] = gs.Variable(unused_name(f"{output.name}_of_kept", self.taken), output.dtype)
            self._insert_add(node.outputs[0], edit.added_to_output, output, "removed", node, behind=True)
        for index, value in edit.inputs.items():
            self.set_input(node, index, value)
        for name, attribute in edit.attributes.items():
            if attribute is None:
                node.attrs.pop(name, None)
            else:
                node.attrs[name] = attribute

    def add_bias(self, node: gs.Node, layer: Layer, bias: np.ndarray) -> None:
        """Add (out,) to the output of the node of a layer, in its own bias where it can have one."""
        if not layer.is_linear:
            self._add_to_gates(node, layer, bias)
        elif not layer.takes_bias:
            self._add_behind(node, bias.reshape(layer.bias_shape))
        else:
            total = self._own_bias(node) + bias
            if node.op == "Gemm":
                node.attrs["beta"] = 1.0
            self.set_input(node, 2, in_range(total, self._dtype(node)))

    def _own_bias(self, node: gs.Node) -> np.ndarray:
        """What the bias of a Conv or a Gemm adds, (out,) or one number."""
        old = constant_value(self.model, node.inputs[2]) if has_input(node, 2) else None
        beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
        return np.zeros(1) if old is None else beta * old.astype(np.float64)

    def write_constant(self, node: gs.Node, layer: Layer, bias: np.ndarray) -> None:
        """Give the readers of a layer that reads nothing any more its own bias plus (out,)."""
        own = self._own_bias(node).reshape(-1) if layer.takes_bias else np.zeros(1)
        value = in_range(own + bias, self._dtype(node))
        shape = [-1 if axis == layer.output_axis else 1 for axis in range(layer.output_rank)]
        constant = new_constant(self.model, node.outputs[0].name, value.reshape(shape), self.taken)
        for reader in list(node.outputs[0].outputs):
            for index in [at for at, tensor in enumerate(reader.inputs) if tensor is node.outputs[0]]:
                reader.inputs[index] = constant

    def fold_join(self, node: gs.Node) -> None:
        """Compute the constant operand of a join, and join image channels by a depthwise convolution.

        ONNX Runtime adds a constant to a tensor that it holds in blocks of channels only after it has changed the layout, and
        changes it back behind; a ResNet-56 without 8 of its 27 blocks takes 0.82 of its time with Add and 0.76 with this.
        """
        values = [(at, constant_value(self.model, tensor)) for at, tensor in enumerate(node.inputs)]
        index, value = next(((at, each) for at, each in values if each is not None), (0, None))
        if value is None or len(values) != 2:
            return
        count = value.shape[1] if value.ndim == 4 and value.shape == (1, value.size, 1, 1) else 0
        count *= value.dtype in (np.float32, np.float16)  # ONNX Runtime convolves nothing else
        if node.op not in ("Add", "Mul") or count == 0 or count % ALIGNMENT:
            self.set_input(node, index, value)
            return
        weight = value.reshape(-1, 1, 1, 1) if node.op == "Mul" else np.ones((count, 1, 1, 1), value.dtype)
        parts = {"weight": weight} if node.op == "Mul" else {"weight": weight, "bias": value.reshape(-1)}
        new = [new_constant(self.model, f"{node.outputs[0].name}_{part}", each, self.taken) for part, each in parts.items()]
        node.inputs, node.op = [node.inputs[1 - index], *new], "Conv"
        node.attrs = {"group": count, "kernel_shape": [1, 1]}

    def _add_to_gates(self, node: gs.Node, layer: Layer, bias: np.ndarray) -> None:
        """Add to the first half of the bias of a recurrent layer, (directions, 2 gates units)."""
        shape = len(layer.stored_weight), 2, bias.size // len(layer.stored_weight)
        old = constant_value(self.model, node.inputs[3]) if has_input(node, 3) else None
        total = np.zeros(shape) if old is None else old.astype(np.float64).reshape(shape)
        total[:, 0] += bias.reshape(shape[0], shape[2])
        self.set_input(node, 3, in_range(total.reshape(shape[0], -1), layer.stored_weight.dtype))

    def _dtype(self, node: gs.Node) -> np.dtype:
        """The type that a layer computes in."""
        values = [constant_value(self.model, tensor) for tensor in node.inputs[:2]]
        return next(value.dtype for value in values if value is not None)

    def _add_behind(self, node: gs.Node, bias: np.ndarray) -> None:
        """Add to the constant of the Add behind a node, or insert an Add."""
        graph, output = self.model.graph, node.outputs[0]
        following = output.outputs
        if len(following) == 1 and following[0].op == "Add" and output not in graph.outputs:
            index = next((i for i, tensor in enumerate(following[0].inputs) if tensor is not output), 0)
            old = constant_value(self.model, following[0].inputs[index])
            if old is not None:
                self.set_input(following[0], index, in_range(old.astype(np.float64) + bias, old.dtype))
                return
        before = gs.Variable(unused_name(f"{output.name}_before_bias", self.taken), output.dtype)
        node.outputs[0] = before
        self._insert_add(before, in_range(bias, self._dtype(node)), output, "bias", node, behind=True)

    def _insert_add(
        self, summand: gs.Tensor, value: np.ndarray, total: gs.Tensor, what: str, neighbour: gs.Node, behind: bool = False
    ) -> None:
        """Insert total = summand + value before or behind a node; what: goes into the names of the node and the constant."""
        nodes = self.model.graph.nodes
        added = new_constant(self.model, f"{total.name}_{what}", value, self.taken)
        position = next(i for i, other in enumerate(nodes) if other is neighbour)
        name = f"{neighbour.name}_{what}" if neighbour.name else ""
        nodes.insert(position + behind, gs.Node("Add", name, inputs=[summand, added], outputs=[total]))
