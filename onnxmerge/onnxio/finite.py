"""Weights, and other arrays, that hold NaN or infinity."""

from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxmerge.onnxio.tensors import array_of

# Operators whose constant inputs are weights -> what their inputs are called in a sentence
INPUT_NAMES = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), ("input", "weight", "bias")),
    "MatMul": ("left matrix", "weight"),
    "BatchNormalization": ("input", "scale", "bias", "mean", "variance"),
}


def input_name(op_type: str, position: int) -> str:
    """What the input of an operator at a position is called in a sentence: "weight", "input 3"."""
    names = INPUT_NAMES.get(op_type, ())
    return names[position] if position < len(names) else f"input {position}"


def is_finite(array: np.ndarray) -> bool:
    """Whether an array holds neither NaN nor infinity; one that holds no floating-point numbers does not."""
    if array.dtype.kind in "biuOSUmM":
        return True
    # numpy's own functions do not know bfloat16 and float8
    return bool(np.isfinite(array if array.dtype.kind in "fc" else array.astype(np.float32)).all())


def weights_not_finite(proto: ModelProto, folder: Path) -> list[str]:
    """A sentence for every initializer that is a weight and holds NaN or infinity: "the weight of conv_3 holds NaN or infinity".

    What `INPUT_NAMES` lists is a weight. Elsewhere infinity may be meant (a mask, a bound), and so may a single NaN (a filler).
    """
    readers = {name: (node, place) for node in reversed(proto.graph.node) for place, name in enumerate(node.input)}
    found = []
    for tensor in proto.graph.initializer:
        array = array_of(tensor, folder)
        if is_finite(array):
            continue
        node, place = readers.get(tensor.name, (None, 0))
        if node is not None and node.op_type in INPUT_NAMES:
            where = f"the {input_name(node.op_type, place)} of {node.name or tensor.name}"
        elif array.size > 1 and np.isnan(array.astype(np.float64)).any():
            where = f"the initializer {tensor.name}"
        else:
            continue
        found.append(f"{where} holds NaN or infinity")
    return found
