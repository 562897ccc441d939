"""Remove channels from a model: the only place where graphs are edited, and always a copy.

Everything is computed from the model as it was analysed; then a fresh copy of it is edited and returned.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxmerge.errors import ModelError
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.channel_propagation import ChannelParameter
from onnxmerge.graph.constant_folding import constant_value
from onnxmerge.graph.layers import Layer, in_range
from onnxmerge.graph.nodes import has_input, node_name
from onnxmerge.graph.operators.node_edits import KeptChannels, NodeEdit
from onnxmerge.graph.operators.table import operator_of
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.edits import is_uniform, names_taken, new_constant, new_filled_tensor, remove_unused_nodes, unused_name
from onnxmerge.onnxio.model import Model, fresh_copy


@dataclass(frozen=True, eq=False)
class Removal:
    """What leaves one group.

    Attributes
    ----------
    group : ChannelGroup
        The channel group.
    kept : ndarray of shape (k,), int
        Indices of the channels that stay, ascending.
    method : str
        The method that chose them.
    expected_error : Mapping[str, float]
        By method, the share of the consumers' output variance that is expected to be lost.
    note : str
        What else the user should know of it.
    scaling : ndarray of shape (n, k) or None
        The matrix that consumers absorb, x ~ scaling x[kept]; None where they are not updated by one.
    """

    group: ChannelGroup
    kept: np.ndarray
    method: str
    expected_error: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    scaling: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Replacement:
    """New numbers of one layer.

    Attributes
    ----------
    weight : ndarray
        Its weight in the layout of the file, all channels still in it.
    bias : ndarray of shape (out,) or None
        Added to its output; None where nothing is added.
    """

    weight: np.ndarray
    bias: np.ndarray | None = None


def rewrite(channels: Channels, removals: Sequence[Removal], replacements: Mapping[str, Replacement]) -> Model:
    """A new model without the removed channels; the one that `channels` describes stays as it is.

    Parameters
    ----------
    channels : Channels
        The channel analysis of the model.
    removals : sequence of Removal
        Which channels stay of each group that shrinks.
    replacements : Mapping[str, Replacement]
        New weights and biases by key of the layer.

    Returns
    -------
    Model
        Nodes that nothing reads and unused initializers are gone too.

    Raises
    ------
    ModelError
        The groups of a convolution would keep different numbers of channels.

    Examples
    --------
    >>> from onnx import parser
    >>> from onnxmerge.graph.channel_analysis import analyse_channels
    >>> from onnxmerge.graph.tensor_facts import TensorFacts
    >>> from onnxmerge.onnxio.export import export
    >>> from onnxmerge.onnxio.model import from_proto
    >>> model = from_proto(parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     mlp (float[1, 2] x) => (float[1, 2] y) <float[2, 3] v = {1, 2, 3, 4, 5, 6}, float[3, 2] w = {1, 2, 3, 4, 5, 6}>
    ...     { hidden = Gemm(x, v)  active = Relu(hidden)  y = Gemm(active, w) }'''))
    >>> channels = analyse_channels(TensorFacts(model, {"x": (1, 2), "hidden": (1, 3), "active": (1, 3), "y": (1, 2)}))
    >>> small = rewrite(channels, [Removal(channels.groups[0], np.array([0, 2]), "prune")], {})
    >>> [list(tensor.dims) for tensor in export(small).graph.initializer]
    [[2, 2], [2, 2]]
    """
    kept = KeptChannels(channels, channels.kept_mask((removal.group, removal.kept) for removal in removals))
    filled = {layer.key for layer in channels.layers if layer.is_filled}
    replacements = {key: each for key, each in replacements.items() if key not in filled}
    weights = [(layer, _new_weight(layer, kept, replacements)) for layer in channels.layers]
    parameters = [(each[0], new) for each in channels.parameters_by_input() if (new := _new_parameter(each, kept)) is not None]
    edits = list(_node_edits(kept))
    model = fresh_copy(channels.model)
    copies = {id(old): new for old, new in zip(channels.model.graph.nodes, model.graph.nodes, strict=True)}
    editor = _GraphEditor(model)
    for layer, weight in weights:
        if weight is not None:
            is_shared = layer.key in channels.shared_weight_keys
            editor.set_input(copies[id(layer.node)], layer.weight_input, weight, is_shared)
    for parameter, value in parameters:
        node = copies[id(parameter.node)]
        editor.set_input(node, parameter.input_index, value)
        if parameter.is_depthwise:
            node.attrs["group"] = len(value) // _depth_multiplier(parameter)
    for node, edit in edits:
        editor.apply(copies[id(node)], edit)
    for layer in channels.layers:
        replacement = replacements.get(layer.key)
        if replacement is not None and replacement.bias is not None:
            editor.add_bias(copies[id(layer.node)], layer, replacement.bias[kept.mask(layer.out_ids.reshape(-1))])
    remove_unused_nodes(model)
    return model


def _node_edits(kept: KeptChannels) -> Iterator[tuple[gs.Node, NodeEdit]]:
    """New channel counts and positions of nodes that channels pass."""
    for node in kept.channels.model.graph.nodes:
        rule = operator_of(node).edit
        if rule is None or not any(tensor.name in kept.channels.tensor_ids for tensor in (*node.inputs, *node.outputs)):
            continue
        edit = rule(kept, node)
        if edit is not None:
            yield node, edit


def _new_weight(layer: Layer, kept: KeptChannels, replacements: Mapping[str, Replacement]) -> np.ndarray | None:
    """The weight in the layout of the file, replaced, without removed channels; None where nothing changes."""
    replacement = replacements.get(layer.key)
    out_mask, in_mask = kept.mask(layer.out_ids), kept.mask(layer.in_ids)
    if out_mask.all() and in_mask.all():
        return None if replacement is None else replacement.weight
    for mask in (out_mask, in_mask):
        counts = mask.sum(1)
        if (counts != counts[0]).any() or counts[0] == 0:
            raise ModelError(f"{layer.name}: groups of a convolution would keep {counts.tolist()} channels")
    weight = layer.canonical(layer.stored_weight if replacement is None else replacement.weight)
    return layer.stored(np.stack([weight[g][out_mask[g]][:, in_mask[g]] for g in range(len(weight))]))


def _new_parameter(axes: Sequence[ChannelParameter], kept: KeptChannels) -> np.ndarray | None:
    """A per-channel constant without the entries of removed channels; None where none are removed. axes: it, for each axis."""
    tensor = axes[0].node.inputs[axes[0].input_index]
    value = whole = kept.facts.constant(tensor)
    for each in axes:
        if value is None:
            raise ValueError(f"input {each.input_index} of {node_name(each.node)} is no constant")
        smaller = kept.of_kept(value, each.ids, tensor.name)
        value = value if smaller is None else smaller
    return None if value is whole else value


def _depth_multiplier(parameter: ChannelParameter) -> int:
    """Output channels for each input channel of a depthwise convolution."""
    return parameter.ids.size // int(parameter.node.attrs["group"]) if parameter.node.op == "Conv" else 1


@dataclass
class _GraphEditor:
    """Puts new constants behind inputs of nodes; equal values for one old tensor stay one tensor.

    Attributes
    ----------
    model : Model
        The model whose graph is edited.
    written : dict
        New tensors by name of the old one, data type, shape and bytes.
    taken : set[str]
        Names that a new tensor cannot have.
    """

    model: Model
    written: dict[tuple[str, str, tuple[int, ...], bytes], gs.Tensor] = field(default_factory=dict)
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
        key = (name, str(value.dtype), value.shape, value.tobytes())
        if key not in self.written:
            make = new_filled_tensor if was_computed and self.model.opset >= 9 and is_uniform(value) else new_constant
            self.written[key] = make(self.model, name, value, self.taken)
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
            old = constant_value(self.model, node.inputs[2]) if has_input(node, 2) else None
            beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
            total = bias if old is None else beta * old.astype(np.float64) + bias
            if node.op == "Gemm":
                node.attrs["beta"] = 1.0
            self.set_input(node, 2, in_range(total, self._dtype(node)))

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
