"""A candidate broken on purpose fails `verify`, and the layer-wise comparison names the node."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from broken import change, layers, moved_bias, one_nan, swapped_channels, swapped_outputs, wrong_sign
from onnx import numpy_helper
from topologies.net import Net

from onnxmerge import compress, verify
from onnxmerge.evaluation import layer_checks as layer_checks
from onnxmerge.evaluation.channel_matching import ChannelCorrelation
from onnxmerge.evaluation.weight_differences import difference

MODELS = Path(__file__).resolve().parents[1] / "models"
QUICK = {"samples": 16, "provider": "cpu"}
FATAL = {"wrong sign": wrong_sign, "swapped channels": swapped_channels, "one NaN": one_nan}
CASES = {
    f"{what} of layer {position} of {name}": (name, how, position)
    for name, positions in {"digits-mlp": (0, 1, 2), "digits-resnet-bn": (0, 9, -1), "digits-mobile": (0, 7, -2)}.items()
    for what, how in FATAL.items()
    for position in positions
}


def broken(name: str, how, position: int, folder: Path) -> tuple[Path, Path, str]:
    model = onnx.load(MODELS / f"{name}.onnx")
    node = how(model, position)
    onnx.save(model, folder / "broken.onnx")
    return MODELS / f"{name}.onnx", folder / "broken.onnx", node


@pytest.mark.parametrize(("name", "how", "position"), CASES.values(), ids=CASES.keys())
def test_a_broken_candidate_fails_and_the_node_is_named(name, how, position, tmp_path):
    reference, candidate, node = broken(name, how, position, tmp_path)
    assert not verify(reference, candidate, **QUICK).passed
    found = verify(reference, candidate, **QUICK, layers=True)
    fidelity, failures = found.fidelity, found.failures
    assert fidelity.same_channel_counts
    assert fidelity.layer_comparison.first_deviation.node == node
    assert any(node in line for line in failures)


@pytest.mark.parametrize("position", [0, 1, -1])
@pytest.mark.parametrize("name", ["digits-mlp", "digits-resnet", "digits-mobile"])
def test_one_number_of_one_bias(name, position, tmp_path):
    """At the end it may drown; beside equal inputs it does not."""
    reference, candidate, node = broken(name, moved_bias, position, tmp_path)
    found = verify(reference, candidate, **QUICK, layers=True, min_cosine=0.9)
    fidelity, failures = found.fidelity, found.failures
    assert fidelity.worst.cosine_mean > 0.99
    assert len(failures) == 1
    assert fidelity.layer_comparison.first_deviation.node == node
    assert "the bias differs in 1 of" in fidelity.layer_comparison.first_deviation.note
    assert "by 5.0%" in fidelity.layer_comparison.first_deviation.note


def two_heads() -> onnx.ModelProto:
    net = Net(np.random.default_rng(0))
    trunk = net.relu(net.conv(net.input("x", 3, 8, 8), "trunk", 3, 8))
    for head in ("left", "right"):
        net.output(net.op("GlobalAveragePool", net.relu(net.conv(trunk, head, 8, 4)), name=f"pool_{head}"), 4, 1, 1)
    return net.model()


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def test_swapped_outputs(tmp_path):
    reference, model = saved(two_heads(), tmp_path / "in.onnx"), two_heads()
    touched = swapped_outputs(model)
    candidate = saved(model, tmp_path / "out.onnx")
    assert not verify(reference, candidate, **QUICK).passed
    found = verify(reference, candidate, **QUICK, layers=True)
    fidelity, failures = found.fidelity, found.failures
    first = fidelity.layer_comparison.first_deviation
    other = next(value.name for value in model.graph.output if value.name != first.tensor)
    assert first.node in touched
    assert f"it holds what the reference calls {other}" in first.note
    assert failures


def test_outputs_in_another_order(tmp_path):
    model = two_heads()
    first, second = model.graph.output
    order = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in (second, first)]
    del model.graph.output[:]
    model.graph.output.extend(order)
    with pytest.raises(Exception, match="the outputs' order differs"):
        verify(saved(two_heads(), tmp_path / "in.onnx"), saved(model, tmp_path / "out.onnx"), **QUICK)


def test_a_nan_that_never_reaches_an_output(tmp_path):
    """The channel that holds it is multiplied by nothing that shows: a comparison would not see it."""

    def model() -> onnx.ModelProto:
        net = Net(np.random.default_rng(0))
        x = net.input("x", 3)
        net.op("MatMul", x, net.const("idle_w", np.ones((3, 2))), name="idle")
        net.output(net.gemm(x, "only", 3, 4), 4)
        return net.model()

    hurt = model()
    hurt.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((3, 2), np.nan, np.float32), "idle_w"))
    reference, candidate = saved(model(), tmp_path / "in.onnx"), saved(hurt, tmp_path / "out.onnx")
    assert verify(reference, candidate, **QUICK).failures == ("the weight of idle holds NaN or infinity",)
    assert verify(candidate, reference, **QUICK).failures == ("in the reference the weight of idle holds NaN or infinity",)


@pytest.mark.parametrize("name", ["digits-mlp", "digits-resnet-bn", "digits-mobile"])
def test_the_same_model_does_not_deviate(name):
    path = MODELS / f"{name}.onnx"
    found = verify(path, path, **QUICK, layers=True)
    fidelity, failures = found.fidelity, found.failures
    assert (fidelity.layer_comparison.first_deviation, fidelity.layer_comparison.deviations, failures) == (None, (), ())
    assert fidelity.layer_comparison.compared_tensors > 4


def test_a_compressed_model_deviates_where_channels_were_removed(tmp_path):
    reference, candidate = MODELS / "digits-mobile.onnx", tmp_path / "out.onnx"
    result = compress(reference, candidate, ratio=0.25, method="prune", scope="chains", verify=False)
    found = verify(reference, candidate, **QUICK, layers=True, min_cosine=-1.0)
    fidelity, failures = found.fidelity, found.failures
    layers = {name for group in result.groups for name in group.consumers}
    assert not fidelity.same_channel_counts
    assert failures == ()
    assert fidelity.layer_comparison.first_deviation.node in layers
    assert fidelity.layer_comparison.skipped_tensors > 0


@pytest.fixture(scope="module")
def compressed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("compressed") / "smaller.onnx"
    compress(MODELS / "digits-resnet-bn.onnx", path, ratio=0.07, method="merge", scope="chains", verify=False)
    return path


BROKEN_SMALLER = {
    "wrong sign": (wrong_sign, "gives the opposite sign"),
    "swapped channels": (swapped_channels, "has its channels 0 and {last} exchanged"),
    "one NaN": (one_nan, "gives NaN or infinity"),
}


@pytest.mark.parametrize("position", [0, 1, 2, 8])
@pytest.mark.parametrize(("how", "text"), BROKEN_SMALLER.values(), ids=BROKEN_SMALLER.keys())
def test_a_broken_compressed_model(compressed, tmp_path, how, text, position):
    model = onnx.load(compressed)
    node = how(model, position)
    onnx.save(model, tmp_path / "broken.onnx")
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == layers(model)[position].input[1]]
    text = text.format(last=weight.dims[0] - 1)
    for options in ({}, {"layers": True, "min_cosine": -1.0}):
        failures = verify(MODELS / "digits-resnet-bn.onnx", tmp_path / "broken.onnx", **QUICK, **options).failures
        assert f"{node} {text}" in failures
        assert sum("gives NaN" in line for line in failures) == (how is one_nan)


def test_a_compressed_model_without_a_mistake(compressed):
    found = verify(MODELS / "digits-resnet-bn.onnx", compressed, **QUICK)
    fidelity, failures = found.fidelity, found.failures
    assert (failures, fidelity.same_channel_counts, fidelity.layer_comparison) == ((), False, None)


def unexplained_change(reference: np.ndarray, candidate: np.ndarray) -> str:
    sums = ChannelCorrelation(1)
    sums.add(reference, candidate)
    return sums.unexplained()


CHANNELS = np.random.default_rng(0).standard_normal((400, 8, 1, 1)).astype(np.float32)
NOISE = 0.1 * np.random.default_rng(1).standard_normal((400, 8, 1, 1)).astype(np.float32)
MATCHES = {
    "fewer channels": (CHANNELS[:, [0, 2, 3, 5, 7]], ""),
    "with an error": ((CHANNELS + NOISE)[:, [0, 2, 3, 5, 7]], ""),
    "exchanged": ((CHANNELS + NOISE)[:, [0, 5, 3, 2, 7]], "has its channels 1 and 3 exchanged"),
    "opposite": (-(CHANNELS + NOISE)[:, [0, 2, 3, 5, 7]], "gives the opposite sign"),
    "one of them opposite": (CHANNELS * np.float32([1, -1, 1, 1, 1, 1, 1, 1])[:, None, None], ""),
    "another order": (CHANNELS[:, ::-1], ""),
    "too few values": (CHANNELS[:100, [0, 5, 3, 2, 7]], ""),
    "nothing alike": (NOISE, ""),
    "nothing varies": (np.zeros_like(CHANNELS), ""),
}


@pytest.mark.parametrize(("candidate", "text"), MATCHES.values(), ids=MATCHES.keys())
def test_which_reference_channel_a_channel_is(candidate, text):
    assert unexplained_change(CHANNELS[: len(candidate)], candidate) == text


ONE = np.arange(1.0, 13.0, dtype=np.float32).reshape(4, 3)


def edited(position: tuple[int, int], value: float) -> np.ndarray:
    array = ONE.copy()
    array[position] = value
    return array


DIFFERENCES = {
    "equal": (ONE, ONE.copy(), ""),
    "rounding": (ONE, ONE * np.float32(1 + 1e-6), ""),
    "sign": (ONE, -ONE, "the w has the opposite sign"),
    "two rows": (ONE, ONE[[0, 3, 2, 1]], "the w has its channels 1 and 3 exchanged"),
    "all rows": (ONE, ONE[[1, 2, 3, 0]], "the w has its channels permuted"),
    "one number": (ONE, edited((1, 1), 5.25), "the w differs in 1 of 12 numbers, by 5.0%"),
    "NaN": (ONE, edited((0, 0), np.nan), "the w holds NaN or infinity"),
    "shape": (ONE, ONE[:3], "the w was 4x3 and is 3x3"),
    "gone": (ONE, None, "the w is gone"),
    "new": (None, ONE, "the w is new"),
    "half precision": (ONE, ONE.astype(np.float16), ""),
}


@pytest.mark.parametrize(("before", "after", "text"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_what_became_of_a_constant(before, after, text):
    assert difference(before, after, "w") == text


def test_columns_are_the_channels_of_a_matmul():
    assert difference(ONE, ONE[:, [2, 1, 0]], "w", rows_last=True) == "the w has its channels 0 and 2 exchanged"


def half_precision() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A float32 model, and the same computed in float16 between two casts."""
    single, half = Net(np.random.default_rng(0)), Net(np.random.default_rng(0), dtype="float16")
    for net, casts in ((single, False), (half, True)):
        net.inputs.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 8, 8]))
        x = net.op("Cast", "x", name="narrow", to=onnx.TensorProto.FLOAT16) if casts else "x"
        y = net.conv(net.relu(net.conv(x, "first", 3, 8)), "second", 8, 4)
        y = net.op("Cast", y, name="wide", to=onnx.TensorProto.FLOAT) if casts else net.op("Identity", y, name="wide")
        net.outputs.append(onnx.helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, ["N", 4, 8, 8]))
    return single.model(), half.model()


