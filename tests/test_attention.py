"""Attention in the forms of exports: widths of heads, what is left is the masked reference, and the best basis of the logits."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from random_graphs import Generated
from random_graphs.faults import prune_outcome
from running import analysed, built, run, weights_of
from topologies import TOPOLOGIES

from onnxmerge.algorithms.elimination import eliminate
from onnxmerge.algorithms.product_bases import product_basis
from onnxmerge.pipeline.compress import compress

pytestmark = pytest.mark.usefixtures("harmless_models")

HEADS = {"attention-llama": 4, "attention-operator-heads": 4}
FIXED = {"attention-vit", "attention-module", "attention-module-any-batch", "attention-block"}
"""Those whose number of tokens is a literal."""
ROWS = [name for name in TOPOLOGIES if name.startswith("attention-")]
OPTIONS = {"verify": False, "bench": False, "threads": 1, "round_to": 1}
SOLVED = {"method": "reconstruct", "input_shape": {"x": (1, 5, 16)}, **OPTIONS}


@pytest.mark.parametrize("name", ROWS)
def test_every_head_loses_its_share(name: str, tmp_path: Path) -> None:
    """Six of eight channels of query, key and value stay in every head, and those that the output projection reads."""
    compress(built(TOPOLOGIES[name]), tmp_path / "small.onnx", ratio=0.3, method="prune", **OPTIONS)
    shapes = {key: value.shape for key, value in weights_of(onnx.load(tmp_path / "small.onnx")).items()}
    count, rotary = HEADS.get(name, 2), 6
    widths = {"query": count * rotary, "key": 2 * rotary, "value": 2 * 6, "qkv": 3 * 2 * 6, "dense": count * 6, "projection": 12}
    found = {
        layer: [extent for key, shape in shapes.items() if key.startswith(f"{layer}_w") for extent in shape] for layer in widths
    }
    assert found["qkv"] or (found["query"] and found["key"])
    assert all(not shape or widths[layer] in shape for layer, shape in found.items())


@pytest.mark.parametrize("whole_heads", [False, True], ids=["widths", "heads"])
@pytest.mark.parametrize("name", ROWS)
def test_what_is_left_is_the_masked_reference(name: str, whole_heads: bool, tmp_path: Path) -> None:
    tokens = 5 if name in FIXED else ("L", Fraction(1))
    batch = 2 if name == "attention-module" else ("N", Fraction(1))
    graph = Generated(1, built(TOPOLOGIES[name]), {"x": (batch, tokens, 16)})
    outcome = prune_outcome(graph, tmp_path, whole_heads=whole_heads)
    assert outcome.kind == "done", outcome.text
    stored = weights_of(onnx.load(tmp_path / "out.onnx")).items()
    read = next(value.shape for key, value in stored if key.startswith(("dense_w", "projection_w")))
    assert HEADS.get(name, 2) * 4 in read  # half of the channels of every head, or every second head


def test_logits_lose_no_more_than_their_smallest_singular_values(tmp_path: Path) -> None:
    """Queries against centred keys of all inputs, head by head: a matrix, whose best approximation of rank 4 numpy finds."""
    model = built(TOPOLOGIES["attention-bert"])
    product = next(node for node in model.graph.node if node.op_type == "Div").input[0]
    factors = next(tuple(node.input) for node in model.graph.node if node.output[0] == product)
    feeds = {"x": np.random.default_rng(0).normal(size=(40, 5, 16)).astype(np.float32)}
    options = {"ratio": 0.5, "include": ("query",), "calibration": feeds, **SOLVED}
    result = compress(model, tmp_path / "small.onnx", **options)
    assert [(group.name, group.method, group.kept) for group in result.groups] == [("query", "reconstruct", 8)]
    whole, small = (logits_of(each, feeds, factors) for each in (model, onnx.load(tmp_path / "small.onnx")))
    for head in range(2):
        values = np.linalg.svd(whole[head], compute_uv=False)
        lost = np.square(whole[head] - small[head]).sum()
        np.testing.assert_allclose(lost, np.square(values[4:]).sum(), rtol=1e-3)


def logits_of(model: onnx.ModelProto, feeds: dict[str, np.ndarray], factors: tuple[str, ...]) -> list[np.ndarray]:
    """For each head, of every query with every key of which the mean over its input is subtracted."""
    query, key = (value.astype(np.float64) for value in run(model, feeds, factors)[-2:])
    key = key.swapaxes(2, 3)
    key = key - key.mean(2, keepdims=True)
    rows = [each.transpose(1, 0, 2, 3).reshape(2, -1, each.shape[-1]) for each in (query, key)]
    return [one @ other.T for one, other in zip(*rows, strict=True)]


def test_shared_keys_take_one_basis() -> None:
    """The loss over all heads that share a key is that of the sum of their queries' moments."""
    rng = np.random.default_rng(1)
    queries, key = rng.normal(size=(3, 50, 6)), rng.normal(size=(70, 6))
    basis = product_basis(sum(each.T @ each for each in queries), key.T @ key, damping=0.0)
    for count in (2, 5):
        lost = sum(
            np.square(each @ key.T - each @ basis.query[:, :count] @ (key @ basis.key[:, :count]).T).sum() for each in queries
        )
        values = np.linalg.svd(np.concatenate(queries) @ key.T, compute_uv=False)
        np.testing.assert_allclose(lost, np.square(values[count:]).sum(), rtol=1e-9)
        np.testing.assert_allclose(basis.share[count:].sum(), lost / np.square(values).sum(), rtol=1e-9)


