"""The table itself is sound: valid ONNX, runs as declared, and the flag `merge` and the duplicates hold when measured."""

import numpy as np
import onnx
import onnxruntime
import pytest
from topologies import TOPOLOGIES, Topology, feeds_of, scaled_duplicates
from topologies.duplicates import Weights

pytestmark = pytest.mark.usefixtures("harmless_models")

ROWS = [pytest.param(topology, id=topology.id) for topology in TOPOLOGIES.values()]
MERGED = [pytest.param(topology, id=topology.id) for topology in TOPOLOGIES.values() if topology.merge and topology.runnable]
REFUSED = [pytest.param(topology, id=topology.id) for topology in TOPOLOGIES.values() if topology.merge is False]
PRODUCERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"}

# Homogeneous in one number for all channels, but the channels differ: unequal slopes, unequal depthwise kernels.
DIFFERENT_CHANNELS = {"prelu-unequal-slopes", "depthwise", "depthwise-multiplier-2"}
# Weights that are no initializer of their own, so that scaled_duplicates refuses.
NO_DUPLICATES = {
    "gemm-bias-scalar",
    "weights-in-constant-nodes",
    "weight-behind-identity",
    "weight-behind-transpose",
    "weight-behind-squeeze",
    "weight-behind-reshape",
    "shared-weight-joined",
    "bias-shared-through-identity",
    "bn-parameters-shared",
    "bn-scale-and-variance-one-tensor",
    "einsum-image",
    "tied-with-its-transpose",
    "tied-gemm-transb",
}


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], extra: tuple[str, ...] = ()) -> list[np.ndarray]:
    """The graph outputs, or the tensors named in `extra`."""
    if extra:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def declared_shapes(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    """Declared output shapes with the batch put in, 2, height and width, 8, and tokens, 5."""
    sizes = {"N": 2, "H": 8, "W": 8, "T": 5}
    return [tuple(sizes.get(d.dim_param, d.dim_value) for d in o.type.tensor_type.shape.dim) for o in model.graph.output]


def channel_groups(topology: Topology) -> list[tuple[str, ...]]:
    """Tied sets and single producers that may lose channels."""
    tied = {name for names in topology.tied for name in names}
    single = [(name,) for name, count in topology.removable.items() if count and name not in tied]
    return [names for names in topology.tied if names[0] in topology.removable] + single


def consumers_after(model: onnx.ModelProto, tensors: set[str]) -> list[tuple[onnx.NodeProto, str]]:
    """The next weighted nodes after `tensors`, each with its data input."""
    reached, found = set(tensors), []
    for node in model.graph.node:
        inputs = [name for name in node.input if name in reached]
        if inputs and node.op_type in PRODUCERS:
            found.extend((node, name) for name in inputs)
        elif inputs:
            reached.update(node.output)
    return found


def is_homogeneous(model: onnx.ModelProto, producers: tuple[str, ...], feeds: dict[str, np.ndarray]) -> bool:
    """Multiply the producers' activations (after their affine steps) by eight, and look at the inputs of the consumers.

    Every channel there must be multiplied by eight, or be another producer's and the same. The consumers themselves
    read what they read before, so that nothing else changes.
    """
    weights = Weights(onnx.ModelProto.FromString(model.SerializeToString()))
    ends = [[weights.node(name), *weights.affine_steps(weights.node(name))][-1] for name in producers]
    consumers = consumers_after(weights.model, {node.output[0] for node in ends})
    tensors = tuple(dict.fromkeys(name for _, name in consumers))
    axes = {name: -1 if weights.rows_are_columns(node) else 1 for node, name in consumers}
    before = run(model, feeds, tensors)
    changed, kind = weights.model, before[0].dtype
    for node, name in consumers:
        node.input[list(node.input).index(name)] = f"{name}_before"
    for name, values in zip(tensors, before, strict=True):
        element_type = onnx.helper.np_dtype_to_tensor_dtype(kind)
        changed.graph.input.append(onnx.helper.make_tensor_value_info(f"{name}_before", element_type, values.shape))
    changed.graph.initializer.append(onnx.numpy_helper.from_array(np.array(8, kind), "eight"))
    for end in ends:
        name, end.output[0] = end.output[0], f"{end.output[0]}_once"
        position = [node.output[0] for node in changed.graph.node if node.output].index(end.output[0])
        changed.graph.node.insert(position + 1, onnx.helper.make_node("Mul", [end.output[0], "eight"], [name]))
    feeds = feeds | {f"{name}_before": values for name, values in zip(tensors, before, strict=True)}
    after = run(changed, feeds, tensors)
    return all(multiplied(x, y, axes[name]) for name, x, y in zip(tensors, before, after, strict=True))


def multiplied(x: np.ndarray, y: np.ndarray, axis: int) -> bool:
    """Is every channel of y either that of x or eight times that of x, and one of them the latter?"""
    relative = 1e-2 if x.dtype == np.float16 else 1e-4
    x, y = (np.moveaxis(array, axis, 0).astype(np.float64).reshape(array.shape[axis], -1) for array in (x, y))
    grown, same = (np.isclose(y, factor * x, rtol=relative, atol=1e-4).all(axis=1) for factor in (8, 1))
    return bool((grown | same).all() and (grown & ~same).any())


@pytest.mark.parametrize("topology", ROWS)
def test_builds_a_valid_model_that_runs_as_declared(topology: Topology) -> None:
    model = topology.build(np.random.default_rng(1))
    onnx.checker.check_model(model, full_check=True)
    assert model.SerializeToString() == topology.build(np.random.default_rng(1)).SerializeToString()
    if not topology.runnable:
        return
    outputs = run(model, feeds_of(topology, 2))
    assert [y.shape for y in outputs] == declared_shapes(model)
    assert all(np.isfinite(y).all() and 1e-2 < np.abs(y).mean() < 10 for y in outputs)


@pytest.mark.parametrize("topology", ROWS)
def test_facts_name_existing_producers_and_their_widths(topology: Topology) -> None:
    model = topology.build(np.random.default_rng(1))
    weights = Weights(model)
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert not topology.removable.keys() & topology.at_most.keys()
    for name, count in {**topology.removable, **topology.at_most}.items():
        node = weights.node(name)
        assert node.op_type in PRODUCERS
        if weights.weight_name(node) in weights.tensors:
            assert count in (0, len(weights.rows(node)))
    assert {name for names in topology.tied for name in names} <= topology.removable.keys() | topology.at_most.keys()


@pytest.mark.parametrize("topology", MERGED)
def test_merge_rows_are_positively_homogeneous(topology: Topology) -> None:
    model, feeds = topology.build(np.random.default_rng(1)), feeds_of(topology, 2)
    assert channel_groups(topology)
    for producers in channel_groups(topology):
        assert is_homogeneous(model, producers, feeds), producers


@pytest.mark.parametrize("topology", REFUSED)
def test_other_rows_are_not(topology: Topology) -> None:
    model, feeds = topology.build(np.random.default_rng(1)), feeds_of(topology, 2)
    homogeneous = [is_homogeneous(model, producers, feeds) for producers in channel_groups(topology)]
    assert all(homogeneous) == (topology.id in DIFFERENT_CHANNELS)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("topology", MERGED)
def test_duplicates_are_exact_multiples(topology: Topology, negative: bool) -> None:
    model, feeds = topology.build(np.random.default_rng(1)), feeds_of(topology, 2)
    for producers in channel_groups(topology):
        try:
            result = scaled_duplicates(model, *producers, negative=negative)
        except ValueError:
            assert topology.id in NO_DUPLICATES
            continue
        onnx.checker.check_model(result.model, full_check=True)
        for name, tensor in zip(producers, run(result.model, feeds, result.tensors), strict=True):
            last = Weights(model).rows_are_columns(Weights(model).node(name))
            y = np.moveaxis(tensor, -1 if last else 1, -1).astype(np.float64)
            tolerance = 5e-3 if tensor.dtype == np.float16 else 1e-5
            np.testing.assert_allclose(y[..., result.copy], y[..., result.base] * result.factor, rtol=tolerance, atol=tolerance)
            assert np.all(np.abs(result.row_factor) <= 0.6)