def test_half_precision_is_no_deviation(tmp_path):
    single, half = half_precision()
    reference, candidate = saved(single, tmp_path / "single.onnx"), saved(half, tmp_path / "half.onnx")
    found = verify(reference, candidate, **QUICK, layers=True)
    fidelity, failures = found.fidelity, found.failures
    assert failures == ()
    assert 1e-5 < fidelity.worst.relative_l2_mean < 1e-2
    node = swapped_channels(half, 1)
    found = verify(reference, saved(half, tmp_path / "broken.onnx"), **QUICK, layers=True)
    fidelity, failures = found.fidelity, found.failures
    assert fidelity.layer_comparison.first_deviation.node == node
    assert any(node in line for line in failures)


def test_a_bias_that_moves_less_than_rounding_elsewhere(tmp_path):
    """What other kernels may differ by hides it, but with inputs equal to the bit only the node's own numbers can."""
    net = Net(np.random.default_rng(0))
    net.output(net.relu(net.gemm(net.input("x", 5), "only", 5, 4)), 4)
    model = net.model()
    change(model, "only_b", lambda bias: np.multiply(bias, 1e-5, out=bias))
    reference = saved(model, tmp_path / "in.onnx")
    node = moved_bias(model, 0)
    found = verify(reference, saved(model, tmp_path / "out.onnx"), **QUICK, layers=True)
    fidelity, failures = found.fidelity, found.failures
    assert 0 < fidelity.layer_comparison.first_deviation.relative_l2_after < 1e-6
    assert fidelity.layer_comparison.first_deviation.node == node
    assert len(failures) == 1


