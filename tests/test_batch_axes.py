"""Models with the batch on another axis than 0, such as recurrent ones: they are split, counted and compared along it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from running import run, written

import onnxmerge
from onnxmerge.data import synthetic_inputs
from onnxmerge.data.fed_back import APART, CALLS, fed_back
from onnxmerge.data.first_layers import dense_first_layer
from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import INPUT_ELEMENTS, affordable, inputs_for
from onnxmerge.data.synthetic import Sampler, sampler
from onnxmerge.errors import InputError
from onnxmerge.execution.sessions import open_session
from onnxmerge.execution.tensor_specs import TensorSpec, batch_size
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import InputOptions

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
STEP = """h = Gather<axis=0>(state, zero)  c = Gather<axis=0>(state, one)  a = MatMul(x, w)  b = MatMul(h, u)  s = Add(a, b)
    r = Relu(s)  f = MatMul(r, v)  k = Sigmoid(f)  d = Mul(k, c)  m = Tanh(f)  e = Add(d, m)  o = Tanh(e)  y = MatMul(o, p)
    last = Concat<axis=0>(t1, t2)"""
ON_AXIS_1 = STEP.replace("last =", "t1 = Unsqueeze(o, first)  t2 = Unsqueeze(e, first)  last =")
ON_AXIS_0 = ON_AXIS_1.replace("(state,", "(turned,").replace("last =", "back =")
ON_AXIS_0 = f"turned = Transpose<perm=[1, 0, 2]>(state)  {ON_AXIS_0}  last = Transpose<perm=[1, 0, 2]>(back)"
FREE = """q = ReduceMean<axes=[0, 1], keepdims=0>(state)  a = MatMul(x, w)  s = Add(a, q8)  r = Relu(s)  f = MatMul(r, v)
    y = MatMul(f, p)  last = Relu(state)"""
FREE = FREE.replace("s =", "q8 = MatMul(q, u)  s =")
WIDTHS = {"w": (5, 16), "u": (6, 16), "v": (16, 6), "p": (6, 3)}
SIGNATURES = {
    "named": "g (float[N, 5] x, float[2, N, 6] state) => (float[N, 3] y, float[2, N, 6] last)",
    "not named": "g (float[?, 5] x, float[2, ?, 6] state) => (float[?, 3] y, float[?, ?, ?] last)",
    "two names": "g (float[A, 5] x, float[2, B, 6] state) => (float[C, 3] y, float[D, E, 6] last)",
    "state first": "g (float[2, N, 6] state, float[N, 5] x) => (float[2, N, 6] last, float[N, 3] y)",
}


def recurrent(signature: str, nodes: str = ON_AXIS_1) -> onnx.ModelProto:
    """A step of a recurrent model: two states (2, N, 6), one of them read through 16 channels."""
    model, rng = parser.parse_model(f"{HEAD} {signature} {{ {nodes} }}"), np.random.default_rng(0)
    stored = {name: rng.normal(0, 0.6, shape).astype(np.float32) for name, shape in WIDTHS.items()}
    stored |= {"zero": np.array(0), "one": np.array(1), "first": np.array([0])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items())
    return model


def given(count: int = 60, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in (("x", (count, 5)), ("state", (2, count, 6)))}


def inputs_of(path: Path, calibration: Mapping[str, np.ndarray] | None = None) -> Inputs:
    analysed = analyse_model(path)
    session = open_session(path, optimise=False, threads=1).called(analysed.call)
    return inputs_for(session, analysed.shapes, InputOptions(calibration=calibration, samples=60))


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_the_axis_is_found_by_its_name_or_by_runs(signature: str, tmp_path: Path) -> None:
    call = analyse_model(written(recurrent(signature), tmp_path)).call
    assert call.axes == {"x": 0, "state": 1, "y": 0, "last": 1}


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_an_axis_that_may_have_any_size_is_not_the_batch(signature: str, tmp_path: Path) -> None:
    """What has the name of the batch is taken at its word."""
    call = analyse_model(written(recurrent(signature, FREE), tmp_path)).call
    assert call.axes == ({"x": 0, "state": 1, "y": 0, "last": 1} if "N" in signature else {"x": 0, "y": 0})


@pytest.mark.parametrize("size", [1, 7, 60])
@pytest.mark.parametrize("calibration", [None, given()], ids=["synthetic", "given"])
@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_batches_of_any_size_hold_the_same_inputs(
    signature: str, calibration: dict[str, np.ndarray] | None, size: int, tmp_path: Path
) -> None:
    inputs = inputs_of(written(recurrent(signature), tmp_path), calibration)
    batches = list(inputs.batches(size))
    assert (inputs.count, inputs.axes, inputs.output_axes) == (60, {"x": 0, "state": 1}, {"y": 0, "last": 1})
    assert sum(batch_size(feeds, inputs.axes) for feeds in batches) == 60
    joined = {name: np.concatenate([feeds[name] for feeds in batches], axis) for name, axis in inputs.axes.items()}
    expected = calibration or inputs.take(inputs.indices)
    rounding = 0.0 if calibration else 1e-5  # of states that the model computes
    assert all(np.allclose(joined[name], expected[name], rtol=0.0, atol=rounding) for name in joined)
    _, held_out = inputs.split(0.25, 3)
    (part,) = held_out.batches(60)
    taken = {name: expected[name].take(held_out.indices, axis) for name, axis in inputs.axes.items()}
    assert all(np.allclose(part[name], taken[name], rtol=0.0, atol=rounding) for name in taken)


@pytest.mark.parametrize("method", ["prune", "reconstruct"])
@pytest.mark.parametrize("signature", [SIGNATURES["named"], SIGNATURES["not named"]], ids=["named", "not named"])
def test_it_comes_out_as_with_the_batch_on_axis_0(signature: str, method: str, tmp_path: Path) -> None:
    """The same model with its states turned around is the same problem."""
    feeds = given()
    turned = {"x": feeds["x"], "state": feeds["state"].swapaxes(0, 1)}
    options = {"method": method, "ratio": 0.5, "bench": False, "round_to": 1}
    first = onnxmerge.compress(recurrent(signature), tmp_path / "a.onnx", calibration=feeds, **options)
    other = recurrent("g (float[N, 5] x, float[N, 2, 6] state) => (float[N, 3] y, float[N, 2, 6] last)", ON_AXIS_0)
    second = onnxmerge.compress(other, tmp_path / "b.onnx", calibration=turned, **options)
    assert first.fidelity is not None
    assert second.fidelity is not None
    assert [group.kept for group in first.groups] == [group.kept for group in second.groups] == [8]
    assert first.fidelity.input_count == second.fidelity.input_count == {"prune": 60, "reconstruct": 20}[method]
    for one, same in zip(first.fidelity.outputs, second.fidelity.outputs, strict=True):
        assert one.fidelity < 0.9999
        for name in ("fidelity", "fidelity_low", "relative_l2_mean", "relative_l2_worst", "cosine_worst", "worst_input"):
            assert getattr(one, name) == pytest.approx(getattr(same, name), rel=1e-4)
    outputs = run(tmp_path / "a.onnx", feeds), run(tmp_path / "b.onnx", turned)
    np.testing.assert_allclose(outputs[0][1], outputs[1][1].swapaxes(0, 1), atol=1e-4)


@pytest.mark.parametrize(("signature", "nodes"), [("named", ON_AXIS_1), ("not named", ON_AXIS_1), ("not named", FREE)], ids=str)
def test_states_that_may_be_fed_back_are_named(signature: str, nodes: str, tmp_path: Path) -> None:
    model = recurrent(SIGNATURES[signature], nodes)
    result = onnxmerge.compress(model, tmp_path / "small.onnx", method="prune", ratio=0.5, bench=False)
    for told in (result, onnxmerge.verify(model, tmp_path / "small.onnx", min_cosine=-1.0)):
        assert any("last as state goes into the next call" in text for text in told.warnings) is (nodes is ON_AXIS_1)


@pytest.mark.parametrize(
    ("old", "new", "is_state"),
    [("state", "stateN", True), ("h", "h.out", True), ("cache", "Next_Cache", True), ("x", "x_hat", False), ("x", "max", False)],
)
def test_an_output_that_is_called_otherwise_is_no_state(old: str, new: str, is_state: bool) -> None:
    """What an autoencoder gives back of an image is no image that it might be fed."""
    names = (("told", (1, 4)), (old, (1, 3, 8, 8))), (("features", (1, 2)), (new, (1, 3, 8, 8)))
    inputs, outputs = ([TensorSpec(name, "tensor(float)", np.dtype("f4"), shape) for name, shape in each] for each in names)
    shapes = {spec.name: spec.dims for spec in (*inputs, *outputs)}
    assert fed_back(inputs, outputs, shapes, dict.fromkeys(shapes, 0)) == ({old: new} if is_state else {})


@pytest.mark.parametrize(("first", "is_state"), [(2, True), ("T", False)])
def test_steps_of_a_sequence_are_no_layers_of_a_state(first: int | str, is_state: bool) -> None:
    """(layers, N, 6) may be fed back, what an encoder makes of (steps, N, 6) not."""
    told, old, new = (TensorSpec(name, "tensor(float)", np.dtype("f4"), (first, "N", 6)) for name in ("told", "h0", "made"))
    shapes = {"told": (7, 1), "h0": (2, 1, 6), "made": (2, 1, 6), "y": (1, 3)}
    found = fed_back([told, old], [replace(told, name="y"), new], shapes, {"told": 1, "h0": 1, "made": 1, "y": 0})
    assert found == ({"h0": "made"} if is_state else {})


@pytest.mark.parametrize("batch", ["N", "1"])
def test_without_data_states_are_those_that_the_model_computes(batch: str, tmp_path: Path) -> None:
    """What it gives back to itself, call after call, from zeros: as far from any start as it gets on such inputs."""
    model = recurrent(SIGNATURES["named"].replace("N", batch))
    inputs = inputs_of(written(model, tmp_path))
    for number in range(3):
        position = inputs.indices[number : number + 1]
        state = np.zeros((2, 1, 6), np.float32)
        for call in range(1, CALLS + 1):
            _, state = run(model, {"x": inputs.take(position + call * APART)["x"], "state": state})
        np.testing.assert_allclose(inputs.take(position)["state"], state, atol=1e-5)
    assert "state as the model itself computes" in inputs.description


@pytest.mark.parametrize("batch", ["N", "1"])
def test_states_that_are_replaced_are_not_drawn(batch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """x of the input itself and of the calls before it; one input is drawn as it is to look at the model."""
    drawn: dict[str, int] = defaultdict(int)

    def counted(spec: TensorSpec, *others: Any, **more: Any) -> Sampler:
        made = sampler(spec, *others, **more)

        def draw(generators: Any) -> np.ndarray:
            drawn[spec.name] += len(generators)
            return made.draw(generators)

        return replace(made, draw=draw)

    monkeypatch.setattr(synthetic_inputs, "sampler", counted)
    inputs = inputs_of(written(recurrent(SIGNATURES["named"].replace("N", batch)), tmp_path))
    drawn.clear()
    inputs.take(inputs.indices[:1])
    assert dict(drawn) == {"x": CALLS + 1}


@pytest.mark.parametrize("batch", ["N", "1"])
def test_without_data_a_model_with_states_is_solved(batch: str, tmp_path: Path) -> None:
    """Its first layer reads x whole, so that noise is shaped by it; with a batch of 1 it takes one input a call."""
    model, options = recurrent(SIGNATURES["named"].replace("N", batch)), {"samples": 40, "ratio": 0.5, "bench": False}
    result = onnxmerge.compress(model, tmp_path / "small.onnx", round_to=1, method="reconstruct", **options)
    assert [group.kept for group in result.groups] == [8]


def test_steps_of_a_sequence_are_no_whole_input(tmp_path: Path) -> None:
    """A layer that reads each of (steps, inputs, 5) is not one that reads an input whole, and no noise is shaped by it."""
    text = f"{HEAD} g (float[T, batch, 5] x) => (float[T, batch, 3] y) {{ a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, p) }}"
    model, rng = parser.parse_model(text), np.random.default_rng(0)
    stored = {"w": rng.normal(size=(5, 16)), "p": rng.normal(size=(16, 3))}
    model.graph.initializer.extend(numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items())
    path = written(model, tmp_path)
    assert dense_first_layer(analyse_model(path)) is None
    result = onnxmerge.compress(path, tmp_path / "small.onnx", method="reconstruct", ratio=0.5, samples=40, bench=False)
    assert [group.kept for group in result.groups] == [8]


def test_long_sequences_are_few() -> None:
    """Each is as long as it is, wherever the batch lies."""
    found = [affordable(["x"], {"x": shape}, {"x": axis}) for shape, axis in (((1, 900, 700), 0), ((900, 1, 700), 1))]
    assert found == [INPUT_ELEMENTS // (900 * 700)] * 2


@pytest.mark.parametrize("is_shuffled", [False, True])
def test_calls_of_one_stream_are_held_out_at_its_end(is_shuffled: bool, tmp_path: Path) -> None:
    """Neighbours are alike: the ones would be solved on, and the others checked on."""
    model, feeds, state = recurrent(SIGNATURES["not named"]), given(60), np.zeros((2, 1, 6), np.float32)
    for number in range(60):
        feeds["state"][:, number : number + 1] = state
        _, state = run(model, {"x": feeds["x"][number : number + 1], "state": state})
    order = np.random.default_rng(0).permutation(60) if is_shuffled else np.arange(60)
    inputs = inputs_of(written(model, tmp_path), {"x": feeds["x"][order], "state": feeds["state"][:, order]})
    _, held_out = inputs.split(15, 0)
    assert (held_out.indices.tolist() == list(range(45, 60))) is not is_shuffled
    assert any("follow one another" in text for text in held_out.warnings()) is not is_shuffled


@pytest.mark.parametrize("axis", ["state", "x"])
def test_one_row_is_given_for_all(axis: str, tmp_path: Path) -> None:
    path = written(recurrent(SIGNATURES["not named"]), tmp_path)
    feeds = given(40)
    at = 1 if axis == "state" else 0
    feeds[axis] = feeds[axis].take([0], at)
    (found,) = inputs_of(path, feeds).batches(60)
    assert np.array_equal(found[axis], feeds[axis].repeat(40, at))
    feeds[axis] = given(3)[axis]
    with pytest.raises(InputError, match="the same number of each input is needed"):
        inputs_of(path, feeds)


def test_a_batch_fixed_at_1_is_split_too(tmp_path: Path) -> None:
    """Rows on the axes of size 1 are what whole inputs one behind the other are."""
    path = written(recurrent("g (float[1, 5] x, float[2, 1, 6] state) => (float[1, 3] y, float[2, 1, 6] last)"), tmp_path)
    rows = given(40)
    calls = {"x": rows["x"][:, np.newaxis], "state": np.moveaxis(rows["state"], 1, 0)[:, :, np.newaxis]}
    batches = [list(inputs_of(path, each).batches(8)) for each in (rows, calls)]
    assert len(batches[0]) == len(batches[1]) == 40
    for one, other in zip(*batches, strict=True):
        assert {name: value.shape for name, value in one.items()} == {"x": (1, 5), "state": (2, 1, 6)}
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("count", [1, 12])
def test_files_hold_one_input_or_several(count: int, tmp_path: Path) -> None:
    path, feeds = written(recurrent(SIGNATURES["named"]), tmp_path), given(24)
    (tmp_path / "given").mkdir()
    for number in range(0, 24, count):
        rows = slice(number, number + count)
        part = {"x": feeds["x"][rows], "state": feeds["state"][:, rows]}
        part = {"x": part["x"][0], "state": part["state"][:, 0]} if count == 1 else part
        np.savez(tmp_path / "given" / f"{number:02}.npz", **part)
    analysed = analyse_model(path)
    session = open_session(path, optimise=False, threads=1).called(analysed.call)
    (found,) = inputs_for(session, analysed.shapes, InputOptions(calibration=tmp_path / "given")).batches(60)
    assert all(np.array_equal(found[name], feeds[name]) for name in feeds)


def test_verify_and_bench_count_along_it(tmp_path: Path) -> None:
    source, target = written(recurrent(SIGNATURES["not named"]), tmp_path), tmp_path / "small.onnx"
    onnxmerge.compress(source, target, method="prune", ratio=0.5, round_to=1, verify=False)
    feeds = given(50, 2)
    found = onnxmerge.verify(source, target, calibration=feeds, min_cosine=-1.0).fidelity
    before, after = (run(onnx.load(path), feeds) for path in (source, target))
    assert found.input_count == 50
    for output, y, z, axis in zip(found.outputs, before, after, (0, 1), strict=True):
        y, z = (np.moveaxis(each, axis, 0).reshape(50, -1) for each in (y, z))
        assert output.fidelity == pytest.approx(1 - ((y - z) ** 2).sum() / ((y - y.mean(0)) ** 2).sum(), rel=1e-4)
        errors = np.linalg.norm(y - z, axis=1) / np.linalg.norm(y, axis=1)
        assert output.relative_l2_mean == pytest.approx(errors.mean(), rel=1e-4)
        assert output.worst_input == errors.argmax()
    timed = onnxmerge.bench(source, target, calibration=feeds, batch=4, threads=1)
    assert timed.batch_size == 4


COUNTS = {
    "counts": ("int64[M] n", "f = Cast<to=1>(n)  q = Unsqueeze(f, last)", (1, 40)),
    "counts on axis 1": ("int64[2, ?] n", "f = Cast<to=1>(n)  q = Transpose<perm=[1, 0]>(f)", (2, 40)),
    "a list": ("int64[M] n", "e = Gather<axis=0>(table, n)  q = ReduceMean<axes=[0], keepdims=1>(e)", (1, 7)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_integers_of_other_axes_are_given(name: str, tmp_path: Path) -> None:
    """Those of each input, and a list that is the same for all of them."""
    declared, nodes, shape = COUNTS[name]
    body = f"{nodes}  z = MatMul(x, w)  t = ReduceSum<keepdims=1>(q, last)  s = Add(z, t)  r = Relu(s)  y = MatMul(r, v)"
    model = parser.parse_model(f"{HEAD} g (float[N, 5] x, {declared}) => (float[N, 3] y) {{ {body} }}")
    for key, size in (("w", (5, 16)), ("v", (16, 3)), ("table", (9, 2))):
        value = np.random.default_rng(0).normal(size=size).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, key))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last"))
    counts = np.random.default_rng(1).integers(0, 9, shape)
    feeds = {"x": given(40)["x"], "n": counts if "axis 1" in name else counts[0]}
    options = {"calibration": feeds, "bench": False, "round_to": 1}
    result = onnxmerge.compress(model, tmp_path / "small.onnx", method="prune", ratio=0.5, **options)
    assert result.fidelity is not None
    assert result.fidelity.input_count == 40
    (seen,) = (each.shape for each in result.inputs if each.name == "n")
    assert seen == {"counts": (1,), "counts on axis 1": (2, 1), "a list": (7,)}[name]
    assert onnxmerge.verify(model, tmp_path / "small.onnx", calibration=feeds, min_cosine=-1.0).fidelity.input_count == 40


@pytest.mark.parametrize("outputs", ["float[40, N] y", "float[40, 3] constant, float[40, N] y"], ids=["turned", "beside others"])
def test_classes_are_told_along_the_batch(outputs: str, tmp_path: Path) -> None:
    """Synthetic inputs are chosen by the class scores of each of them."""
    body = "a = MatMul(x, w)  r = Relu(a)  b = MatMul(r, v)  y = Transpose<perm=[1, 0]>(b)  constant = Identity(c)"
    model = parser.parse_model(f"{HEAD} g (float[N, 5] x) => ({outputs}) {{ {body} }}")
    for key, size in (("w", (5, 16)), ("v", (16, 40)), ("c", (40, 3))):
        value = np.random.default_rng(0).normal(size=size).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, key))
    result = onnxmerge.compress(model, tmp_path / "small.onnx", ratio=0.5, bench=False)
    assert [(group.channels, group.kept) for group in result.groups] == [(16, 8)]


def test_a_sequence_in_front_of_the_batch_is_not_read_whole(tmp_path: Path) -> None:
    """A dense layer that reads one step of (steps, N, features) after the other gives no noise for whole inputs."""
    body = "a = MatMul(x, w)  r = Relu(a)  b = MatMul(r, v)  y = MatMul(b, p)"
    model = parser.parse_model(f"{HEAD} g (float[steps, batch, 5] x) => (float[steps, batch, 3] y) {{ {body} }}")
    for name, shape in WIDTHS.items():
        value = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    result = onnxmerge.compress(model, tmp_path / "small.onnx", ratio=0.5, bench=False, round_to=1)
    assert result.fidelity is not None
    assert result.fidelity.input_count == 256
    assert onnxmerge.inspect(model, sensitivity=True).groups[0].sensitivity


@pytest.mark.parametrize("sizes", [{"x": (3, 5)}, {"state": (2, 3, 6)}], ids=["x", "state"])
def test_sizes_that_are_given_for_something_else_do_not_hide_it(sizes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    """Five tokens are no five inputs: without them the axis of the state is found."""
    signature = "g (float[N, 5] x, float[2, ?, 6] state, float[T, 5] tokens) => (float[?, 3] y, float[2, ?, 6] last)"
    mean = "mean = ReduceMean<axes=[0], keepdims=1>(tokens)  read = Add(x, mean)  a = MatMul(read, w)"
    model = recurrent(signature, ON_AXIS_1.replace("a = MatMul(x, w)", mean))
    options = {"input_shape": {"tokens": (7, 5), **sizes}, "method": "prune", "ratio": 0.5, "bench": False}
    shapes = {each.name: each.shape for each in onnxmerge.compress(model, tmp_path / "small.onnx", **options).inputs}
    assert shapes == {"x": (3, 5), "state": (2, 3, 6), "tokens": (7, 5)}


@pytest.mark.parametrize("name", ["2*N", "M"])
def test_two_rows_for_each_input_are_not_the_batch(name: str, tmp_path: Path) -> None:
    """Where there are two inputs of the state too, one row is left, which is broadcast: only larger batches tell."""
    body = "b = Reshape(state, pairs)  q = ReduceMean<axes=[1], keepdims=0>(b)  z = Add(x, q)  s = MatMul(z, w)  r = Relu(s)"
    model = parser.parse_model(f"{HEAD} g (float[N, 5] x, float[M, 5] state) => (float[N, 6] y) {{ {body}  y = MatMul(r, v) }}")
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = name
    for key, value in (("w", np.ones((5, 16))), ("v", np.ones((16, 6)))):
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), key))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 2, 5]), "pairs"))
    assert analyse_model(written(model, tmp_path)).call.axes == {"x": 0, "y": 0}
