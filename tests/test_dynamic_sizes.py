"""Models whose sizes the graph computes, and others that once came out wrong: every size, not only that of the tiny run."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from onnxmerge import compress
from onnxmerge.errors import OptionError

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
SLICE = (
    HEAD
    + """g (float[N,3,H,W] x) => (float[N,4,A,B] y)
<float[16,3,3,3] a, float[4,16,3,3] b, int64[1] two = {2}, int64[1] three = {3}, int64[1] zero = {0}, int64 half = {2}>
{ c = Conv<pads=[1,1,1,1]>(x, a)  r = Relu(c)  s = Shape(r)  h = Gather(s, two)  e = Div(h, half)
  t = Slice(r, zero, e, two)  y = Conv<pads=[1,1,1,1]>(t, b) }"""
)
PAD = (
    HEAD
    + """g (float[N,3,H,W] x) => (float[N,4,H,W] y)
<float[16,3,3,3] a, float[8,16,3,3] b, float[4,8,3,3] o, int64[1] two = {2}, int64[1] three = {3}, int64[6] zeros = {0,0,0,0,0,0}>
{ c = Conv<pads=[1,1,1,1]>(x, a)  r = Relu(c)  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
  s = Shape(x)  q = Shape(p)  hx = Gather(s, two)  hp = Gather(q, two)  wx = Gather(s, three)  wp = Gather(q, three)
  dh = Sub(hx, hp)  dw = Sub(wx, wp)  pads = Concat<axis=0>(zeros, dh, dw)  m = Pad(p, pads)
  d = Conv<pads=[1,1,1,1]>(m, b)  u = Relu(d)  y = Conv<pads=[1,1,1,1]>(u, o) }"""
)
MATMUL_RELU = (
    HEAD
    + """g (float[N,6] x) => (float[N,4] y) <float[6,16] a, float[16,12] b, float[12,4] o>
{ p = MatMul(x, a)  q = Relu(p)  r = MatMul(q, b)  s = Relu(r)  y = MatMul(s, o) }"""
)
TRANSPOSED = (
    HEAD
    + """g (float[N,3,H,W] x) => (float[N,4,A,B] y) <float[32,3,3,3] a, float[32,16,4,4] b, float[4,16,3,3] o, float[32] bias>
{ c = Conv<pads=[1,1,1,1]>(x, a, bias)  r = Relu(c)  u = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(r, b)
  v = Relu(u)  y = Conv<pads=[1,1,1,1]>(v, o) }"""
)
POSITIONS = (
    HEAD
    + """g (float[N,7,6] x) => (float[N,7,4] y) <float[6,16] a, float[7,16] p, float[16,4] o>
{ m = MatMul(x, a)  s = Add(m, p)  r = Relu(s)  y = MatMul(r, o) }"""
)
BETA = (
    HEAD
    + """g (float[N,6] x) => (float[N,4] y) <float[6,16] a, float[16] c, float[16,4] o, float[4] d>
{ h = Gemm(x, a, c)  r = Relu(h)  y = Gemm<beta=0.0>(r, o, d) }"""
)
SINGLE = (
    HEAD
    + """g (float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[9,3,3,3] a, float[4,8,3,3] o, int64[2] sizes = {8,1}>
{ c = Conv<pads=[1,1,1,1]>(x, a)  big, gate = Split<axis=1>(c, sizes)  s = Sigmoid(gate)  t = Mul(big, s)
  y = Conv<pads=[1,1,1,1]>(t, o) }"""
)

SMALL = (1, 3, 32, 32)  # sizes to decide on, which are quick
IMAGES = ((1, 3, 16, 16), (2, 3, 24, 40), (1, 3, 38, 22))
MODELS = {
    "computed-slice": (SLICE, IMAGES),
    "computed-pad": (PAD, IMAGES),
    "matmul-relu": (MATMUL_RELU, ((1, 6), (5, 6))),
    "strided-conv-transpose": (TRANSPOSED, IMAGES),
    "positional-constant": (POSITIONS, ((1, 7, 6), (3, 7, 6))),
    "beta-zero": (BETA, ((1, 6), (5, 6))),
    "single-channel": (SINGLE, ((1, 3, 8, 8), (4, 3, 8, 8))),
}


def written(text: str, path: Path) -> Path:
    """The model with random weights, activations of order one."""
    model, rng = parser.parse_model(text), np.random.default_rng(3)
    for info in model.graph.value_info:
        shape = tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        value = (
            rng.normal(size=shape) * np.sqrt(2 / max(1, np.prod(shape) // max(shape)))
            if len(shape) > 1
            else rng.normal(size=shape)
        )
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), info.name))
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def outputs(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("method", ["prune", "auto"])
@pytest.mark.parametrize("name", MODELS)
def test_every_size_comes_out_as_before(name, method, tmp_path):
    text, shapes = MODELS[name]
    source, target = written(text, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    result = compress(
        source, target, ratio=0.3, method=method, samples=64, verify=False, input_shape=SMALL if "H" in text else None
    )
    assert result.after.parameters < result.before.parameters
    for shape in shapes:
        feeds = {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}
        before, after = outputs(source, feeds), outputs(target, feeds)
        assert after.shape == before.shape
        assert np.isfinite(after).all()


def test_the_bias_behind_a_strided_conv_transpose_is_right(tmp_path):
    source, target = written(TRANSPOSED, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    kept = {}
    for method in ("prune", "reconstruct"):
        result = compress(source, target, ratio=0.5, method=method, samples=64, bench=False, input_shape=SMALL)
        kept[method] = result.fidelity.worst.fidelity
    assert kept["reconstruct"] > max(kept["prune"], 0.3)


def test_the_output_may_not_be_what_the_model_still_needs(tmp_path):
    source = written(MATMUL_RELU, tmp_path / "in.onnx")
    external = tmp_path / "external.onnx"
    onnx.save(onnx.load(source), external, save_as_external_data=True, location="weights.bin", size_threshold=0)
    content = (tmp_path / "weights.bin").read_bytes()
    with pytest.raises(OptionError, match="holds the weights"):
        compress(external, tmp_path / "weights.bin", ratio=0.3, verify=False)
    inputs = tmp_path / "inputs.npy"
    np.save(inputs, np.zeros((32, 6), np.float32))
    with pytest.raises(OptionError, match="holds the calibration"):
        compress(source, inputs, ratio=0.3, verify=False, calibration=str(inputs))
    assert (tmp_path / "weights.bin").read_bytes() == content
    assert np.load(inputs).shape == (32, 6)
