"""Settings of a model, such as a sampling rate: without data they are what the graph compares them with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from running import written

import onnxmerge
from onnxmerge.data.selection import inputs_for
from onnxmerge.execution.sessions import open_session
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import InputOptions

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
WIDE = "a1 = MatMul(x, v)  a2 = Relu(a1)  {y} = MatMul(a2, w)"
NARROW = "b1 = MatMul(x, n)  b2 = Relu(b1)  {y} = MatMul(b2, m)"
FAILING = "{y} = Reshape(x, bad)"


def branches(condition: str, then: str, other: str, y: str = "y", inner: str = "") -> str:
    """An If of two bodies."""
    then, other = (
        f"{name} () => (float[N, 4] {inner}{name}) {{ {body.replace('{y}', inner + name)} }}"
        for name, body in (("t", then), ("e", other))
    )
    return f"{y} = If({condition}) <then_branch = {then}, else_branch = {other}>"


def other_rate(body: str, rest: str) -> str:
    """A body that asks for another rate."""
    return f"q = Equal(rate, eight)  {branches('q', body, rest, '{y}', 'i')}"


PICKED = "f = Reshape(rate, first)  g = Gather<axis=0>(f, zero)  c = Equal(g, sixteen)"
MODELS: dict[str, tuple[str, str, Any]] = {
    "an If": ("int64 rate", f"c = Equal(rate, sixteen)  {branches('c', WIDE, NARROW)}", 16),
    "the constant first": ("int64 rate", f"c = Equal(sixteen, rate)  {branches('c', WIDE, WIDE)}", 16),
    "one number of a vector": ("int64[1] rate", f"{PICKED}  {branches('c', WIDE, NARROW)}", 16),
    "another type": ("int32 rate", f"f = Cast<to=7>(rate)  c = Equal(f, sixteen)  {branches('c', WIDE, NARROW)}", 16),
    "another body does more": ("int64 rate", f"c = Equal(rate, sixteen)  {branches('c', NARROW, WIDE)}", 1),
    "another body does more, but fails": (
        "int64 rate",
        f"c = Equal(rate, sixteen)  {branches('c', NARROW, WIDE + '  ' + FAILING.replace('{y}', 'z'))}",
        16,
    ),
    "two rates, of which the second does more": (
        "int64 rate",
        f"c = Equal(rate, sixteen)  d = Equal(rate, eight)  {branches('c', NARROW, NARROW, 'k')}"
        f"  {branches('d', WIDE, NARROW, 'l', 'j')}  y = Add(k, l)",
        8,
    ),
    "one rate after the other": ("int64 rate", f"c = Equal(rate, sixteen)  {branches('c', WIDE, other_rate(WIDE, FAILING))}", 16),
    "a mask": ("int64 rate", f"c = Equal(rate, eight)  z = Where(c, x, none)  {WIDE.replace('{y}', 'k')}  y = Add(k, z)", 8),
    "a table of one row": ("int64 rate", f"r = Gather<axis=0>(row, rate)  {WIDE.replace('{y}', 'k')}  y = Add(k, r)", 0),
    "infinity": ("int64 rate", f"f = Cast<to=1>(rate)  c = Less(f, infinity)  {branches('c', WIDE, NARROW)}", None),
    "a flag": ("bool rate", branches("rate", WIDE, NARROW), True),
    "a flag that is better off": ("bool rate", branches("rate", NARROW, WIDE), False),
    "nothing": ("int64 rate", f"f = Cast<to=1>(rate)  {WIDE.replace('{y}', 'k')}  y = Mul(k, f)", None),
}


def model_of(name: str) -> onnx.ModelProto:
    declared, nodes, _ = MODELS[name]
    model, rng = (
        parser.parse_model(f"{HEAD} g (float[N, 4] x, {declared}) => (float[N, 4] y) {{ {nodes} }}"),
        np.random.default_rng(0),
    )
    shapes = {"v": (4, 32), "w": (32, 4), "n": (4, 8), "m": (8, 4), "row": (1, 4)}
    stored = {key: rng.normal(0, 0.5, shape).astype(np.float32) for key, shape in shapes.items()}
    numbers = {"sixteen": 16, "eight": 8, "zero": 0, "first": [-1], "bad": [3, 7]}
    stored |= {key: np.array(value) for key, value in numbers.items()} | {"none": np.zeros(4, np.float32)}
    stored["infinity"] = np.array(np.inf, np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in stored.items())
    return model


@pytest.mark.parametrize("name", MODELS)
def test_the_value_is_the_same_wherever_nothing_is_given(name: str, tmp_path: Path) -> None:
    path, expected = written(model_of(name), tmp_path), MODELS[name][2]
    analysed = analyse_model(path)
    session = open_session(path, optimise=False, threads=1).called(analysed.call)
    inputs = inputs_for(session, analysed.shapes, InputOptions(samples=9))
    assert analysed.call.settings == ({} if expected is None else {"rate": expected})
    fed = [np.ravel(feeds["rate"]).tolist() for feeds in inputs.batches(4)]
    seen = analysed.observed["rate"].value
    assert seen is not None
    assert fed == [[1 if expected is None else expected]] * 3 == [np.ravel(seen).tolist()] * 3


@pytest.mark.parametrize("name", MODELS)
def test_every_command_says_what_was_taken_and_how_to_give_another(name: str, tmp_path: Path) -> None:
    path, expected = written(model_of(name), tmp_path), MODELS[name][2]
    result = onnxmerge.compress(path, tmp_path / "small.onnx", method="prune", ratio=0.5, bench=False)
    found = onnxmerge.verify(path, path)
    for told in (result, found, onnxmerge.inspect(path)):
        (assumed,) = (each.assumed for each in told.inputs if each.name == "rate")
        assert assumed.startswith(f"{str(expected).lower()} assumed") is (expected is not None)
        assert ("calibration" in assumed) is (expected is not None)
    for warned in (result, found):
        assert any("what rate may be" in text for text in warned.warnings) is (expected is None)


def test_a_value_that_is_given_counts(tmp_path: Path) -> None:
    path = written(model_of("an If"), tmp_path)
    calibration = {"x": np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32), "rate": np.array(8)}
    result = onnxmerge.compress(path, tmp_path / "small.onnx", ratio=0.5, bench=False, calibration=calibration)
    assert [(group.channels, group.kept) for group in result.groups] == [(8, 4)]
    assert not any(each.assumed for each in result.inputs)


def test_a_value_that_is_given_for_each_input_is_not_assumed(tmp_path: Path) -> None:
    nodes = f"e = Gather<axis=0>(table, step)  k = Add(x, e)  {WIDE.replace('x,', 'k,').replace('{y}', 'y')}"
    model = parser.parse_model(f"{HEAD} g (float[1, 4] x, int64[1] step) => (float[1, 4] y) {{ {nodes} }}")
    for key, size in (("v", (4, 32)), ("w", (32, 4)), ("table", (9, 4))):
        value = np.random.default_rng(0).normal(size=size).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, key))
    given = {"x": np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32), "step": np.arange(40) % 7}
    result = onnxmerge.compress(model, tmp_path / "small.onnx", method="prune", ratio=0.5, bench=False, calibration=given)
    for told in (result, onnxmerge.inspect(model, calibration=given)):
        assert not any(each.assumed for each in told.inputs)