@pytest.mark.parametrize("constant", ["queries", "keys", "both"])
def test_channels_of_a_constant_product_stay_as_they_are(constant: str) -> None:
    """Equal keys shift all logits of a query, and zero queries give none: weights of 1e38 took the place of these keys."""
    varied = np.diag([1.0, 4.0])
    query, key = (varied if constant == other else np.zeros((2, 2)) for other in ("keys", "queries"))
    basis = product_basis(query, key)
    for found, expected in zip(basis, (np.eye(2), np.eye(2), np.zeros(2)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_nothing_makes_good_costs_the_sum_over_all_pairs() -> None:
    """In every order, also over the blocks in which removals are applied; one of each row at a time."""
    root = np.random.default_rng(2).uniform(size=(150, 120))
    products, rows = root.T @ root, np.arange(120) % 2
    found = eliminate([(None, products)], conv_groups=rows)
    for count in (1, 2, 60, 101):
        gone = found.order[:count]
        np.testing.assert_allclose(found.cost[count - 1], products[np.ix_(gone, gone)].sum() / products.sum(), rtol=1e-9)
        assert abs(np.bincount(rows[gone], minlength=2) @ [1, -1]) <= 1


def test_a_rotation_is_not_repaired_and_pairs_go_together(tmp_path: Path) -> None:
    model = built(TOPOLOGIES["attention-llama"])
    group = next(each for each in analysed(model, tmp_path).channels.groups if each.products)
    assert group.size == 4
    feeds = {"x": np.random.default_rng(0).normal(size=(8, 5, 16)).astype(np.float32)}
    result = compress(model, tmp_path / "small.onnx", ratio=0.5, calibration=feeds, **SOLVED)
    methods = {group.name: group.method for group in result.groups}
    assert methods == {group.name: "prune", "value": "reconstruct", "gate": "reconstruct"}


PACKED = {
    "plain": {},
    "bias alone": {"operator": "MultiHeadAttention"},
    "sizes": {"qkv_hidden_sizes": [8, 8, 12], "scale": 0.2},
    "causal": {"unidirectional": 1},
    "lengths": {"mask": [3, 5]},
    "padding": {"mask": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], "mask_filter_value": -2.0},
    "ends and starts": {"mask": [3, 5, 0, 1]},
    "old": {"opset": 11},
}
"""Attributes, opset and mask of ONNX Runtime's Attention, or of its MultiHeadAttention with a bias for three layers."""


@pytest.mark.parametrize("case", PACKED)
def test_an_attention_that_holds_its_projections_is_taken_apart(case: str, tmp_path: Path) -> None:
    """It writes the same, and of its 16 channels of query and key, and as many of value or 12, half can go; an Attention is one
    operator again afterwards."""
    options, rng = dict(PACKED[case]), np.random.default_rng(0)
    opset, mask = options.pop("opset", 17), np.array(options.pop("mask", []), np.int32)
    sizes = options.get("qkv_hidden_sizes", [16, 16, 16])
    weights = {"w": rng.normal(size=(16, sum(sizes))), "b": rng.normal(size=sum(sizes)), "o": rng.normal(size=(sizes[2], 4))}
    feeds = {"x": rng.normal(size=(2, 5, 16)).astype(np.float32), **({"mask": mask} if mask.size else {})}
    operator, names, nodes = options.pop("operator", "Attention"), ["x", "w", "b", *(["mask"] if mask.size else [])], []
    if operator == "MultiHeadAttention":
        names = ["q", "k", "v", "b"]
        weights |= {f"{part}_w": rng.normal(size=(16, 16)) for part in "qkv"}
        nodes = [helper.make_node("MatMul", ["x", f"{part}_w"], [part], part) for part in "qkv"]
    nodes += [helper.make_node(operator, names, ["y"], "fused", domain="com.microsoft", num_heads=2, **options)]
    model = of_nodes([*nodes, helper.make_node("MatMul", ["y", "o"], ["z"])], weights, feeds, {"z": (2, 5, 4)}, opset)
    found = analysed(model, tmp_path)
    np.testing.assert_allclose(run(found.model.proto, feeds)[0], run(model, feeds)[0], atol=1e-4)
    if case == "ends and starts":
        assert [each.text for each in found.channels.refusals if each.where == "fused"] == [
            "Attention with a past, a rotation, packed heads or starts in its mask is not taken apart"
        ]
        return
    assert [group.size for group in found.channels.groups] == [sizes[0], sizes[2]]
    assert all(group.removable.all() for group in found.channels.groups)
    apart = onnx.ModelProto.FromString(found.model.proto.SerializeToString())
    for node in apart.graph.node:  # by other names it is taken for one of the file's own
        for names in (node.input, node.output):
            names[:] = [name.replace("//", "_") for name in names]
    for whole_heads in (False, True):
        smaller = []
        for each in (model, apart):
            compress(each, tmp_path / "small.onnx", ratio=0.5, method="prune", whole_heads=whole_heads, **OPTIONS)
            smaller.append(onnx.load(tmp_path / "small.onnx"))
        np.testing.assert_allclose(*(run(each, feeds)[0] for each in smaller), rtol=1e-4, atol=1e-4)
        ends = [[node.op_type for node in each.graph.node if node.domain] for each in smaller]
        assert ends == [[operator], ["MultiHeadAttention"]]
        assert operator != "Attention" or len(smaller[0].graph.node) == len(model.graph.node)
        if not mask.size:
            outcome = prune_outcome(Generated(1, apart, {"x": (2, 5, 16)}), tmp_path, whole_heads=whole_heads)
            assert outcome.kind == "done", outcome.text


def of_nodes(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    feeds: dict[str, np.ndarray],
    outputs: dict[str, tuple[int, ...]],
    opset: int,
) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(each.dtype), each.shape)
        for name, each in feeds.items()
    ]
    stored = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    written = [helper.make_tensor_value_info(name, 1, shape) for name, shape in outputs.items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, written, stored), opset_imports=opsets, ir_version=8)


