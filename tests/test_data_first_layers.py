"""What the first layers of a graph say of its inputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxmerge import bench, compress, verify
from onnxmerge.data import synthetic, synthetic_inputs
from onnxmerge.data.first_layers import (
    dense_first_layer,
    input_properties,
    properties_of_file,
    trained_mean,
    with_first_layer_noise,
)
from onnxmerge.data.selection import inputs_for
from onnxmerge.execution.sessions import open_session
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import InputOptions

EMBEDDING = """<ir_version: 8, opset_import: ["" : 17]>
g (int64[N,5] ids) => (float[N,4] y)
<float[37,12] table, float[12,16] a, float[16,4] b>
{ e = Gather(table, ids)  m = ReduceMean<axes=[1], keepdims=0>(e)  h = MatMul(m, a)  r = Relu(h)  y = MatMul(r, b) }"""
NORMALISED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,16,16] x) => (float[N,4,14,14] y)
<float[3] one, float[3] zero, float[3] mean, float[3] variance, float[8,3,1,1] a, float[4,8,3,3] b>
{ n = BatchNormalization(x, one, zero, mean, variance)  c = Conv(n, a)  r = Relu(c)  y = Conv(r, b) }"""


def written(text: str, folder: Path, **values: list[float]) -> Path:
    """The model with random weights, or the values given."""
    model, rng = parser.parse_model(text), np.random.default_rng(0)
    for info in model.graph.value_info:
        shape = tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        value = np.array(values.get(info.name, rng.normal(size=shape)), np.float32).reshape(shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, info.name))
    del model.graph.value_info[:]
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def test_ids_range_over_the_whole_embedding(tmp_path):
    path = written(EMBEDDING, tmp_path)
    analysed = analyse_model(path)
    properties = input_properties(analysed.channels.facts)
    assert properties.id_limits == {"ids": 37}
    inputs = inputs_for(open_session(path, optimise=False), analysed.shapes, InputOptions(), 256, properties)
    ids = np.concatenate([feeds["ids"] for feeds in inputs.batches(64)])
    assert (ids.min(), ids.max()) == (0, 36)
    assert compress(path, tmp_path / "small.onnx", ratio=0.25, bench=False).groups


def test_images_are_what_a_first_normalisation_expects(tmp_path):
    mean, deviation = [120.0, 100.0, 90.0], [60.0, 50.0, 40.0]
    variance = [value**2 for value in deviation]
    path = written(NORMALISED, tmp_path, mean=mean, variance=variance, one=[1, 1, 1], zero=[0, 0, 0])
    analysed = analyse_model(path)
    inputs = inputs_for(
        open_session(path, optimise=False), analysed.shapes, InputOptions(), 200, input_properties(analysed.channels.facts)
    )
    images = np.concatenate([feeds["x"] for feeds in inputs.batches(50)])
    np.testing.assert_allclose(images.mean((0, 2, 3)), mean, rtol=0.1)
    np.testing.assert_allclose(images.std((0, 2, 3)), deviation, rtol=0.1)
    given = inputs_for(
        open_session(path, optimise=False),
        analysed.shapes,
        InputOptions(mean=(0.0,)),
        8,
        input_properties(analysed.channels.facts),
    )
    assert next(iter(given.batches(8)))["x"].max() <= 1.0


ONE_HOT = """<ir_version: 8, opset_import: ["" : 17]>
g (int32[N,5] ids) => (float[N,4] y)
<int64[3] rows = {-1, 5, 1}, int64[1] last = {2}, int32[37] all = {ALL}, float[37,12] table, float[12,4] b>
{ wide = Reshape(ids, rows)  same = Equal(wide, all)  hot = Cast<to=1>(same)  e = MatMul(hot, table)  r = Relu(e)
  m = ReduceMean<axes=[1], keepdims=0>(r)  y = MatMul(m, b) }""".replace("ALL", ", ".join(map(str, range(37))))
COUNTED = """<ir_version: 8, opset_import: ["" : 17]>
g (int64[N,5] ids) => (float[N,4] y)
<float[5,16] a, float[16,4] b>
{ f = Cast<to=1>(ids)  h = MatMul(f, a)  r = Relu(h)  y = MatMul(r, b) }"""


@pytest.mark.parametrize("text", [EMBEDDING, ONE_HOT], ids=["looked up", "one-hot"])
def test_all_commands_draw_ids_from_the_range_that_the_graph_knows(text, tmp_path, monkeypatch):
    path, drawn = written(text, tmp_path), []
    made = synthetic.sampler
    monkeypatch.setattr(synthetic_inputs, "sampler", lambda *given, **named: (drawn.append(given[-1]), made(*given, **named))[1])
    found = verify(path, path, provider="cpu", samples=40)
    bench(path, path, provider="cpu", threads=1)
    compress(path, tmp_path / "small.onnx", ratio=0.25, bench=False, samples=40)
    assert set(drawn) == {37}
    assert not [each for each in found.warnings if "0 and 1" in each]