def test_a_model_of_a_fixed_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(layer_checks, "LAYER_WORK", 0)  # eight inputs, which are no whole batches of three
    net = Net(np.random.default_rng(0), batch=3)
    net.output(net.gemm(net.relu(net.gemm(net.input("x", 5), "first", 5, 8)), "second", 8, 4), 4)
    model = net.model()
    reference = saved(model, tmp_path / "in.onnx")
    node = wrong_sign(model, 0)
    found = verify(reference, saved(model, tmp_path / "out.onnx"), layers=True, samples=10, provider="cpu")
    fidelity, failures = found.fidelity, found.failures
    assert (fidelity.layer_comparison.first_deviation.node, fidelity.input_count, fidelity.layer_comparison.runs) == (node, 12, 2)
    assert failures


def test_weights_in_another_file(tmp_path):
    paths = []
    for name, how in {"reference": None, "broken": one_nan}.items():
        model = onnx.load(MODELS / "digits-mlp.onnx")
        node = how(model, 1) if how is not None else ""
        paths.append(tmp_path / name / "model.onnx")
        paths[-1].parent.mkdir()
        onnx.save(model, paths[-1], save_as_external_data=True, location="weights.bin", size_threshold=0)
    found = verify(*paths, **QUICK, layers=True)
    fidelity, failures = found.fidelity, found.failures
    assert f"the weight of {node} holds NaN or infinity" in failures
    assert (fidelity.layer_comparison.first_deviation.node, fidelity.same_channel_counts) == (node, True)