PAST = {
    "operator": (
        "Attention",
        ["q", "k", "v", "", "past_key", "past_value"],
        {"q_num_heads": 2, "kv_num_heads": 2},
        "joins it with",
    ),
    "multi-head": ("MultiHeadAttention", ["q", "k", "v", *[""] * 3, "past_key", "past_value"], {"num_heads": 2}, "joins it with"),
    "grouped": (
        "GroupQueryAttention",
        ["q", "k", "v", "past_key", "past_value", "lengths", "total"],
        {"num_heads": 2, "kv_num_heads": 2},
        "keeps keys and values in caches that are inputs and outputs of the model",
    ),
}


@pytest.mark.parametrize("case", PAST)
def test_widths_of_the_past_stay(case: str, tmp_path: Path) -> None:
    """Keys and values of earlier positions are inputs of the model, whose shapes stay."""
    operator, names, options, reason = PAST[case]
    rng = np.random.default_rng(0)
    feeds = {name: rng.normal(size=(1, 2, 3, 8)).astype(np.float32) for name in ("past_key", "past_value")}
    feeds["x"] = rng.normal(size=(1, 5, 16)).astype(np.float32)
    weights = {**{f"{part}_w": rng.normal(size=(16, 16)) for part in "qkv"}, "o": rng.normal(size=(16, 4))}
    nodes = [helper.make_node("MatMul", ["x", f"{part}_w"], [part], part) for part in "qkv"]
    outputs = ["y", "present_key", "present_value"]
    domain = "" if operator == "Attention" else "com.microsoft"
    nodes += [helper.make_node(operator, names, outputs, "attend", domain=domain, **options)]
    nodes += [helper.make_node("MatMul", ["y", "o"], ["z"], "projection")]
    model = of_nodes(nodes, weights, feeds, {"z": (1, 5, 4), **dict.fromkeys(outputs[1:], (1, 2, 8, 8))}, 23)
    values = {"lengths": np.array([7], np.int32), "total": np.array([8], np.int32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items() if name in names)
    found = analysed(model, tmp_path)
    assert not found.channels.groups
    for part in "qkv":
        assert any(each.where == part and reason in each.text for each in found.channels.refusals)


@pytest.mark.parametrize("case", ["separate", "packed", "rotation", "sink"])
def test_query_heads_go_where_keys_and_values_are_cached(case: str, tmp_path: Path) -> None:
    """GroupQueryAttention: four heads of the query, two of key and value; half of those that share a key go, and no widths."""
    rng, width = np.random.default_rng(0), 16
    feeds = {name: rng.normal(size=(1, 2, 3, width)).astype(np.float32) for name in ("past_key", "past_value")}
    feeds["x"] = rng.normal(size=(1, 5, 16)).astype(np.float32)
    parts = {"q": 8} if case == "packed" else {"q": 4, "k": 2, "v": 2}
    weights = {f"{part}_w": rng.normal(size=(16, heads * width)) for part, heads in parts.items()}
    weights |= {"o": rng.normal(size=(4 * width, 4))}
    names = [*parts, *[""] * (3 - len(parts)), "past_key", "past_value", "lengths", "total"]
    if case == "rotation":
        names += ["cos", "sin"]
        weights |= {name: rng.normal(size=(16, width // 2)) for name in ("cos", "sin")}
    if case == "sink":
        names += [""] * 4 + ["sink"]
        weights["sink"] = rng.normal(size=4)
    options = {"num_heads": 4, "kv_num_heads": 2, "do_rotary": int(case == "rotation"), "domain": "com.microsoft"}
    outputs = ["y", "present_key", "present_value"]
    nodes = [helper.make_node("MatMul", ["x", f"{part}_w"], [part], part) for part in parts]
    nodes += [helper.make_node("GroupQueryAttention", names, outputs, "attend", **options)]
    nodes += [helper.make_node("MatMul", ["y", "o"], ["z"], "projection")]
    model = of_nodes(nodes, weights, feeds, {"z": (1, 5, 4), **dict.fromkeys(outputs[1:], (1, 2, 8, width))}, 17)
    values = {"lengths": np.array([7], np.int32), "total": np.array(8, np.int32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    outcome = prune_outcome(Generated(1, model, {name: each.shape for name, each in feeds.items()}), tmp_path, whole_heads=True)
    assert outcome.kind == "done", outcome.text
    small = onnx.load(tmp_path / "out.onnx")
    shapes = {key.removesuffix("_1"): value.shape for key, value in weights_of(small).items()}
    assert shapes["o"] == (2 * width, 4)
    assert shapes["q_w"] == (16, (6 if case == "packed" else 2) * width)
    assert all(shapes[name] == value.shape for name, value in weights.items() if name not in ("o", "q_w", "sink"))


def test_heads_go_by_a_target_and_are_repaired(tmp_path: Path) -> None:
    """Two heads of four that write what the others do: without them the layer behind gives the same."""
    rng = np.random.default_rng(3)
    weights = {f"{part}_w": np.tile(rng.normal(size=(16, 2, 8)), (1, 2, 1)).reshape(16, 32) for part in "qkv"}
    weights["o"] = rng.normal(size=(32, 4))
    nodes = [helper.make_node("MatMul", ["x", f"{part}_w"], [part], part) for part in "qkv"]
    nodes += [helper.make_node("Attention", ["q", "k", "v"], ["y"], "attend", q_num_heads=4, kv_num_heads=4)]
    nodes += [helper.make_node("MatMul", ["y", "o"], ["z"], "projection")]
    feeds = {"x": rng.normal(size=(64, 5, 16)).astype(np.float32)}
    model = of_nodes(nodes, weights, feeds, {"z": (64, 5, 4)}, 23)
    for dimension in (model.graph.input[0], model.graph.output[0]):
        dimension.type.tensor_type.shape.dim[0].dim_param = "N"
    options = {"target": "params=0.55", "calibration": feeds, "whole_heads": True, **OPTIONS, "round_to": None}
    result = compress(model, tmp_path / "small.onnx", **options)
    assert [(group.channels, group.kept, group.method) for group in result.groups] == [(4, 2, "reconstruct")]
    np.testing.assert_allclose(*(run(each, feeds)[0] for each in (model, onnx.load(tmp_path / "small.onnx"))), atol=0.05)