def test_ids_of_an_unknown_range_come_with_a_warning(tmp_path):
    path = written(COUNTED, tmp_path)
    (warning,) = (each for each in verify(path, path, provider="cpu", samples=40).warnings if "0 and 1" in each)
    assert "how large the numbers of ids may be" in warning


@pytest.mark.parametrize("named", [False, True], ids=["array", "mapping"])
def test_calibration_inputs_may_be_arrays(tmp_path, named):
    ids = np.arange(15).reshape(3, 5)
    path = written(EMBEDDING, tmp_path)
    assert verify(path, path, calibration={"ids": ids} if named else ids, provider="cpu").fidelity.input_count == 3


DENSE = {
    "Gemm": "h = Gemm<transB=1>(x, a, c)",
    "MatMul and Add": "t = Transpose(a)  m = MatMul(x, t)  h = Add(c, m)",
    "no bias": "t = Transpose(a)  h = MatMul(x, t)",
}


@pytest.mark.parametrize("first", DENSE, ids=str)
def test_a_dense_first_layer_tells_the_mean_that_it_was_trained_on(first, tmp_path):
    rng = np.random.default_rng(1)
    mean, errors = rng.normal(size=12), -rng.exponential(size=(60, 400))
    samples = mean + 0.5 * rng.normal(size=(400, 12))
    graph = f"{{ {DENSE[first]}  r = Relu(h)  y = MatMul(r, b) }}"
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N,12] x) => (float[N,4] y)
    <float[60,12] a, float[60] c, float[60,4] b> {graph}"""
    path = written(text, tmp_path, a=errors @ samples, c=errors.sum(1))
    analysed = analyse_model(path)
    inputs = inputs_for(open_session(path, optimise=False), analysed.shapes, InputOptions(), 2000)
    shaped = with_first_layer_noise(inputs, *dense_first_layer(analysed), seed=0)
    values = np.concatenate([feeds["x"] for feeds in shaped.batches(500)])
    expected = 0.0 if first == "no bias" else mean
    assert np.abs(values[::3].mean(0) - expected).max() < 0.15  # moved
    assert np.abs(values[2::3].mean(0) - expected).max() < 0.15  # noise


def test_random_weights_tell_no_mean():
    rng = np.random.default_rng(0)
    found = [trained_mean(rng.normal(size=(200, 50)), rng.normal(size=200), 0.5) for _ in range(20)]
    assert np.sqrt(np.square(np.array(found) - 0.5).mean()) < 0.2
    np.testing.assert_array_equal(trained_mean(np.zeros((3, 2)), np.ones(3), 0.5), [0.5, 0.5])


@pytest.mark.parametrize("length", ["L", "320"])
def test_samples_that_a_convolution_reads_are_sounds_of_many_loudnesses(length, tmp_path):
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N,{length}] x) => (float[N,4,M] y)
    <float[16,1,9] a, float[4,16,3] b, int64[1] one = {{1}}, int64[4] pads = {{0, 4, 0, 4}}>
    {{ p = Pad<mode="reflect">(x, pads)  u = Unsqueeze(p, one)  c = Conv(u, a)  r = Relu(c)  y = Conv(r, b) }}"""
    path = written(text, tmp_path)
    analysed = analyse_model(path)
    properties = input_properties(analysed.channels.facts)
    assert properties.sounds == {"x"}
    inputs = inputs_for(open_session(path, optimise=False), analysed.shapes, InputOptions(), 200, properties)
    (sounds,) = (feeds["x"] for feeds in inputs.batches(200))
    loudness = np.log10(np.sqrt((sounds.astype(np.float64) ** 2).mean(1)))
    assert np.histogram(loudness, [-3.1, -2, -1, 0.1])[0].min() > 45
    assert "loudnesses" in inputs.assumed["x"]


def test_what_a_body_reads_is_known_of_a_file_too(tmp_path):
    body = """h () => (float[N,4,M] {0}) {{ u = Unsqueeze(x, one)  {0} = Conv(u, a) }}"""
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N,L] x, bool[1] flag) => (float[N,4,M] y)
    <float[4,1,9] a, int64[1] one = {{1}}>
    {{ y = If(flag) <then_branch = {body.format("t")}, else_branch = {body.format("e")}> }}"""
    path = written(text, tmp_path)
    assert properties_of_file(path, onnx.load(path)).sounds == {"x"}
