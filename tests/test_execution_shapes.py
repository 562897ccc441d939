"""Observations of every tensor on tiny inputs."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxmerge.errors import InputError, ModelError
from onnxmerge.execution import shapes
from onnxmerge.execution.example_feeds import dynamic_axes, example_feeds, example_shapes
from onnxmerge.execution.sessions import open_session
from onnxmerge.execution.shapes import observe
from onnxmerge.execution.tensor_specs import TensorSpec
from onnxmerge.execution.trial_runs import observe_twice

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
CONV = """g (float[N,3,H,W] x) => (float[N,4] y) <float[4,3,3,3] w> {
    c = Conv <pads = [1,1,1,1]> (x, w)
    s = Shape(c)
    big = ConstantOfShape(s)
    a = Add(c, big)
    p = GlobalAveragePool(a)
    y = Flatten(p)
}"""
SEQUENCES = """g (float[N,4] x) => (float[N,4] y) {
    s = SplitToSequence(x)
    o = Optional(x)
    h = OptionalHasElement(o)
    v = OptionalGetElement(o)
    y = Relu(v)
}"""
FIXED = "g (float[2,3] x) => (float[2,3] y) { r = Relu(x)\n y = Neg(r) }"


def parsed(text: str) -> onnx.ModelProto:
    model = parser.parse_model(HEADER + text)
    for declared in model.graph.value_info:  # the parser's way to write a weight without its values
        dims = [dim.dim_value for dim in declared.type.tensor_type.shape.dim]
        model.graph.initializer.append(numpy_helper.from_array(np.full(dims, 0.5, np.float32), declared.name))
    del model.graph.value_info[:]
    return model


def test_shapes_types_and_small_integers():
    seen = observe(parsed(CONV).SerializeToString(), {"x": np.ones((1, 3, 8, 6), np.float32)})
    assert {name: found.shape for name, found in seen.items()} == {
        "x": (1, 3, 8, 6),
        "c": (1, 4, 8, 6),
        "s": (4,),
        "big": (1, 4, 8, 6),
        "a": (1, 4, 8, 6),
        "p": (1, 4, 1, 1),
        "y": (1, 4),
    }
    assert seen["s"].value.tolist() == [1, 4, 8, 6]
    assert seen["s"].dtype == np.int64
    assert seen["c"].value is None


def test_sequences_are_left_out():
    seen = observe(parsed(SEQUENCES).SerializeToString(), {"x": np.ones((2, 4), np.float32)})
    assert {"x", "h", "v", "y"} <= seen.keys()
    assert "s" not in seen
    assert seen["h"].value.tolist() is True


def test_a_tensor_that_cannot_be_an_output_does_not_hide_the_others(monkeypatch):
    real = open_session

    def fussy(model, **options):
        if any(output.name in ("s", "a") for output in onnx.load_model_from_string(model).graph.output):
            raise ModelError("not as an output")
        return real(model, **options)

    monkeypatch.setattr(shapes, "open_session", fussy)
    seen = observe(parsed(CONV).SerializeToString(), {"x": np.ones((1, 3, 8, 6), np.float32)})
    assert seen.keys() == {"x", "c", "big", "p", "y"}


def test_the_second_run_shows_what_is_dynamic():
    first, second, *_ = observe_twice(parsed(CONV).SerializeToString())
    assert second is not None
    assert first["c"].shape == (1, 4, 224, 224)
    assert second["c"].shape == (2, 4, 64, 96)


def test_nothing_dynamic_gives_no_second_run():
    first, second, *_ = observe_twice(parsed(FIXED).SerializeToString())
    assert first["r"].shape == (2, 3)
    assert second is None


EXTENT_64 = "g (float[N,L] x) => (float[N,M] y) <float[64,5] w> { y = MatMul(x, w) }"
BATCH_1 = "g (float[N,3] x) => (float[A,3] y) <int64[2] s = {1,3}> { r = Relu(x)\n y = Reshape(r, s) }"
BATCH_2 = "g (float[N,3] x) => (float[A,6] y) <int64[2] s = {1,6}> { r = Relu(x)\n y = Reshape(r, s) }"
NEVER = "g (float[N,L] x) => (float[A,B] y) <int64[2] s = {7,13}> { y = Reshape(x, s) }"


@pytest.mark.parametrize(
    ("text", "first_shape", "second_shape"),
    [(EXTENT_64, (1, 64), (2, 64)), (BATCH_1, (1, 3), None), (BATCH_2, (2, 3), None)],
    ids=["another extent", "batch 1 only", "batch 2 only"],
)
def test_sizes_are_tried_until_one_runs(text, first_shape, second_shape):
    first, second, *_ = observe_twice(parsed(text).SerializeToString())
    assert first["x"].shape == first_shape
    assert (second and second["x"].shape) == second_shape


def test_no_size_runs():
    with pytest.raises(ModelError, match=r"no input size tried makes it run.*input_shape.*cannot be reshaped"):
        observe_twice(parsed(NEVER).SerializeToString())


def test_a_setting_that_was_guessed_is_named_where_nothing_runs():
    """A model for one sampling rate, as a single integer that no size can give."""
    text = "g (float[N,4] x, int64 rate) => (float[A] y) <int64[1] a = {0}> { r = Unsqueeze(rate, a)  y = Reshape(x, r) }"
    with pytest.raises(ModelError, match=r"rate was set to 1: inputs of yours as `calibration`"):
        observe_twice(parsed(text).SerializeToString())


@pytest.mark.parametrize("content", [b"junk", None], ids=["junk", "absent"])
def test_an_unreadable_file(tmp_path, content):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        observe_twice(path)


def test_external_weights_stay_where_they_are(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(parsed(CONV), path, save_as_external_data=True, location="weights", size_threshold=0)
    before = sorted(tmp_path.iterdir())
    assert observe_twice(path)[0]["p"].shape == (1, 4, 1, 1)
    assert observe_twice(path.read_bytes(), folder=tmp_path)[0]["p"].shape == (1, 4, 1, 1)
    assert sorted(tmp_path.iterdir()) == before


def spec(name, dims, dtype="float32", kind="tensor(float)"):
    return TensorSpec(name, kind, np.dtype(dtype), dims)


DIMS = {
    "image": ([("N", 3, "H", "W")], [2, 5, 6], [(2, 3, 5, 6)]),
    "unknown": ([(None, None)], [2, 5], [(2, 5)]),
    "same name everywhere": ([("N", "T"), ("T", 4, "N")], [2, 5], [(2, 5), (5, 4, 2)]),
    "sum": ([("N", "past"), ("N", "T"), ("N", "past + T"), ("N", "T + 1")], [2, 5, 6], [(2, 5), (2, 6), (2, 11), (2, 7)]),
    "fixed": ([(4, 3)], [], [(4, 3)]),
    "scalar": ([()], [], [()]),
}


@pytest.mark.parametrize(("dims", "sizes", "expected"), DIMS.values(), ids=DIMS.keys())
def test_sizes_of_example_feeds(dims, sizes, expected):
    inputs = [spec(str(number), dim) for number, dim in enumerate(dims)]
    shapes = example_shapes(inputs, dict(zip(dynamic_axes(inputs), sizes, strict=True)))
    assert [value.shape for value in example_feeds(inputs, shapes).values()] == expected


def test_kinds_of_example_feeds():
    kinds = {"f": "float16", "i": "int64", "b": "bool", "u": "uint8", "s": "object"}
    inputs = [spec(name, (50,), dtype) for name, dtype in kinds.items()]
    feeds = example_feeds(inputs, example_shapes(inputs, {}), seed=3)
    assert {name: str(value.dtype) for name, value in feeds.items()} == kinds
    assert set(feeds["i"]) == {0, 1}
    again = example_feeds(inputs, example_shapes(inputs, {}), seed=3)
    assert all(np.array_equal(feeds[name], again[name]) for name in kinds)


def test_a_sequence_cannot_be_fed():
    with pytest.raises(InputError, match="input 'q' is seq"):
        dynamic_axes([spec("q", (), "object", "seq(tensor(float))")])
