"""Fewer elementwise nodes, the same outputs: chains that are a HardSigmoid, and numbers that go into weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from running import analysed, run

from onnxmerge import compress
from onnxmerge.execution.shapes import observe
from onnxmerge.graph.simplification import simplified
from onnxmerge.onnxio.model import from_proto

NUMBERS = """float zero = {0}, float one = {1}, float three = {3}, float low = {-3}, float six = {6}, float sixth = {0.16666667},
    float fifth = {0.2}, float half = {0.5}, float[1] six1 = {6}, float[1,1,1,1,1] three5 = {3},
    float[4,1,1] threes = {3, 3, 3, 3}, float far = {100}"""
SPECIAL = np.array([np.nan, np.inf, -np.inf, -3, 3, 0, -1e30, 1e30], np.float32)


def model_of(nodes: str, kind: str = "float", opset: int = 13, outputs: str = "y") -> onnx.ModelProto:
    """Nodes that read x (2, 4, 3, 3) and a gate g (2, 4, 1, 1), and write y."""
    written = ", ".join(f"{kind}[2, C, H, W] {name}" for name in outputs.split())
    head = f'<ir_version: 8, opset_import: ["": {opset}]> m ({kind}[2, 4, 3, 3] x, {kind}[2, 4, 1, 1] g) => ({written})'
    model = parser.parse_model(f"{head} <{NUMBERS}> {{ {nodes} }}")
    weights = np.random.default_rng(0).normal(size=(4, 4, 3, 3))
    stored = {"w": weights, "w1": weights[..., :1, :1], "b": np.arange(4)}
    model.graph.initializer.extend(numpy_helper.from_array(each.astype(np.float32), name) for name, each in stored.items())
    if kind != "float":
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name))
    return model


def feeds_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in model.graph.input}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    return {name: np.asarray(3 * rng.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}


def simpler(model: onnx.ModelProto, tolerance: float = 1e-6) -> list[str]:
    """The operators of the simplified model, whose outputs were compared; of NaN, infinity and large numbers too."""
    feeds = feeds_of(model)
    found = simplified(from_proto(model), observe(model.SerializeToString(), feeds)).model.proto
    onnx.checker.check_model(found, full_check=True)
    assert [each.name for each in found.graph.output] == [each.name for each in model.graph.output]
    for is_special in (False, True):
        if is_special and feeds["x"].dtype == np.float32:
            feeds["x"].reshape(-1)[: SPECIAL.size] = SPECIAL
        for before, after in zip(run(model, feeds), run(found, feeds), strict=True):
            assert (before.shape, before.dtype) == (after.shape, after.dtype)
            scale = 1.0 if is_special else np.abs(before.astype(np.float64)).max()
            np.testing.assert_allclose(after, before, rtol=1e-5 if is_special else 0.0, atol=tolerance * max(1.0, scale))
    return [node.op_type for node in found.graph.node if node.op_type != "Constant"]


GATE = ["HardSigmoid"]
SWISH = ["HardSigmoid", "Mul"]
BECOME = {
    "hard-swish": ("a = Add(x, three) c = Clip(a, zero, six) p = Mul(x, c) y = Div(p, six)", SWISH),
    "constants-in-front": ("a = Add(three, x) c = Clip(a, zero, six) p = Mul(c, x) y = Mul(sixth, p)", SWISH),
    "divided-first": ("a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six1) y = Mul(x, d)", SWISH),
    "gate": ("a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)", GATE),
    "of-another-tensor": ("a = Add(x, three) c = Clip(a, zero, six) p = Mul(g, c) y = Div(p, six)", SWISH),
    "min-max": ("a = Add(x, three) r = Max(zero, a) c = Min(r, six) y = Div(c, six)", GATE),
    "relu-min": ("a = Add(x, three) r = Relu(a) c = Min(six, r) y = Mul(c, sixth)", GATE),
    "relu-clip": ("a = Add(x, three) r = Relu(a) c = Clip(r, , six) y = Mul(c, sixth)", GATE),
    "keras": ("m = Mul(x, fifth) a = Add(m, half) y = Clip(a, zero, one)", GATE),
    "subtracted": ("m = Div(x, six) a = Sub(half, m) y = Clip(a, zero, one)", GATE),
    "limited-first": ("c = Clip(x, low, three) a = Add(c, three) y = Div(a, six)", GATE),
    "relu6": ("c = Clip(x, zero, six) y = Div(c, six)", GATE),
    "reversed": ("a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Sub(one, d)", ["HardSigmoid", "Sub"]),
    "constant-nodes": ("t = Constant <value_float = 3.0> () a = Add(x, t) c = Clip(a, zero, six) y = Div(c, six)", GATE),
    "two": (
        "a = Add(x, three) c = Clip(a, zero, six) p = Mul(x, c) q = Div(p, six)"
        " d = Add(q, three) e = Clip(d, zero, six) f = Mul(q, e) y = Div(f, six)",
        SWISH + SWISH,
    ),
}
STAY = {
    "read-in-the-middle": ("a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Add(c, d)"),
    "output-in-the-middle": ("a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)"),
    "limit-that-is-computed": ("l = ReduceMax<keepdims = 0>(g) a = Add(x, three) c = Clip(a, zero, l) y = Div(c, six)"),
    "other-factor": ("a = Add(x, three) c = Clip(a, zero, six) y = Div(c, three)"),
    "numbers-of-channels": ("m = Mul(x, threes) c = Clip(m, zero, one) y = Identity(c)"),
    "no-lower-limit": ("a = Add(x, three) c = Min(a, six) y = Div(c, six)"),
    "squared": ("a = Add(x, three) c = Clip(a, zero, six) p = Mul(c, c) y = Div(p, six)"),
    "double": ("a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)"),
    "nothing-saved": ("c = Clip(x, zero, one) y = Mul(c, x)"),
    "one-more-axis": ("a = Add(x, three5) c = Clip(a, zero, six) d = Div(c, six) y = Squeeze(d, axis)"),
    "read-in-a-body": (
        "a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) r = ReduceMax<keepdims = 0>(g) k = Cast<to = 9>(r)"
        " e = If (k) <then_branch = t () => (float[N, M, O, P] u) { u = Identity(c) },"
        " else_branch = f () => (float[N, M, O, P] v) { v = Identity(x) }> y = Add(d, e)"
    ),
    "in-a-body": (
        "r = ReduceMax<keepdims = 0>(g) k = Cast<to = 9>(r)"
        " y = If (k) <then_branch = t () => (float[N, M, O, P] u) { a = Add(x, three) c = Clip(a, zero, six) u = Div(c, six) },"
        " else_branch = f () => (float[N, M, O, P] v) { v = Identity(x) }>"
    ),
    "large-offset": ("a = Add(x, far) m = Sub(a, far) c = Clip(m, zero, one) y = Identity(c)"),
}


@pytest.mark.parametrize(("nodes", "operators"), BECOME.values(), ids=BECOME)
def test_chains_become_hard_sigmoids(nodes: str, operators: list[str]) -> None:
    assert simpler(model_of(nodes)) == operators


@pytest.mark.parametrize("name", STAY)
def test_other_chains_stay(name: str) -> None:
    outputs = "y c" if name == "output-in-the-middle" else "y"
    model = model_of(STAY[name], "double" if name == "double" else "float", outputs=outputs)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis"))
    before = [node.op_type for node in model.graph.node if node.op_type != "Constant"]
    assert simpler(model) == before


def test_limits_in_attributes_and_half_precision() -> None:
    old = "a = Add(x, three) c = Clip<min = 0.0, max = 6.0>(a) p = Mul(x, c) y = Div(p, six)"
    assert simpler(model_of(old, opset=9)) == SWISH
    assert simpler(model_of(BECOME["hard-swish"][0], "float16"), tolerance=2e-3) == SWISH


FOLD = {
    "behind": ("c = Conv(x, w, b) m = Mul(c, sixth) a = Add(three, m) y = Sub(one, a)", ["Conv"]),
    "transposed": ("c = ConvTranspose<group = 1>(x, w) d = Div(c, six) y = Add(d, half)", ["ConvTranspose"]),
    "gated": (
        "c = Conv(x, w, b) a = Add(c, three) l = Clip(a, zero, six) p = Mul(c, l) d = Div(p, six)"
        " m = Mul(d, low) y = Add(m, half)",
        ["Conv", "HardSigmoid", "Mul", "Mul", "Add"],
    ),
    "in-front": ("r = Relu(x) a = Add(r, three) y = Conv(a, w, b)", ["Relu", "Add", "Conv"]),
    "gelu-in-front": (
        "d = Div(x, six) e = Erf(d) o = Add(e, one) p = Mul(x, o) h = Mul(p, half) y = Conv(h, w, b)",
        ["Div", "Erf", "Add", "Mul", "Mul", "Conv"],
    ),
    "read-twice": ("c = Conv(x, w1, b) m = Mul(c, sixth) y = Add(m, c)", ["Conv", "Mul", "Add"]),
    "shared-weight": (
        "c = Conv(x, w1, b) m = Mul(c, sixth) d = Conv(m, w1) y = Relu(d)",
        ["Conv", "Mul", "Conv", "Relu"],
    ),
    "numbers-of-channels": ("c = Conv(x, w, b) y = Mul(c, threes)", ["Conv", "Mul"]),
}


@pytest.mark.parametrize(("nodes", "operators"), FOLD.values(), ids=FOLD)
def test_numbers_go_into_weights(nodes: str, operators: list[str]) -> None:
    assert simpler(model_of(nodes)) == operators


def test_random_chains_give_the_same_outputs() -> None:
    """Every form in which numbers, limits and products may come, and readers in the middle; some become, and some stay."""
    rng, became = np.random.default_rng(5), 0
    for _ in range(150):
        text = random_chain(rng)
        model = model_of(text, opset=int(rng.choice([11, 13, 17, 21])), outputs="y z" if "z =" in text else "y")
        before = [node.op_type for node in model.graph.node if node.op_type != "Constant"]
        after = simpler(model, 3e-6)
        assert len(after) <= len(before)
        became += len(after) < len(before)
    assert 30 < became < 140


def random_chain(rng: np.random.Generator) -> str:
    tensors, nodes = ["x"], []

    def add(text: str) -> None:
        tensors.append(f"t{len(tensors)}")
        nodes.append(f"{tensors[-1]} = {text}")

    def number(*names: str) -> str:
        return str(rng.choice(names))

    def joined(operator: str, other: str) -> None:
        add(f"{operator}({', '.join(rng.permutation([tensors[-1], other]))})")

    limits = [("zero", "six"), ("zero", "one"), ("low", "three")][rng.choice(3, p=[0.6, 0.2, 0.2])]
    for operator in rng.choice(["Add", "Mul", "Sub"], int(rng.integers(3))):
        joined(operator, number("three", "half", "fifth", "threes"))
    way = rng.choice(["Clip", "MinMax", "Relu"])
    if way == "Clip":
        add(f"Clip({tensors[-1]}, {', '.join(limits)})")
    else:
        for operator in rng.permutation(["Max", "Min"]):
            joined(operator, limits[operator == "Min"])
    middle = tensors[-1]
    for step in rng.choice(["Add", "Div", "Mul", "product"], int(rng.integers(1, 4)), p=[0.15, 0.3, 0.25, 0.3]):
        if step == "Div":
            add(f"Div({tensors[-1]}, {number('six', 'six1')})")
        else:
            joined("Mul" if step == "product" else step, number("x", "g") if step == "product" else number("sixth", "three"))
    end = f"y = Identity({tensors[-1]})"
    return " ".join([*nodes, end, *([f"z = Abs({middle})"] if rng.random() < 0.15 else [])])


UNNAMED = """c = Conv(x, w1, b) m = Mul(c, sixth) a = Add(m, three) l = Clip(a, zero, six) p = Mul(m, l) d = Div(p, six)
    e = Mul(d, three) y = Conv(e, w1b)"""


def test_groups_keep_their_names_and_the_report_tells(tmp_path: Path) -> None:
    model = model_of(UNNAMED)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 4, 1, 1), np.float32), "w1b"))
    (group,) = analysed(model, tmp_path).channels.groups
    assert (group.name, group.size, [each.name for each in group.consumers]) == ("c", 4, ["y"])
    result = compress(model, tmp_path / "out.onnx", ratio=0.5, method="prune", samples=8, bench=False)
    assert result.simplifications == (
        "1 chain of Add, Clip, Mul and Div became HardSigmoid and Mul",
        "1 node of Mul went into weights of convolutions",
    )
    assert result.before.parameters > result.after.parameters
    written = onnx.load(tmp_path / "out.onnx")
    assert [node.op_type for node in written.graph.node] == ["Conv", "HardSigmoid", "Mul", "Mul", "Conv"]
    assert written.opset_import[0].version == 13


@pytest.mark.parametrize("name", ["sixth", "w", "b"])
def test_initializers_that_callers_may_replace_stay_inputs(name: str) -> None:
    model = model_of("c = Conv(x, w, b) y = Mul(c, sixth)")
    value = next(each for each in model.graph.initializer if each.name == name)
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, value.data_type, value.dims))
    assert simpler(model) == ["Conv", "Mul"]


def test_an_unnamed_layer_takes_no_name_of_another_node(tmp_path: Path) -> None:
    model = model_of("c = Conv(x, w, b) m = Mul(c, sixth) r = Relu(m) y = Conv(r, w1)")
    model.graph.node[2].name = "c"
    onnx.save(model, tmp_path / "in.onnx")
    result = compress(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, method="prune", verify=False)
    assert result.after.parameters < result.before.parameters


ZEROS = {
    "cut-from-one": "s = Shape(x) n = Gather<axis = 0>(s, one) h = Concat<axis = 0>(two, n, units) z = ConstantOfShape(h)"
    " i = Slice(z, zero, one1, zero) y, t, u = LSTM<hidden_size = 3>(x, w, r, b, , i, i)",
    "filled": "i = ConstantOfShape<value = float[1] {0.0}>(shape) y, t, u = LSTM<hidden_size = 3>(x, w, r, b, , i, i)",
    "stored": "y, t, u = LSTM<hidden_size = 3>(x, w, r, b, , stored, stored)",
    "ones": "i = ConstantOfShape<value = float[1] {1.0}>(shape) y, t, u = LSTM<hidden_size = 3>(x, w, r, b, , i, i)",
    "of-an-input": "m = Sub(x, x) i = Slice(m, zero, one1, zero) y, t, u = LSTM<hidden_size = 3>(x, w, r, b, , i, i)",
}


@pytest.mark.parametrize("name", ZEROS)
def test_initial_states_of_zeros_go(name: str) -> None:
    constants = "int64[1] one = {1}, int64[1] two = {2}, int64[1] units = {3}, int64[1] zero = {0}, int64[1] one1 = {1}"
    head = '<ir_version: 8, opset_import: ["": 17]> m (float[2, 2, 3] x) => (float[S, D, N, U] y)'
    model = parser.parse_model(f"{head} <{constants}, int64[3] shape = {{1, 2, 3}}> {{ {ZEROS[name]} }}")
    rng = np.random.default_rng(0)
    stored = {"w": (1, 12, 3), "r": (1, 12, 3), "b": (1, 24)}
    weights = {each: rng.normal(size=shape).astype(np.float32) for each, shape in stored.items()}
    weights["stored"] = np.zeros((1, 2, 3), np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(each, key) for key, each in weights.items())
    assert (simpler(model) == ["LSTM"]) == (name in ("cut-from-one", "filled", "stored"))
