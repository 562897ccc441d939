"""What groups save adds up to what the model saves, counted in the files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxmerge import compress, inspect

MODELS = Path(__file__).resolve().parents[1] / "models"


@pytest.mark.parametrize("name", ["digits-mlp", "digits-resnet-bn"])
def test_savings_of_groups_add_up(name: str, tmp_path: Path) -> None:
    done = compress(MODELS / f"{name}.onnx", tmp_path / "out.onnx", method="prune", ratio=0.5, verify=False)
    saved = [1 - getattr(done.after, what) / getattr(done.before, what) for what in ("parameters", "macs")]
    assert [sum(group.parameters_saved for group in done.groups), sum(group.macs_saved for group in done.groups)] == (
        pytest.approx(saved, abs=1e-3)  # consumers may gain a bias
    )
    assert all(0 <= group.time_saved < 1 for group in done.groups)
    most = inspect(MODELS / f"{name}.onnx").groups
    assert saved[1] < sum(group.macs_saved for group in most) < 1


def test_what_a_layer_between_two_groups_saves_is_shared(tmp_path: Path) -> None:
    """With half of the channels of all groups gone, each of two layers around a group gives it half of 3/4, or of 1/2 alone."""
    done = compress(MODELS / "digits-mlp.onnx", tmp_path / "out.onnx", method="prune", ratio=0.5, verify=False)
    before = done.before.macs
    first, second = done.groups
    inputs, outputs = 64, 10
    middle = first.channels * second.channels
    assert inputs * first.channels + middle + second.channels * outputs == before
    assert first.macs_saved * before == 0.5 * inputs * first.channels + 0.75 / 2 * middle
    assert second.macs_saved * before == 0.5 * second.channels * outputs + 0.75 / 2 * middle


def test_weights_that_are_put_together_once_take_no_time(tmp_path: Path) -> None:
    """ONNX Runtime computes what reads constants alone when it opens a model, as the weights of recurrent layers."""
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 16] x) => (float[N, 8] y)'
    stored = f"{head} {{ h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }}"
    joined = stored.replace("{ h =", "{ k = Constant<value_ints = [0]>()  p = Slice(a, k, end)  w = Concat<axis = 1>(p, b)  h =")
    rng, found = np.random.default_rng(0), []
    a, b = rng.normal(size=(16, 1024)).astype(np.float32), rng.normal(size=(16, 1024)).astype(np.float32)
    for text, own in ((stored, {"w": np.hstack([a, b])}), (joined, {"a": a, "b": b, "end": np.array([16])})):
        model = parser.parse_model(text)
        values = {**own, "v": rng.normal(size=(2048, 8)).astype(np.float32)}
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
        onnx.save(model, tmp_path / "m.onnx")
        (group,) = inspect(tmp_path / "m.onnx").groups
        found.append(group.time_saved)
    assert found[0] > 0.3
    assert found[1] == pytest.approx(found[0])


def test_loops_take_time_though_their_counts_and_first_states_are_constants(tmp_path: Path) -> None:
    """The body reads x: neither the loop nor what follows is computed when the model is opened."""
    body = "(int64 i, bool on, float[1, 16] h) => (bool go, float[1, 16] g) { go = Identity(on)  g = Add(h, x) }"
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[1, 16] x) => (float[1, 8] y)'
    loop = f"s = Loop<body = steps {body}>(count, on, state)  h = MatMul(s, w)  r = Relu(h)  y = MatMul(r, v)"
    model = parser.parse_model(f"{head} {{ {loop} }}")
    values = {"count": np.array(3), "on": np.array(True), "state": np.zeros((1, 16), np.float32)}
    values |= {name: np.ones(shape, np.float32) for name, shape in (("w", (16, 4096)), ("v", (4096, 8)))}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    onnx.save(model, tmp_path / "m.onnx")
    (group,) = inspect(tmp_path / "m.onnx").groups
    assert group.time_saved > 0.3
