"""A BERT-like encoder with two inputs, token ids and an attention mask: what shrinks is the MLPs and the width of the heads.

`python examples/encoder.py` needs nothing but onnxmerge: the encoder is written here as ONNX text, with random weights.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

import onnxmerge

WIDTH, HEADS, HIDDEN, WORDS, LAYERS = 64, 4, 256, 500, 2
LAYER = """
  q{i} = MatMul (x{i}, wq{i}) p{i} = Reshape (q{i}, split) u{i} = Transpose <perm = [0, 2, 1, 3]> (p{i})
  k{i} = MatMul (x{i}, wk{i}) r{i} = Reshape (k{i}, split) t{i} = Transpose <perm = [0, 2, 3, 1]> (r{i})
  v{i} = MatMul (x{i}, wv{i}) s{i} = Reshape (v{i}, split) h{i} = Transpose <perm = [0, 2, 1, 3]> (s{i})
  l{i} = MatMul (u{i}, t{i}) m{i} = Mul (l{i}, scale) n{i} = Add (m{i}, hidden) a{i} = Softmax <axis = -1> (n{i})
  c{i} = MatMul (a{i}, h{i}) d{i} = Transpose <perm = [0, 2, 1, 3]> (c{i}) e{i} = Reshape (d{i}, join)
  o{i} = MatMul (e{i}, wo{i}) y{i} = Add (x{i}, o{i}) z{i} = LayerNormalization (y{i}, ones, zeros)
  f{i} = MatMul (z{i}, w1{i}) g{i} = Gelu (f{i}) b{i} = MatMul (g{i}, w2{i}) j{i} = Add (z{i}, b{i})
  x{j} = LayerNormalization (j{i}, ones, zeros)"""
TEXT = """<ir_version: 9, opset_import: ["" : 20]>
encoder (int64[n, t] input_ids, int64[n, t] attention_mask) => (float[n, t, 64] states) {
  x0 = Gather (words, input_ids)
  seen = Cast <to = 1> (attention_mask) gone = Sub (one, seen) far = Mul (gone, minus) hidden = Unsqueeze (far, axes)"""


def encoder(random: np.random.Generator) -> onnx.ModelProto:
    """The model, with weights drawn at random."""
    body = "".join(LAYER.format(i=i, j=i + 1) for i in range(LAYERS))
    model = parser.parse_model(f"{TEXT}{body}\n  states = Identity (x{LAYERS})\n}}")
    sizes = {"wq": (WIDTH, WIDTH), "wk": (WIDTH, WIDTH), "wv": (WIDTH, WIDTH), "wo": (WIDTH, WIDTH)}
    sizes |= {"w1": (WIDTH, HIDDEN), "w2": (HIDDEN, WIDTH)}
    arrays = {f"{name}{i}": random.normal(size=size) / size[0] ** 0.5 for i in range(LAYERS) for name, size in sizes.items()}
    arrays |= {"words": random.normal(size=(WORDS, WIDTH)), "ones": np.ones(WIDTH), "zeros": np.zeros(WIDTH)}
    arrays |= {"one": np.array(1.0), "minus": np.array(-1e4), "scale": np.array((WIDTH // HEADS) ** -0.5)}
    integers = {"axes": [1, 2], "split": [0, 0, HEADS, WIDTH // HEADS], "join": [0, 0, WIDTH]}
    model.graph.initializer.extend(numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items())
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in integers.items())
    return model


def main(arguments: list[str] | None = None) -> None:
    """Build the model and sentences of different lengths, compress, check on other sentences."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--output", type=Path, default=Path("encoder-smaller.onnx"))
    options.add_argument("--sentences", type=int, default=128)
    given = options.parse_args(arguments)
    random = np.random.default_rng(0)
    model, lengths = encoder(random), random.integers(4, 33, given.sentences)
    sentences = {"input_ids": random.integers(0, WORDS, (given.sentences, 32))}
    sentences["attention_mask"] = (np.arange(32) < lengths[:, None]).astype(np.int64)
    solved, judged = ({name: array[half::2] for name, array in sentences.items()} for half in (0, 1))
    result = onnxmerge.compress(model, given.output, target="macs=0.7", round_to=4, calibration=solved, bench=False)
    for group in result.groups:
        print(f"{group.name}: {group.kept} of {group.channels} channels kept")
    checked = onnxmerge.verify(model, given.output, calibration=judged, min_cosine=0.8)
    left = result.after.macs / result.before.macs
    print(f"{'passed' if checked.passed else 'failed'}: {left:.0%} of the MACs left, ", end="")
    print(f"fidelity {checked.fidelity.worst.fidelity:.3f} on other sentences")


if __name__ == "__main__":
    main()
