"""Shapes, sizes, bounds and indices that the graph computes from sizes or from data: right at sizes that no analysis ran."""

from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from random_graphs import generate
from random_graphs.masked_oracle import masked
from running import analysed, relative_error, run

from onnxmerge.errors import ModelError
from onnxmerge.execution.shapes import observe
from onnxmerge.graph.symbolic_shapes import STATIC
from onnxmerge.pipeline.compress import compress

pytestmark = pytest.mark.usefixtures("harmless_models")

HEAD = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,3,H,W] x, bool flag) => (float[N,4,A,B] y)
<int64[1] k1 = {1}, int64[1] k2 = {2}, int64[1] k5 = {5}, int64[1] k8 = {8}, int64[1] k16 = {16}, int64[1] last = {-1},
 int64[1] zero = {0}, int64 one = {1}, int64 sixteen = {16}, int64[3] three = {0,1,2},
 int64[4] ones = {1,1,1,1}, int64[4] keep = {0,0,0,0}, int64[4] merge = {0,8,-1,1},
 float[9,1,1] weights = {1,2,3,4,5,6,7,8,9}>
{ [a] c = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(c)  s = Shape(r)  n = Gather(s, zero)  channels = Gather(s, k1)  h = Gather(s, k2)
  wide = Shape<start=3>(r)
  over = Sub(h, k8)  some = Min(over, k2)  low = Min(h, k16)  high = Max(h, k16) """
TAIL = "  [b] y = Conv<pads=[1,1,1,1]>(t, v) }"
MODELS = {  # what is computed, and why the channels cannot go
    "reshape-min": ("target = Concat<axis=0>(zero, k8, low, last)  t = Reshape(r, target)", ""),
    "reshape-max": ("target = Concat<axis=0>(n, channels, last, high)  t = Reshape(r, target)", ""),
    "reshape-clip": (
        "l = Squeeze(low)  e = Clip(l, one, sixteen)  u = Unsqueeze(e, zero)"
        "  target = Concat<axis=0>(n, channels, u, last)  t = Reshape(r, target)",
        "",
    ),
    "reshape-where": ("target = Where(flag, merge, keep)  t = Reshape(r, target)", "Reshape to a shape"),
    "reshape-where-of-shapes": (
        "m = Concat<axis=0>(n, channels, last, k1)  target = Where(flag, m, s)  t = Reshape(r, target)",
        "",
    ),
    "reshape-channels-by-min": (
        "e = Min(h, k8)  target = Concat<axis=0>(n, e, last, wide)  t = Reshape(r, target)",
        "Reshape to a shape",
    ),
    "reshape-halves": (
        "d = Div(channels, k2)  target = Concat<axis=0>(n, k2, d, h, wide)  p = Reshape(r, target)"
        "  q = Transpose<perm=[0,2,1,3,4]>(p)  t = Reshape(q, s)",
        "",
    ),
    "reshape-inferred": (
        "target = Concat<axis=0>(n, k2, last, h, wide)  p = Reshape(r, target)  q = Transpose<perm=[0,2,1,3,4]>(p)"
        "  back = Concat<axis=0>(n, last, h, wide)  t = Reshape(q, back)",
        "",
    ),
    "shuffle-by-min": (
        "e = Mul(some, k2)  f = Max(e, k1)  target = Concat<axis=0>(n, f, last, h, wide)  p = Reshape(r, target)"
        "  q = Transpose<perm=[0,2,1,3,4]>(p)  t = Reshape(q, s)",
        "Reshape to a shape",
    ),
    "expand-max": ("g = GlobalAveragePool(r)  target = Concat<axis=0>(n, channels, high, wide)  t = Expand(g, target)", ""),
    "expand-where": ("g = GlobalAveragePool(r)  target = Where(flag, ones, s)  t = Expand(g, target)", "Expand to a shape"),
    "expand-where-of-shapes": (
        "g = GlobalAveragePool(r)  m = Concat<axis=0>(n, channels, low, wide)  target = Where(flag, m, s)  t = Expand(g, target)",
        "",
    ),
    "resize-max": ("sizes = Concat<axis=0>(n, channels, high, wide)  t = Resize(r, , , sizes)", ""),
    "resize-where": ("m = Concat<axis=0>(n, k8, low, wide)  sizes = Where(flag, m, s)  t = Resize(r, , , sizes)", ""),
    "slice-by-min": ("e = Add(some, k5)  t = Slice(r, some, e, k1)", "Slice of channels with bounds"),
    "slice-of-positions": ("t = Slice(r, zero, low, k2)", ""),
    "slice-of-channels": ("d = Div(channels, k2)  e = Sub(channels, d)  t = Slice(r, e, channels, k1)", ""),
    "gather-by-min": ("e = Add(some, three)  t = Gather<axis=1>(r, e)", "Gather of channels with indices"),
    "pad-by-min": (
        "rest = Sub(k2, some)  p = Concat<axis=0>(zero, some, zero, zero, zero, rest, zero, zero)  t = Pad(r, p)",
        "Pad with widths",
    ),
    "split-by-min": (
        "e = Sub(k8, some)  p = Concat<axis=0>(some, e)  l, m = Split<axis=1>(r, p)  t = Concat<axis=1>(m, l)",
        "Split into sizes",
    ),
    "one-channel-expanded": ("m = ReduceMean<axes=[1]>(x)  e = Expand(m, s)  q = Sigmoid(e)  t = Mul(r, q)", ""),
    "zeros-of-a-shape": ("z = ConstantOfShape(s)  t = Sum(r, z)", ""),
    "expanded-to-computed-channels": (
        "m = ReduceMean<axes=[1]>(x)  e = Add(some, k8)  f = Sub(e, some)  p = Concat<axis=0>(n, f, h, wide)  q = Expand(m, p)"
        "  t = Add(q, r)",
        "whose channels cannot be removed",
    ),
    "layer-norm-scaled-by-channel": ("p = Slice(weights, zero, k8, zero)  t = LayerNormalization<axis=-1>(r, p)", ""),
}
HEIGHTS = (8, 16, 48)
"""None of them is a height that the analysis runs: it takes usual sizes of images."""


def built(computed: str, image: str = "[N,3,H,W]", batch: int = 2) -> onnx.ModelProto:
    """The model, with a consumer that reads as many channels as it is given."""
    model, rng = parser.parse_model(HEAD.replace("[N,3,H,W]", image) + computed + TAIL), np.random.default_rng(0)
    model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=(8, 3, 3, 3)).astype(np.float32), "w"))
    channels = run(model_without_consumer(model), feeds_of(16, batch=batch))[0].shape[1]
    model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=(4, channels, 3, 3)).astype(np.float32), "v"))
    return model


def model_without_consumer(model: onnx.ModelProto) -> onnx.ModelProto:
    shorter = onnx.ModelProto.FromString(model.SerializeToString())
    del shorter.graph.node[-1], shorter.graph.output[:]
    shorter.graph.output.append(onnx.ValueInfoProto(name="t"))
    return shorter


def feeds_of(height: int, flag: bool = True, batch: int = 2) -> dict[str, np.ndarray]:
    images = np.random.default_rng(height).normal(size=(batch, 3, height, 16)).astype(np.float32)
    return {"x": images, "flag": np.array(flag)}


@pytest.mark.parametrize("name", MODELS)
def test_right_at_sizes_that_were_not_seen(name: str, tmp_path: Path) -> None:
    computed, why = MODELS[name]
    model, target = built(computed), tmp_path / "out.onnx"
    with pytest.raises(ModelError, match=why) if why else nullcontext():
        compress(model, target, ratio=0.5, method="prune", round_to=1, verify=False, bench=False, threads=1)
        small = onnx.load(target)
        for height, flag in product(HEIGHTS, (True, False)):
            feeds = feeds_of(height, flag)
            assert relative_error(run(masked(model, small, feeds), feeds), run(small, feeds)) < 1e-5


def test_squeeze_leaves_the_axis_of_a_single_channel(tmp_path: Path) -> None:
    text = "p = GlobalAveragePool(r)  q = Squeeze(p)  d = Relu(q)  e = Unsqueeze(d, k1)  f = Unsqueeze(e, k1)  t = Mul(r, f)"
    model, feeds = built(text, "[1,3,16,16]", batch=1), feeds_of(16, batch=1)
    compress(model, tmp_path / "out.onnx", ratio=0.9, method="prune", round_to=1, verify=False, bench=False, threads=1)
    small = onnx.load(tmp_path / "out.onnx")
    assert [1, 3, 3, 3] in [list(tensor.dims) for tensor in small.graph.initializer]
    assert relative_error(run(masked(model, small, feeds), feeds), run(small, feeds)) < 1e-5


def check_symbols(model: onnx.ModelProto, runs: list[dict[str, np.ndarray]], folder: Path) -> int:
    """Static extents and entries are the same in every run, and those of one name are equal; how many names were met twice."""
    facts = analysed(model, folder).channels.facts
    tensors = {tensor.name: tensor for node in facts.model.graph.nodes for tensor in node.outputs if tensor.name in facts.shapes}
    met_again = 0
    for feeds in runs:
        seen, numbers = observe(model.SerializeToString(), feeds), {}
        for name, tensor in tensors.items():
            symbols, before, now = facts.symbols.extents(tensor), np.array(facts.shapes[name]), np.array(seen[name].shape)
            if name in facts.values and facts.symbols.entries(tensor).shape == seen[name].shape:
                entries = facts.symbols.entries(tensor).reshape(-1)
                symbols = np.concatenate([symbols, entries])
                before, now = (np.append(one, other) for one, other in ((before, facts.values[name]), (now, seen[name].value)))
            for symbol, first, number in zip(symbols, before, now, strict=True):
                assert (first if symbol == STATIC else numbers.setdefault(symbol, number)) == number, (name, symbol)
                met_again += symbol in numbers
    return met_again


@pytest.mark.parametrize("name", ["reshape-where-of-shapes", "reshape-halves", "pad-by-min", "resize-max"])
def test_symbols_hold_at_every_size(name: str, tmp_path: Path) -> None:
    feeds = [feeds_of(height, flag) for height, flag in ((8, True), (48, False))]
    assert check_symbols(built(MODELS[name][0]), feeds, tmp_path) > 10


def test_symbols_of_random_graphs_hold(tmp_path: Path) -> None:
    for graph in [graph for graph in map(generate, range(20_000, 20_010)) if graph.is_dynamic]:
        check_symbols(graph.model, [graph.feeds(0), graph.feeds(1)], tmp_path)
