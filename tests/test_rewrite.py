"""Channels leave, and nothing else changes: for every topology of the table, against oracles that do not ask the program."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from running import PRODUCERS, analysed, analysed_topology, built, relative_error, run, tolerance_of, weights_of, written
from topologies import TOPOLOGIES, Topology, feeds_of

from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.rewrite import Removal, Replacement, rewrite
from onnxmerge.onnxio.edits import new_constant
from onnxmerge.onnxio.export import export
from onnxmerge.onnxio.model import from_proto
from onnxmerge.pipeline.compress import compress

pytestmark = pytest.mark.usefixtures("harmless_models")

RUNNABLE = [topology for topology in TOPOLOGIES.values() if topology.runnable]
SHRINKING = [topology for topology in RUNNABLE if any(topology.removable.values())]


# One weight for two layers, of which the zeros are written into one.
UNTIED = {"tied-with-its-transpose", "tied-gemm-transb"}


def rows(topologies: Sequence[Topology]) -> list:
    return [pytest.param(topology, id=topology.id) for topology in topologies]


def pruned(model: onnx.ModelProto, folder: Path, ratio: float, method: str = "prune"):
    """The model compressed, and what `compress` says of it."""
    source, target = written(model, folder), folder / "out.onnx"
    result = compress(source, target, ratio=ratio, method=method, verify=False, provenance=False)
    return onnx.load(target), result


@pytest.mark.parametrize("topology", rows(SHRINKING))
def test_a_ratio_of_zero_changes_no_bit(topology: Topology, tmp_path: Path) -> None:
    model, feeds = built(topology), feeds_of(topology)
    same, result = pruned(model, tmp_path, 0.0, "merge" if topology.merge else "prune")
    before, after = weights_of(model), weights_of(same)
    if result.simplifications:
        assert len(same.graph.node) < len(model.graph.node)
        assert relative_error(run(model, feeds), run(same, feeds)) < tolerance_of(topology, 1e-6)
        return
    assert after.keys() <= before.keys()
    assert all(after[name].tobytes() == before[name].tobytes() and after[name].shape == before[name].shape for name in after)
    assert [y.tobytes() for y in run(same, feeds)] == [y.tobytes() for y in run(model, feeds)]
    assert result.after.parameters == result.before.parameters
    assert result.after.macs == result.before.macs


def half_of(group: ChannelGroup) -> Removal:
    """Every second removable channel leaves, equally many of every convolution group, never all of one or of a tensor."""
    parts = [np.flatnonzero(group.removable & (group.conv_groups == each)) for each in np.unique(group.conv_groups)]
    count = min(min(len(part), (group.conv_groups == group.conv_groups[part[0]]).sum() - 1) for part in parts) if parts else 0
    going = np.concatenate([part[::2][: (count + 1) // 2] for part in parts])
    for piece in group.pieces:
        if set(np.flatnonzero(piece)) <= set(going):
            going = np.setdiff1d(going, np.flatnonzero(piece)[:1])
    return Removal(group, np.setdiff1d(np.arange(group.size), going), "prune")


def with_unread_channels(channels: Channels, removals: Sequence[Removal]) -> dict[str, Replacement]:
    """Every consumer with zeros where it reads what is going to leave."""
    weights: dict[str, np.ndarray] = {}
    for removal in removals:
        going = np.setdiff1d(np.arange(removal.group.size), removal.kept)
        for link in removal.group.consumers:
            weight = weights.get(link.key, link.layer.stored_weight)

            def without(columns: np.ndarray, going: np.ndarray = going) -> np.ndarray:
                columns[:, going] = 0.0
                return columns

            weights[link.key] = link.with_columns(weight, without)
    return {key: Replacement(weight) for key, weight in weights.items()}


def without_states(model: onnx.ModelProto, channels: Channels, removals: list[Removal]) -> None:
    """Zeros are written into what units of recurrent layers read of removed ones."""
    kept, stored = channels.kept_mask((each.group, each.kept) for each in removals), model.graph.initializer
    for layer in [layer for layer in channels.layers if not layer.is_linear]:
        tensor = next(tensor for tensor in stored if tensor.name == layer.node.inputs[2].name)
        values = numpy_helper.to_array(tensor) * kept[layer.units].astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("topology", rows([each for each in SHRINKING if not each.id.startswith("attention-")]))
def test_removing_what_nobody_reads_changes_nothing(topology: Topology, tmp_path: Path) -> None:
    """Zeros are written into the columns of every consumer; then the channels are really removed: the same outputs.

    Attention has products that read channels: test_attention.py.
    """
    feeds = feeds_of(topology)
    channels = analysed_topology(topology, tmp_path).channels
    groups = channels.groups
    assert groups
    for chosen in [[number] for number in range(len(groups))] + [list(range(len(groups)))] * (len(groups) > 1):
        removals = [half_of(groups[number]) for number in chosen]
        assert all(0 < len(removal.kept) < removal.group.size for removal in removals)
        zeroed = with_unread_channels(channels, removals)
        before = export(channels.model).SerializeToString()
        small, whole = (export(rewrite(channels, each, zeroed)) for each in (removals, []))
        assert export(channels.model).SerializeToString() == before  # the model at hand stays as it is
        assert size(small) < size(whole)
        assert size(whole) == size(export(channels.model)) or topology.id in UNTIED
        without_states(whole, channels, removals)
        error = relative_error(run(whole, feeds), run(small, feeds))
        assert error < tolerance_of(topology, 1e-5), groups[chosen[0]].name


@pytest.mark.parametrize("topology", rows(SHRINKING))
def test_the_analysed_model_stays_as_it_is(topology: Topology, tmp_path: Path) -> None:
    """Channels leave, every consumer gets a new weight and a bias; then the same again: the same bytes, twice."""
    channels = analysed(built(topology), tmp_path).channels
    removals = [half_of(group) for group in channels.groups]
    consumers = {link.key: link.layer for removal in removals for link in removal.group.consumers}
    new = {
        key: Replacement(np.asarray(layer.stored_weight * 2, layer.stored_weight.dtype), np.arange(layer.out_ids.size) * 0.5)
        for key, layer in consumers.items()
    }
    state = state_of(channels)
    first = export(rewrite(channels, removals, new)).SerializeToString()
    assert state_of(channels) == state
    assert export(rewrite(channels, removals, new)).SerializeToString() == first
    assert export(rewrite(channels, [], {})).SerializeToString() == state[0]


def state_of(channels: Channels) -> list[object]:
    """The model as it would be written, its nodes as Python values, and every array that the analysis holds."""
    nodes = [(node.op, str(node.attrs), [t.name for t in (*node.inputs, *node.outputs)]) for node in channels.model.graph.nodes]
    arrays = [array for layer in channels.layers for array in (layer.stored_weight, layer.weight, layer.in_ids, layer.out_ids)]
    for parameter in channels.parameters:
        arrays += [parameter.ids, channels.constant(parameter.node.inputs[parameter.input_index])]
    protos = [export(channels.model), channels.model.proto]
    return [*(proto.SerializeToString() for proto in protos), nodes, [array.tobytes() for array in arrays]]


def size(model: onnx.ModelProto) -> int:
    """Floating-point parameters, counted in the file."""
    return sum(array.size for array in weights_of(model).values() if array.dtype.kind == "f")


@pytest.mark.parametrize("topology", rows(SHRINKING))
def test_pruned_models_run_as_declared(topology: Topology, tmp_path: Path) -> None:
    model, ratio = built(topology), (0.3, 0.7)[SHRINKING.index(topology) % 2]
    model.doc_string, model.model_version, model.graph.doc_string = "what it is", 3, "the graph"
    model.metadata_props.add(key="author", value="somebody")
    small, result = pruned(model, tmp_path, ratio)
    onnx.checker.check_model(small, full_check=True)
    initializers = {tensor.name for tensor in model.graph.initializer}
    for of in ("input", "output"):
        declared = [[value for value in getattr(m.graph, of) if value.name not in initializers] for m in (model, small)]
        declared[1] = [value for value in declared[1] if value.name in {one.name for one in declared[0]}]
        assert declared[0] == declared[1]
    for of in ("doc_string", "model_version", "metadata_props", "producer_name", "ir_version", "opset_import"):
        assert getattr(small, of) == getattr(model, of)
    assert small.graph.doc_string == "the graph"
    for batch in (2, 3):
        feeds = batch_of(topology, model, batch)
        before, after = run(model, feeds), run(small, feeds)
        assert [(y.shape, y.dtype) for y in after] == [(y.shape, y.dtype) for y in before]
        assert all(np.isfinite(y).all() for y in after)
    assert result.groups
    assert not [refusal for refusal in result.refusals if "would not run" in refusal.text]
    assert result.after.parameters == size(small) < size(model) == result.before.parameters
    feeds = {each.name: np.zeros(each.shape, batch_of(topology, model, 1)[each.name].dtype) for each in result.inputs}
    assert result.after.macs == counted_macs(small, feeds) < result.before.macs == counted_macs(model, feeds)
    assert result.after.file_bytes == (tmp_path / "out.onnx").stat().st_size
    assert result.after.file_bytes < result.before.file_bytes
    assert {each.name for each in small.graph.value_info} <= {each.name for each in model.graph.value_info}


def batch_of(topology: Topology, model: onnx.ModelProto, batch: int) -> dict[str, np.ndarray]:
    """Inputs with another batch where the model allows one."""
    dims = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    return {
        name: np.concatenate([value, value])[:batch] if dims[name][0].dim_param else value
        for name, value in feeds_of(topology).items()
    }


def counted_macs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> int:
    """One multiplication for each output value and each number that it is the sum of, from a run."""
    recurrent = [node for node in model.graph.node if node.op_type in ("LSTM", "GRU", "RNN")]
    attending = [node for node in model.graph.node if node.op_type in ("Attention", "MultiHeadAttention")]
    layers = [*(node for node in model.graph.node if node.op_type in PRODUCERS), *recurrent, *attending]
    names = list(dict.fromkeys(name for node in layers for name in (*node.input[:2], node.output[0])))
    weights = weights_of(model)
    names = [name for name in names if name not in feeds and name not in weights]
    seen = dict(zip(names, run(model, feeds, tuple(names))[len(model.graph.output) :], strict=True))
    shapes = {name: value.shape for name, value in (weights | seen | feeds).items()}
    total = 0
    for node in recurrent:  # both weights at every step
        weights = (weights_of(model)[name].size for name in node.input[1:3])
        total += int(np.prod(shapes[node.input[0]][:2])) * sum(weights)
    for node in attending:  # each number of a query and of the output, for every key
        query, key, out = (np.array(shapes[name]) for name in (*node.input[:2], node.output[0]))
        total += int(key[-2] * (query.prod() + out.prod()))
    for node in layers[: len(layers) - len(recurrent) - len(attending)]:
        left, right, out = (shapes[name] for name in (*node.input[:2], node.output[0]))
        if node.op_type == "Einsum":  # every axis stands in two of the three
            total += round(np.sqrt(np.prod(left) * np.prod(right) * np.prod(out)))
            continue
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        summed = {"Conv": right[1:], "Gemm": left[:1] if transposed else left[1:], "MatMul": left[-1:]}
        values = left if node.op_type == "ConvTranspose" else out
        total += int(np.prod(values)) * int(np.prod(summed.get(node.op_type, right[1:])))
    return total


# By hand: a 3 x 3 convolution of n to m channels on p positions has 9 n m weights, m biases and 9 n m p multiplications.
@pytest.mark.parametrize(
    ("name", "ratio", "widths", "parameters", "macs"),
    [
        ("conv-relu-conv", 0.0, {"conv_a": 8}, 9 * 24 + 8 + 9 * 32 + 4, 64 * (9 * 24 + 9 * 32)),
        ("conv-relu-conv", 0.3, {"conv_a": 6}, 9 * 18 + 6 + 9 * 24 + 4, 64 * (9 * 18 + 9 * 24)),
        ("conv-relu-conv-strided", 0.5, {"conv_a": 4}, 9 * 12 + 4 + 9 * 16 + 4, 16 * (9 * 12 + 9 * 16)),
        ("gemm-relu-gemm-transb0", 0.25, {"fc_a": 18, "fc_b": 9}, 17 * 18 + 19 * 9 + 10 * 4, 16 * 18 + 18 * 9 + 9 * 4),
        ("matmul-add-3d", 0.5, {"fc_a": 12}, 17 * 12 + 13 * 4, 5 * (16 * 12 + 12 * 4)),
        ("flatten-spatial", 0.5, {"conv_a": 4}, 9 * 12 + 4 + 64 * 4 + 4, 64 * 9 * 12 + 64 * 4),
        ("grouped-conv", 0.5, {"conv_a": 4, "grouped": 8}, 16 + 8 * 9 + 8 + 36, 64 * (12 + 8 * 9 + 32)),
        ("depthwise", 0.75, {"conv_a": 2}, 8 + 20 + 12, 64 * (6 + 18 + 8)),
        ("conv-transpose", 0.5, {"conv_a": 4, "up": 3}, 112 + 4 * 3 * 4 + 3 + 112, 64 * (108 + 48) + 256 * 108),
    ],
)
def test_sizes_are_those_worked_out_by_hand(
    name: str, ratio: float, widths: dict[str, int], parameters: int, macs: int, tmp_path: Path
) -> None:
    _, result = pruned(built(TOPOLOGIES[name]), tmp_path, ratio)
    assert (result.after.parameters, result.after.macs) == (parameters, macs)
    assert {group.name: group.kept for group in result.groups} == (widths if ratio else {})


# Which axis of which tensor holds the channels of a layer, by hand.
CHAINS = [
    ("conv-bn-relu", {"conv_a_w": 0, "bn_a_scale": 0, "bn_a_bias": 0, "bn_a_mean": 0, "bn_a_var": 0, "conv_b_w": 1}),
    ("gemm-relu-gemm-transb0", {"fc_a_w": 1, "fc_a_b": 0, "fc_b_w": 0}),
    ("gemm-relu-gemm-transb1", {"fc_a_w": 0, "fc_a_b": 0, "fc_b_w": 1}),
    ("matmul-add-3d", {"fc_a_w": 1, "fc_a_b": 0, "out_w": 0}),
    ("matmul-weight-left", {"mix_a_w": 0, "mix_a_b": 0, "out_w": 1}),
    ("bn-as-mul-add-1c11", {"conv_a_w": 0, "scale": 1, "shift": 1, "out_w": 1}),
    ("conv-transpose", {"conv_a_w": 0, "conv_a_b": 0, "up_w": 0}),
    ("residual-identity", {"stem_w": 0, "stem_b": 0, "block_conv1_w": 1, "block_conv2_w": 0, "block_conv2_b": 0, "out_w": 1}),
    ("depthwise", {"conv_a_w": 0, "conv_a_b": 0, "depthwise_w": 0, "depthwise_b": 0, "out_w": 1}),
]


@pytest.mark.parametrize("method", ["prune", "merge"])
@pytest.mark.parametrize(("name", "axes"), [pytest.param(*chain, id=chain[0]) for chain in CHAINS])
def test_the_order_of_channels_does_not_matter(name: str, axes: dict[str, int], method: str, tmp_path: Path) -> None:
    topology = TOPOLOGIES[name]
    model, feeds = built(topology), feeds_of(topology)
    shuffled = onnx.ModelProto.FromString(model.SerializeToString())
    tensors = {tensor.name: tensor for tensor in shuffled.graph.initializer}
    order = None
    for tensor, axis in axes.items():
        values = numpy_helper.to_array(tensors[tensor])
        order = np.random.default_rng(5).permutation(values.shape[axis]) if order is None else order
        tensors[tensor].CopyFrom(numpy_helper.from_array(values.take(order, axis), tensor))
    assert relative_error(run(model, feeds), run(shuffled, feeds)) < 1e-5
    (one, result), (other, _) = pruned(model, tmp_path, 0.3, method), pruned(shuffled, tmp_path, 0.3, method)
    assert bool(result.groups) == (method == "prune" or topology.merge is not False)
    outputs = run(one, feeds), run(other, feeds)
    assert relative_error(*outputs) < 1e-5
    assert not result.groups or relative_error(run(model, feeds), outputs[0]) > 1e-3


FILLED = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 4] x) => (float[N, 3] y) <int64[2] first = {4, 300}, int64[2] second = {300, 3}>
{
  v = ConstantOfShape <value = float[1] {0.5}> (first)
  w = ConstantOfShape <value = float[1] {0.25}> (second)
  hidden = MatMul(x, v)
  active = Relu(hidden)
  y = MatMul(active, w)
}"""


@pytest.mark.parametrize("method", ["prune", "merge", "reconstruct"])
def test_weights_that_take_no_room_in_the_file_take_none_afterwards(method: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(FILLED)
    small, result = pruned(model, tmp_path, 0.5, method)
    assert result.groups[0].kept < 300
    assert result.after.file_bytes < result.before.file_bytes + 100
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(run(small, {"x": x})[0], run(model, {"x": x})[0] * (result.groups[0].kept / 300), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_new_weights_hold_no_number_that_is_denormal_where_it_is_computed_with(dtype: type) -> None:
    model = from_proto(onnx.parser.parse_model(FILLED))
    tiny = np.finfo(dtype).tiny
    values = np.array([tiny, -tiny, tiny / 2, -tiny / 2, 1], dtype)
    kept = values if dtype is np.float16 else np.array([tiny, -tiny, 0, 0, 1], dtype)  # float16 is computed in float32
    assert new_constant(model, "w", values).values.tolist() == kept.tolist()
    assert values[2] != 0
