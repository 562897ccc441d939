"""Branches: groups of which no channel stays, so that a block of a residual network or a gate goes as a whole."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, parser
from random_graphs import Generated, generate
from random_graphs.copies import analysed as analysed_graph
from random_graphs.faults import difference
from running import analysed, built, run, written
from topologies import TOPOLOGIES

from onnxmerge import OptionError, compress
from onnxmerge.algorithms.bilinear_cost import Cost
from onnxmerge.graph.channel_groups import ChannelGroup, Channels, inner_groups
from onnxmerge.graph.cost_terms import cost_classes, mac_terms, parameter_terms
from onnxmerge.graph.rewrite import Removal, rewrite
from onnxmerge.onnxio.export import export
from onnxmerge.pipeline.candidates import candidate_of
from onnxmerge.pruning.decision import PruningDecision

NONE = np.zeros(0, np.int64)
EXPECTED = {
    "residual-identity": {"block_conv1"},
    "residual-two-blocks": {"one_conv1", "two_conv1"},
    "residual-two-blocks-bn": {"one_conv1", "two_conv1"},
    "residual-preactivation": {"one_conv1", "two_conv1"},
    "squeeze-excite": {"squeeze"},
    "inverted-residual-bn": {"expand"},
    "conv-bn-relu": set(),
}
"""By name of a topology the groups that are branches."""


def branches(channels: Channels) -> list[ChannelGroup]:
    return [group for group in channels.groups if group.branch is not None]


def without_inputs(model: onnx.ModelProto, groups: Sequence[ChannelGroup]) -> onnx.ModelProto:
    """What is right: the model with zeros in the place of all that the consumers of some groups read."""
    model, nodes = onnx.ModelProto.FromString(model.SerializeToString()), []
    keys = {link.key: link.layer.node.inputs.index(link.layer.data) for group in groups for link in group.consumers}
    for node in model.graph.node:
        if node.output[0] in keys:
            index, zeros = keys[node.output[0]], f"{node.output[0]}/zeros"
            nodes.append(helper.make_node("Sub", [node.input[index], node.input[index]], [zeros]))
            node.input[index] = zeros
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def emptied(channels: Channels, groups: Sequence[ChannelGroup]) -> onnx.ModelProto:
    small = export(rewrite(channels, [Removal(group, NONE, "prune") for group in groups], {}))
    onnx.checker.check_model(small, full_check=True)
    return small


@pytest.mark.parametrize("name", EXPECTED)
def test_the_branches_of_a_model(name: str, tmp_path: Path) -> None:
    model = built(TOPOLOGIES[name])
    channels = analysed(model, tmp_path).channels
    found = branches(channels)
    assert {group.name for group in found} == EXPECTED[name]
    feeds = {key: np.random.default_rng(0).normal(size=shape).astype(np.float32) for key, shape in TOPOLOGIES[name].feeds.items()}
    for groups in (found[:1], found):
        small = emptied(channels, groups)
        np.testing.assert_allclose(run(small, feeds)[0], run(without_inputs(model, groups), feeds)[0], rtol=1e-4, atol=1e-5)
        left = {output for node in small.graph.node for output in node.output}
        assert not left & {name for group in groups for name in group.branch.nodes}


SEEDS = (0, 4, 10, 13, 17, 21, 24, 26, 28, 34, 57, 79, 82, 93, 30_000, 30_001, 30_004, 30_009)
"""Of random graphs that had branches when this was written."""


@pytest.mark.usefixtures("harmless_models")
def test_branches_of_random_graphs(tmp_path: Path) -> None:
    """Each branch alone, and all of them, give what zeros would give."""
    found = 0
    for seed in SEEDS:
        graph = generate(seed)
        channels = analysed_graph(graph, tmp_path).channels
        groups = branches(channels)
        found += len(groups)
        for some in [[group] for group in groups] + [groups] * (len(groups) > 1):
            check(graph, channels, some, f"seed {seed}, {[group.name for group in some]}")
    assert found > len(SEEDS) // 2


def check(graph: Generated, channels: Channels, groups: Sequence[ChannelGroup], where: str) -> None:
    small = emptied(channels, groups)
    text = difference(without_inputs(graph.model, groups), graph.model, small, graph)
    assert not text, f"{where}: {text}"


RESIDUAL = """<ir_version: 8, opset_import: ["": 17]>
    net (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
    <float[8, 3, 1, 1] s, float[5, 8, 1, 1] a, float[8, 5, 1, 1] b, float[5, 8, 1, 1] c, float[8, 5, 1, 1] d, float[4, 8, 1, 1] o>
    { h = Conv(x, s)  p = Conv(h, a)  pr = Relu(p)  q = Conv(pr, b)  r = Conv(h, c)  rr = Relu(r)  t = Conv(rr, d)
      BODY
      y = Conv(z, o) }"""


def with_weights(text: str) -> onnx.ModelProto:
    """A model from text whose weights are only declared, filled with random numbers."""
    rng, declared = np.random.default_rng(0), text[text.index("<float") : text.index(">\n    {") + 1]
    model = parser.parse_model(text.replace(declared, ""))
    for name, shape in [
        (each.split("] ")[1].strip(" >"), each.split("[")[1].split("]")[0]) for each in declared.split(", float")
    ]:
        sizes = [int(size) for size in shape.split(",")]
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=sizes).astype(np.float32), name))
    return model


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("z1 = Add(q, h)  z = Add(z1, t)", {"p", "r"}),
        ("z = Add(q, t)", {"p"}),  # where both are constants, the sum has no extent
        ("z1 = Add(h, q)  g = Sigmoid(t)  z = Mul(z1, g)", {"p", "r"}),
        ("m = GlobalAveragePool(h)  z1 = Add(m, q)  z = Add(z1, t)", {"r"}),  # the mean has no extent
        ("m = Softmax(q)  z1 = Add(h, m)  z = Add(z1, t)", {"r"}),  # not the same on one position as on all
        ("w = Add(q, p1)  z1 = Add(h, w)  z = Add(z1, t)", {"r"}),  # something else reads the channels
    ],
)
def test_what_is_a_branch(body: str, names: set[str], tmp_path: Path) -> None:
    extra = "p1 = ReduceMean<axes = [1]>(pr)  " if "p1" in body else ""
    model = with_weights(RESIDUAL.replace("BODY", extra + body))
    channels = analysed(model, tmp_path).channels
    groups = branches(channels)
    assert {group.name for group in groups} == names
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 3, 6, 6)).astype(np.float32)}
    expected, found = run(without_inputs(model, groups), feeds)[0], run(emptied(channels, groups), feeds)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_plan_can_empty_a_branch_and_nothing_else(tmp_path: Path) -> None:
    path = written(built(TOPOLOGIES["residual-two-blocks"]), tmp_path)
    result = compress(path, tmp_path / "small.onnx", plan={"one_conv1": 0}, verify=False, bench=False)
    (group,) = [group for group in result.groups if group.kept < group.channels]
    assert (group.name, group.kept) == ("one_conv1", 0)
    with pytest.raises(OptionError, match="cannot keep 0 of its"):
        compress(path, tmp_path / "none.onnx", plan={"stem": 0})


def filled(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """A model from text with random initializers, of the type that its input has."""
    rng, model = np.random.default_rng(0), parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net {text}')
    dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.abs(rng.normal(size=shape)).astype(dtype), name) for name, shape in shapes.items()
    )
    return model


ROWS = {"a": (8, 5), "b": (5, 8)}
MAPS = {"s": (8, 16), "a": (16, 5), "b": (5, 16)}
NOT_PLAIN = {
    "three layers": (
        "(float[N, 8] x) => (float[N, 8] z) { p = Gemm(x, a)  r = Relu(p)  q = Gemm(r, c)  s = Gemm(q, b)  z = Add(x, s) }",
        ROWS | {"c": (5, 5)},
        {"q"},
        [(2, 8)],
    ),
    "two batches, of which one may be 1": (
        "(float[N, 8] x, float[M, 8] w) => (float[K, 8] z) { p = Gemm(x, a)  q = Gemm(p, b)  z = Add(w, q) }",
        ROWS,
        set(),
        [(3, 8), (1, 8)],
    ),
    "normalised over another axis": (
        """(float[N, 6, 8] x) => (float[N, 6, 8] z)
        { p = MatMul(x, a)  q = MatMul(p, b)  n = BatchNormalization(q, g, g, g, g)  z = Add(x, n) }""",
        ROWS | {"g": (6,)},
        set(),
        [(2, 6, 8)],
    ),
    "normalised behind a Transpose": (
        """(float[N, 6, 8] x) => (float[N, 8, 6] z)
        { h = Transpose<perm = [0, 2, 1]>(x)  p = MatMul(x, a)  q = MatMul(p, b)  t = Transpose<perm = [0, 2, 1]>(q)
          n = BatchNormalization(t, g, g, g, g)  z = Add(h, n) }""",
        ROWS | {"g": (8,)},
        {"p"},
        [(2, 6, 8)],
    ),
    "joined in float64, which nothing convolves": (
        """(double[N, 6, 6, 8] x) => (double[N, 16, 6, 6] z)
        { h = MatMul(x, s)  i = Transpose<perm = [0, 3, 1, 2]>(h)  p = MatMul(h, a)  q = MatMul(p, b)
          t = Transpose<perm = [0, 3, 1, 2]>(q)  z = Add(i, t) }""",
        MAPS,
        {"p"},
        [(2, 6, 6, 8)],
    ),
    "two recurrent layers without their first output": (
        """(float[5, 2, 4] x, float[2, 8] h) => (float[2, 8] z, float[2, 3] y)
        { "", r = GRU<hidden_size = 6>(x, i, j)  s = Transpose<perm = [1, 0, 2]>(r)  t = Flatten(s)
          p = MatMul(t, u)  z = Add(h, p)
          "", k = GRU<hidden_size = 6>(x, i2, j2)  l = Transpose<perm = [1, 0, 2]>(k)  m = Flatten(l)  y = MatMul(m, v) }""",
        {"i": (1, 18, 4), "j": (1, 18, 6), "i2": (1, 18, 4), "j2": (1, 18, 6), "u": (6, 8), "v": (6, 3)},
        {"r"},
        [(5, 2, 4), (2, 8)],
    ),
}


@pytest.mark.parametrize(("text", "weights", "names", "shapes"), NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_joins_that_are_not_plain(
    text: str, weights: dict[str, tuple[int, ...]], names: set[str], shapes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    model = filled(text, **weights)
    channels = analysed(model, tmp_path).channels
    assert {group.name for group in branches(channels)} == names
    other = [Removal(group, np.arange(3), "prune") for group in channels.groups if group.name == "k"]  # beside the branch
    dtypes = [helper.tensor_dtype_to_np_dtype(each.type.tensor_type.elem_type) for each in model.graph.input]
    feeds = {
        each.name: np.random.default_rng(1).normal(size=shape).astype(dtype)
        for each, shape, dtype in zip(model.graph.input, shapes, dtypes, strict=True)
    }
    for group in branches(channels):
        small = export(rewrite(channels, [Removal(group, NONE, "prune"), *other], {}))
        onnx.checker.check_model(small, full_check=True)
        expected, found = run(without_inputs(model, [group]), feeds)[0], run(small, feeds)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


COUNTED = ("residual-two-blocks-bn", "squeeze-excite", "inverted-residual-bn", "residual-preactivation")


@pytest.mark.parametrize("name", [*COUNTED, "three layers"])
def test_parameters_and_macs_are_known_before(name: str, tmp_path: Path) -> None:
    """Whatever the groups keep, nothing included, and along the counts of each group."""
    model = filled(NOT_PLAIN[name][0], **NOT_PLAIN[name][1]) if name in NOT_PLAIN else built(TOPOLOGIES[name])
    model_analysed, rng = analysed(model, tmp_path), np.random.default_rng(0)
    groups = list(model_analysed.channels.groups)
    assert branches(model_analysed.channels)
    classes = cost_classes(model_analysed.channels, groups)
    tables = tuple(np.arange(group.size + 1.0)[:, None] for group in groups)
    kinds = {"parameters": parameter_terms, "macs": mac_terms}
    costs = {
        kind: Cost(*terms(model_analysed.channels, groups, classes, model_analysed.shapes), tables, inner=inner_groups(groups))
        for kind, terms in kinds.items()
    }
    for _ in range(6):
        counts = np.array([rng.integers(0 if group.branch else 1, 4) for group in groups])
        counts = np.where(
            counts == 3, [group.size for group in groups], np.minimum(counts * 2, [group.size - 1 for group in groups])
        )
        removals = [
            Removal(group, np.arange(count), "prune") for group, count in zip(groups, counts, strict=True) if count < group.size
        ]
        size = candidate_of(model_analysed, PruningDecision(tuple(removals), {}, ())).size
        constants = sum(  # what stays in the place of a branch, and what joins it
            sum(np.prod(model_analysed.shapes[join][1:2]) for join in group.branch.joins)
            for group, count in zip(groups, counts, strict=True)
            if count == 0
        )
        assert abs(costs["macs"].total(counts) - size.macs) <= 64 * constants
        assert abs(costs["parameters"].total(counts) - size.parameters) <= 4 * constants
        for cost in costs.values():
            for at, group in enumerate(groups):
                tried = [count for count in (0, 1, group.size) if count or group.branch]
                along = cost.along(counts, at, tried)
                totals = [cost.total([*counts[:at], count, *counts[at + 1 :]]) for count in tried]
                np.testing.assert_allclose(along - along[-1], np.array(totals) - totals[-1], atol=1e-6)
