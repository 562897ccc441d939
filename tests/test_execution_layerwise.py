"""A layer-wise run gives at every position what one run of the whole model gives, wherever it stops and keeps tensors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from running import built, run
from topologies import TOPOLOGIES, feeds_of

from onnxmerge.execution import layerwise as layerwise_module
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.execution.submodel import shallow_first, tensors_read
from onnxmerge.execution.tensor_store import TensorStore

MODELS = [
    "residual-two-blocks-bn",
    "concat-same-twice",
    "densenet-bn",
    "unet",
    "if-body-capture",
    "attention-block",
    "shuffle-v2-unit",
    "lstm-after-conv",
    "two-inputs",
    "squeeze-excite-gemm",
    "reshape-shape-subgraph",
    "weight-behind-transpose",
    "weights-in-constant-nodes",
    "split-input",
    "initializers-as-inputs-ir3-opset7",
    "float16",
    "output-also-consumed",
]


def sequence_model() -> onnx.ModelProto:
    """A list of tensors crosses between two convolutions, as PyTorch writes a split into parts whose number it does not know."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(size=shape).astype(np.float32) for i, shape in enumerate([(8, 3, 1, 1), (4, 4, 1, 1)])}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="conv_a"),
        helper.make_node("SplitToSequence", ["a", "size"], ["parts"], axis=1),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("SequenceAt", ["parts", "zero"], ["part"]),
        helper.make_node("Conv", ["part", "w1"], ["y"], name="out"),
        helper.make_node("ReduceMean", ["b"], ["z"], axes=[1]),
    ]
    constants = {**weights, "size": np.array(4), "zero": np.array(0)}
    graph = helper.make_graph(
        nodes,
        "sequence",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info(name, 1, ["N", channels, 8, 8]) for name, channels in (("y", 4), ("z", 1))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def model_and_batches(name: str) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    if name == "sequence":
        return sequence_model(), [{"x": np.random.default_rng(seed).normal(size=(2, 3, 8, 8)).astype("f")} for seed in range(2)]
    topology = TOPOLOGIES[name]
    return built(topology), [feeds_of(topology, seed) for seed in range(2)]


def constants_of(model: onnx.ModelProto) -> set[str]:
    """Initializers and what is computed from them alone."""
    found = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if tensors_read(node) <= found:
            found |= set(node.output)
    return found


def all_tensors(model: onnx.ModelProto, batches: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Every tensor of the main graph, by one run of the whole model a batch."""
    given = {value.name for value in model.graph.output} | constants_of(model)
    names = tuple(name for node in model.graph.node for name in node.output if name and name not in given)
    results = []
    for feeds in batches:
        values = run(model, feeds, names)
        keys = (*[value.name for value in model.graph.output], *names)
        results.append({**feeds, **dict(zip(keys, values, strict=True))})
    return results


def check_position(layerwise: LayerwiseRun, at: int, expected: list[dict[str, np.ndarray]]) -> None:
    """What is available equals the one run, and is all that the node at this position needs."""
    assert layerwise.position == at
    for number, tensors in enumerate(expected):
        for name in layerwise.available:
            assert_same(layerwise.tensors.get(number, name), tensors[name])
        (output,) = [name for name in layerwise.nodes[at][-1].output if name][-1:]
        if output in tensors:
            session = layerwise.session_of_node(at)
            feeds = {spec.name: layerwise.tensors.get(number, spec.name) for spec in session.inputs}
            assert_same(session.run(feeds)[output], tensors[output])


def assert_same(found: object, expected: object) -> None:
    for one, other in zip(found, expected, strict=True) if isinstance(expected, list) else [(found, expected)]:
        tolerance = 2e-3 if np.asarray(other).dtype == np.float16 else 1e-5
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [*MODELS, "sequence"])
def test_every_position_gives_what_one_run_gives(name: str) -> None:
    model, batches = model_and_batches(name)
    expected = all_tensors(model, batches)
    layerwise = LayerwiseRun(model, batches)
    for at in range(len(model.graph.node)):
        layerwise.run_until(at)
        check_position(layerwise, at, expected)


@pytest.mark.parametrize("stride", [2, 3, 100])
@pytest.mark.parametrize("name", ["residual-two-blocks-bn", "unet", "if-body-capture", "sequence"])
def test_it_does_not_matter_where_it_stops(name: str, stride: int) -> None:
    model, batches = model_and_batches(name)
    expected = all_tensors(model, batches)
    layerwise, last = LayerwiseRun(model, batches), len(model.graph.node) - 1
    for at in [*range(0, last, stride), last]:
        layerwise.run_until(at)
        check_position(layerwise, at, expected)


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_every_node_runs_once_for_each_batch(name: str, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: Counter[str] = Counter()
    opened = layerwise_module.open_session

    class Counting:
        def __init__(self, part: bytes, *arguments: object, **options: object) -> None:
            self.session = opened(part, *arguments, **options)
            self.nodes = [node.output[0] for node in onnx.ModelProto.FromString(part).graph.node]
            self.inputs = self.session.inputs

        def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            runs.update(self.nodes)
            return self.session.run(feeds)

    monkeypatch.setattr(layerwise_module, "open_session", Counting)
    model, batches = model_and_batches(name)
    layerwise = LayerwiseRun(model, batches)
    for at in [*range(0, len(model.graph.node), stride), len(model.graph.node)]:
        layerwise.run_until(at)
    last = {name for node in model.graph.node for name in tensors_read(node)}
    computed = {node.output[0] for node in model.graph.node if last & set(node.output)} - constants_of(model)
    assert {name: runs[name] for name in computed if runs[name] > len(batches)} == {}
    if stride == 1:
        assert {name: runs[name] for name in computed if runs[name] != len(batches)} == {}


@pytest.mark.parametrize("name", ["residual-two-blocks-bn", "unet", "two-inputs"])
def test_beyond_the_limit_tensors_go_to_disk(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, batches = model_and_batches(name)
    expected, limit, on_disk = all_tensors(model, batches), 3000, 0
    layerwise = LayerwiseRun(model, batches, tensors=TensorStore(limit))
    for at in range(len(model.graph.node)):
        layerwise.run_until(at)
        check_position(layerwise, at, expected)
        held = [layerwise.tensor(number, name) for number in range(2) for name in layerwise.available]
        assert sum(value.nbytes for value in held if not isinstance(value, np.memmap)) <= limit
        files = list(tmp_path.rglob("*.npy"))
        assert len(files) == sum(isinstance(value, np.memmap) for value in held)
        on_disk = max(on_disk, len(files))
    assert on_disk > 0
    held.clear()
    layerwise.run_until(len(model.graph.node))
    assert not list(tmp_path.rglob("*.npy"))


def test_the_store_counts_what_it_holds_and_deletes_only_its_own_files(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.npy"
    np.save(theirs, np.ones(100, np.float32))
    store = TensorStore(1000)
    store.put(0, "mapped", np.load(theirs, mmap_mode="r"))
    store.put(0, "large", np.arange(300, dtype=np.float32))
    store.put(0, "small", np.arange(100, dtype=np.float32))
    assert [isinstance(store.get(0, name), np.memmap) for name in ("large", "small")] == [True, False]
    np.testing.assert_array_equal(store.get(0, "large"), np.arange(300))
    store.put(0, "small", np.zeros(150, np.float32))
    assert not isinstance(store.get(0, "small"), np.memmap)
    for name in ("mapped", "large", "small"):
        store.drop(0, name)
    store.put(0, "again", np.zeros(250, np.float32))
    assert not isinstance(store.get(0, "again"), np.memmap)
    assert theirs.exists()


def test_replaced_nodes_are_what_is_run() -> None:
    model, batches = model_and_batches("residual-two-blocks")
    at = next(at for at, node in enumerate(model.graph.node) if node.name == "one_conv2")
    node = onnx.NodeProto.FromString(model.graph.node[at].SerializeToString())
    weight = np.random.default_rng(5).normal(size=(8, 6, 3, 3)).astype(np.float32)
    output, node.input[1], node.output[0] = node.output[0], "new", "raw"
    added = helper.make_node("Add", ["raw", "shift"], [output])
    shift = np.arange(8, dtype=np.float32).reshape(-1, 1, 1)
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    del changed.graph.node[at]
    for number, other in enumerate((node, added)):
        changed.graph.node.insert(at + number, other)
    changed.graph.initializer.extend([numpy_helper.from_array(weight, "new"), numpy_helper.from_array(shift, "shift")])
    expected = all_tensors(changed, batches)

    before = model.SerializeToString()
    layerwise = LayerwiseRun(model, batches)
    layerwise.run_until(at)
    layerwise.replace_node(at, [node, added], {"new": np.zeros_like(weight), "shift": shift})
    layerwise.replace_node(at, [node, added], {"new": weight, "shift": shift})
    check_position(layerwise, at, expected)
    for stop in range(at + 1, len(model.graph.node)):
        layerwise.run_until(stop)
        for number in range(2):
            for name in layerwise.available:
                assert_same(layerwise.tensor(number, name), expected[number][name])
    with pytest.raises(ValueError, match="already been run"):
        layerwise.replace_node(at, [node], {})
    assert model.SerializeToString() == before  # other runs share it


def test_weights_given_beside_a_model_stand_in_the_place_of_its_own() -> None:
    model, batches = model_and_batches("residual-two-blocks")
    expected, hollow = all_tensors(model, batches), onnx.ModelProto.FromString(model.SerializeToString())
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in hollow.graph.initializer if len(tensor.dims) == 4}
    for tensor in [each for each in hollow.graph.initializer if each.name in weights]:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    layerwise = LayerwiseRun(hollow, batches, constants=weights)
    layerwise.run_until(len(model.graph.node) - 1)
    assert layerwise.available
    for name in layerwise.available:
        assert_same(layerwise.tensor(1, name), expected[1][name])


def test_inputs_that_nothing_reads_any_more_are_dropped() -> None:
    model, batches = model_and_batches("two-inputs")
    layerwise = LayerwiseRun(model, batches)
    assert set(layerwise.available) == {"image", "state"}
    layerwise.run_until(len(model.graph.node))
    assert not layerwise.available
    with pytest.raises(KeyError):
        layerwise.tensor(0, "image")


@pytest.mark.parametrize("name", [*MODELS, "sequence", "residual-two-blocks", "residual-projection", "inverted-residual-bn"])
def test_shallow_first_reorders_and_changes_nothing_else(name: str) -> None:
    model, batches = model_and_batches(name)
    ordered = onnx.ModelProto.FromString(model.SerializeToString())
    shallow_first(ordered)
    assert sorted(str(node) for node in ordered.graph.node) == sorted(str(node) for node in model.graph.node)
    onnx.checker.check_model(ordered)
    for one, other in zip(run(ordered, batches[0]), run(model, batches[0]), strict=True):
        assert_same(one, other)


def test_shallow_first_puts_the_projection_before_the_branch_it_is_added_to() -> None:
    model, _ = model_and_batches("residual-projection")
    shallow_first(model)
    names = [node.name for node in model.graph.node]
    assert names.index("projection") < names.index("block_conv2")


def test_a_revised_node_is_run_again_up_to_what_depends_on_it() -> None:
    """And what it reads is held until then, no longer."""
    model, batches = model_and_batches("conv-relu-conv")
    first, last = model.graph.node[0], next(at for at, node in enumerate(model.graph.node) if node.name == "out")
    node = onnx.NodeProto.FromString(first.SerializeToString())
    old = next(numpy_helper.to_array(each) for each in model.graph.initializer if each.name == node.input[1])
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    node.input[1] = changed.graph.node[0].input[1] = "new"
    changed.graph.initializer.append(numpy_helper.from_array(-old, "new"))
    expected = all_tensors(changed, batches)

    layerwise = LayerwiseRun(model, batches)
    layerwise.hold(first.input[0], last)
    layerwise.run_until(last)
    path = first.input[0], model.graph.node[last].input[0]
    layerwise.revise_node(0, [node], {"new": -old}, path)
    assert set(path) == set(layerwise.available)
    for number in range(2):
        assert_same(layerwise.tensor(number, path[1]), expected[number][path[1]])
    layerwise.run_until(last + 1)
    assert first.input[0] not in layerwise.available
