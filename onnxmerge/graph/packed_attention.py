"""The Attention of ONNX Runtime, which holds its projections, put together again from what `onnxio.unfusing` made of it.

Attention(x, w, b) = MultiHeadAttention(q, k, v), where q, k and v are the parts of x w + b. In models of two layers, on one
thread, one operator is 1.17 times as fast where inputs are small (16 positions, width 128), and no faster where they are large.
MultiHeadAttention with a bias for its three inputs is no faster than without, so that it stays taken apart.
"""

from onnxmerge.graph.constant_folding import constant_value
from onnxmerge.graph.nodes import has_input, operator_key
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model


def pack_attentions(model: Model) -> None:
    """Put every Attention that was taken apart together again where query and key are equally wide; unused nodes stay.

    Parameters
    ----------
    model : Model
        Its graph is edited. A MultiHeadAttention that was in the file is left alone: only `unfused` names tensors so.
    """
    for node in model.graph.nodes:
        if operator_key(node) != "com.microsoft.MultiHeadAttention" or not has_input(node, 2):
            continue
        split = _writer(node.inputs[0], "Split")
        is_own = split is not None and node.inputs[0].name.startswith(f"{node.outputs[0].name}//")
        if split is None or not is_own or any(one is not other for one, other in zip(split.outputs, node.inputs, strict=False)):
            continue
        added = _writer(split.inputs[0], "Add")
        product = _writer(split.inputs[0] if added is None else added.inputs[0], "MatMul")
        sizes = constant_value(model, split.inputs[1]) if has_input(split, 1) else split.attrs.get("split")
        heads = node.attrs["num_heads"]
        if product is None or sizes is None or sizes[0] != sizes[1] or any(size % heads for size in sizes):
            continue
        bias = constant_value(model, added.inputs[1]) if added is not None else None
        if bias is not None and bias.shape != (sum(sizes),):
            continue
        nothing = gs.Variable.empty()
        others = [node.inputs[at] if has_input(node, at) else nothing for at in (4, 5)]
        inputs = [*product.inputs, nothing if added is None else added.inputs[1], others[0], nothing, others[1]]
        node.op, node.name = "Attention", product.name
        node.inputs = inputs[: 1 + max(at for at, tensor in enumerate(inputs) if tensor.name)]
        if len({*sizes}) > 1:
            node.attrs["qkv_hidden_sizes"] = [int(size) for size in sizes]


def _writer(tensor: gs.Tensor, operator: str) -> gs.Node | None:
    """The node of this operator that writes a tensor; None where another one does, or none."""
    return tensor.inputs[0] if tensor.inputs and tensor.inputs[0].op == operator else None
