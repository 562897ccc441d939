"""The channels that the program finds are those that were worked out by hand, for every topology of the table."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from running import LAYERS, analysed, analysed_topology, built, run, weights_of
from topologies import TOPOLOGIES, Topology, feeds_of
from topologies.net import Net

from onnxmerge.errors import Reason, Refusal
from onnxmerge.graph.channel_analysis import analyse_channels
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.merge_validity import pre_activations
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio.model import from_proto
from onnxmerge.pipeline.compress import compress

pytestmark = pytest.mark.usefixtures("harmless_models")

ROWS = [pytest.param(topology, id=topology.id) for topology in TOPOLOGIES.values() if topology.runnable]

# Tied by the program, and not by necessity: one weight used twice in a row, and halves that are interleaved.
TIED_ALL_THE_SAME = {"shared-weight-in-sequence", "shuffle-v2-unit"}


def free_channels(channels: Channels) -> dict[str, int]:
    """Producer -> how many of its output channels could go."""
    free = Counter[str]()
    for group in channels.groups:
        free.update({link.name: int((link.positions[group.removable] >= 0).sum()) for link in group.producers})
    return free


@pytest.mark.parametrize("topology", ROWS)
def test_channels_ties_and_reasons(topology: Topology, tmp_path: Path) -> None:
    channels = analysed_topology(topology, tmp_path).channels
    free, names = free_channels(channels), [{link.name for link in group.producers} for group in channels.groups]
    expected = {name: free.get(name, 0) for name in topology.removable}
    assert expected == topology.removable
    assert all(free.get(name, 0) <= most for name, most in topology.at_most.items())
    assert all(any(set(tied) <= found for found in names) for tied in topology.tied if free.keys() & set(tied))
    apart = [found for found in names if len(found) > 1 and not any(found <= set(tied) for tied in topology.tied)]
    assert not apart or topology.id in TIED_ALL_THE_SAME
    reasons = {refusal.where: refusal.text for refusal in channels.refusals}
    assert all(reasons.get(name) for name in {*topology.removable, *topology.at_most} if not free.get(name, 0))
    assert all(refusal.where and refusal.text for refusal in channels.refusals)
    assert len({group.name for group in channels.groups}) == len(channels.groups)


@pytest.mark.parametrize("topology", ROWS)
def test_merging_is_accepted_where_it_is_valid(topology: Topology, tmp_path: Path) -> None:
    channels = analysed_topology(topology, tmp_path).channels
    refused = [found for group in channels.groups if isinstance(found := pre_activations(channels, group), Refusal)]
    assert topology.merge is not True or not refused
    assert topology.merge is not False or len(refused) == len(channels.groups) > 0
    assert all(refusal.where and refusal.text for refusal in refused)


@pytest.mark.parametrize("topology", ROWS)
def test_every_layer_can_shrink_or_has_a_reason(topology: Topology, tmp_path: Path) -> None:
    model = built(topology)
    channels = analysed_topology(topology, tmp_path).channels
    touched = {link.name for group in channels.groups for link in (*group.producers, *group.consumers)}
    touched |= {name for group in channels.groups for name in group.layer_names}
    constants = weights_of(model).keys()
    layers = [node for node in model.graph.node if node.op_type in LAYERS and set(node.input) & constants]
    missing = {node.name for node in layers} - touched - {refusal.where for refusal in channels.refusals}
    assert not missing


def test_an_unknown_operator_pins_what_enters_it() -> None:
    """ONNX Runtime cannot run it, so the shapes are told here."""
    topology = TOPOLOGIES["unknown-custom-operator"]
    model = built(topology)
    shapes = {name: (2, 8, 8, 8) for name in ("conv_a_y", "relu_1_y", "mystery_2_y")}
    shapes |= {"x": (2, 3, 8, 8), "conv_b_y": (2, 6, 8, 8), "relu_4_y": (2, 6, 8, 8), "out_y": (2, 4, 8, 8)}
    channels = analyse_channels(TensorFacts(from_proto(model), shapes))
    assert {name: free_channels(channels).get(name, 0) for name in topology.removable} == topology.removable
    reason = next(refusal.text for refusal in channels.refusals if refusal.where == "conv_a")
    assert "Mystery" in reason
    assert "com.example" in reason


def test_nodes_without_names_go_by_operator_and_output(tmp_path: Path) -> None:
    model = built(TOPOLOGIES["conv-bn-relu"])
    for node in model.graph.node:
        node.name = ""
    channels = analysed(model, tmp_path).channels
    assert [group.name for group in channels.groups] == ["conv_a_y", "conv_b_y"]
    assert [refusal.where for refusal in channels.refusals] == ["out_y"]


def test_layers_at_the_edge_of_a_body_have_a_reason(tmp_path: Path) -> None:
    net = Net(np.random.default_rng(0))
    y = net.relu(net.conv(net.input("x", 3, 8, 8), "conv_a", 3, 8))
    branches = {
        f"{name}_branch": net.body(name, f"{name}_y", lambda inner, name=name: inner.conv(y, f"{name}_conv", 8, 4, 1))
        for name in ("then", "else")
    }
    condition = net.op("Greater", net.op("ReduceMean", "x", keepdims=0), net.const("zero", 0.0))
    net.output(net.op("If", condition, name="choose", **branches), 4, 8, 8)
    channels = analysed(net.model(), tmp_path).channels
    assert [sorted(each.name for each in group.consumers) for group in channels.groups] == [["else_conv", "then_conv"]]
    found = {refusal.where: refusal for refusal in channels.refusals}
    assert found["then_conv"].obstacle == found["else_conv"].obstacle == "choose"
    assert found["then_conv"].reason is found["else_conv"].reason is Reason.READ_IN_BODY


# Where the activation of each producer is, before anything that is not affine, and what the producer multiplies by on its own.
@pytest.mark.parametrize(
    ("name", "producer", "activation", "factor"),
    [
        ("conv-relu-conv", "conv_a", "conv_a_y", 1.0),
        ("conv-bias-bn-relu", "conv_a", "bn_a_y", 1.0),
        ("conv-bias-as-add-first", "conv_a", "add_1_y", 1.0),
        ("bn-as-mul-add-c11", "conv_a", "add_2_y", 1.0),
        ("bn-as-sub-div", "conv_a", "div_2_y", 1.0),
        ("gemm-bn-relu", "fc_a", "bn_a_y", 1.0),
        ("gemm-relu-gemm-alpha-beta", "fc_a", "fc_a_y", 0.5),
        ("matmul-add-2d", "fc_a", "add_1_y", 1.0),
    ],
)
def test_the_activation_reads_pre_activations(name: str, producer: str, activation: str, factor: float, tmp_path: Path) -> None:
    """scale * (row . x) + offset, at the upper left 3 x 3 patch of an image or on a vector, is the observed activation."""
    model, feeds = built(TOPOLOGIES[name]), feeds_of(TOPOLOGIES[name])
    channels = analysed(model, tmp_path).channels
    found = pre_activations(channels, next(group for group in channels.groups if group.name == producer))
    assert not isinstance(found, Refusal)
    seen = run(model, feeds, (activation,))[-1]
    x = feeds["x"][:, :, :3, :3] if seen.ndim == 4 else feeds["x"]
    seen = seen[:, :, 1, 1] if seen.ndim == 4 else seen
    predicted = found.scale * (x.reshape(2, -1) @ found.rows.T) + found.offset
    np.testing.assert_allclose(factor * predicted, seen, rtol=1e-4, atol=1e-5)


def forked(net: Net, y: str) -> str:
    """Straight and behind a BatchNormalization."""
    return net.op("Add", net.conv(net.relu(net.batch_norm(y, "bn", 8)), "out", 8, 4), net.conv(net.relu(y), "other", 8, 4))


def shared(net: Net, y: str) -> str:
    """`second` has the weight of `first`, reads the same, and nothing joins what they write."""
    weight = net.const("shared_w", net.he((6, 8, 3, 3), 72))
    return two_branches(net, y, weight, weight)


def shared_behind_transposes(net: Net, y: str) -> str:
    """One initializer, from which both weights are computed."""
    stored = net.const("shared_w", net.he((8, 6, 3, 3), 72))
    return two_branches(net, y, *(net.op("Transpose", stored, perm=[1, 0, 2, 3]) for _ in range(2)))


def initialised_alike(net: Net, y: str) -> str:
    """Two initializers with the same values."""
    values = net.he((6, 8, 3, 3), 72)
    return two_branches(net, y, net.const("first_w", values), net.const("second_w", values))


def two_branches(net: Net, y: str, first_weight: str, second_weight: str) -> str:
    first = net.relu(net.conv(y, "first", 8, 6, weight=first_weight))
    second = net.relu(net.conv(y, "second", 8, 6, weight=second_weight))
    return net.op("Add", net.conv(first, "out", 6, 4), net.conv(second, "other", 6, 4))


def behind_stem(make) -> onnx.ModelProto:
    net = Net(np.random.default_rng(0))
    net.output(make(net, net.conv(net.input("x", 3, 8, 8), "stem", 3, 8)), 4, 8, 8)
    return net.model()


def test_consumers_of_differently_scaled_channels_bar_merging(tmp_path: Path) -> None:
    channels = analysed(behind_stem(forked), tmp_path).channels
    (group,) = channels.groups
    refused = pre_activations(channels, group)
    assert isinstance(refused, Refusal)
    assert "another scale" in refused.text


def test_layers_of_one_weight_shrink_together(tmp_path: Path) -> None:
    groups = analysed(behind_stem(shared), tmp_path).channels.groups
    assert [{link.name for link in group.producers} for group in groups] == [{"stem"}, {"first", "second"}]
    result = compress(tmp_path / "analysed.onnx", tmp_path / "out.onnx", ratio=0.5, method="prune", verify=False)
    small = onnx.load(tmp_path / "out.onnx")
    first, second = ({node.name: node for node in small.graph.node}[name].input[1] for name in ("first", "second"))
    assert first == second
    assert weights_of(small)[first].shape == (3, 4, 3, 3)
    assert [group.kept for group in result.groups] == [4, 3]


@pytest.mark.parametrize(
    ("make", "sharing", "method"),
    [
        pytest.param(shared, {"first", "second"}, "prune", id="one initializer"),
        pytest.param(shared_behind_transposes, {"first", "second"}, "prune", id="one initializer, two Transposes"),
        pytest.param(initialised_alike, set(), "reconstruct", id="equal values"),
    ],
)
def test_layers_share_a_weight_where_they_share_an_initializer(make, sharing: set[str], method: str, tmp_path: Path) -> None:
    """A weight that is shared is not solved for one of its layers; equal ones are."""
    channels = analysed(behind_stem(make), tmp_path).channels
    assert {layer.name for layer in channels.layers if layer.key in channels.shared_weight_keys} == sharing
    source, options = tmp_path / "analysed.onnx", {"ratio": 0.5, "samples": 16, "threads": 1, "verify": False, "bench": False}
    result = compress(source, tmp_path / "out.onnx", method="reconstruct", **options)
    assert {group.name: group.method for group in result.groups}["stem"] in (method, "merge" if sharing else method)


def test_a_weight_that_is_also_read_as_data_stays(tmp_path: Path) -> None:
    channels = analysed(built(TOPOLOGIES["weight-also-read-as-data"]), tmp_path).channels
    reason = next(refusal.text for refusal in channels.refusals if refusal.where == "conv_a")
    assert "conv_a_w" in reason
    assert "mul_5" in reason  # Abs and ReduceMean of a constant are one


def test_biases_that_are_one_tensor_with_that_of_a_normalisation_shrink(tmp_path: Path) -> None:
    """PyTorch's newer exporter stores equal tensors once: before training all biases, those of LayerNormalization among them."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        block (float[n, 4, 8] x) => (float[n, 4, 8] y)
        {
            before = LayerNormalization(x, scale, zeros)
            first = MatMul(before, w1)  hidden = Add(first, zeros)  active = Relu(hidden)
            second = MatMul(active, w2)  out = Add(second, zeros)
            sum = Add(out, before)  y = LayerNormalization(sum, scale, zeros)
        }""")
    rng = np.random.default_rng(0)
    values = {"scale": np.ones(8), "zeros": np.zeros(8), "w1": rng.normal(size=(8, 8)), "w2": rng.normal(size=(8, 8))}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(each.astype(np.float32), name) for name, each in values.items())
    assert [(group.name, group.size) for group in analysed(model, tmp_path).channels.groups] == [("first", 8)]
