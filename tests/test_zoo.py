"""Real architectures: the models that the `onnx` wheel ships without weights, with seeded random ones put in.

The large ones (above 100 MB) only with ONNXMERGE_SLOW=1 in the environment.
"""

import os
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from running import LAYERS, run, weights_of

from onnxmerge.pipeline.compress import compress
from onnxmerge.pipeline.inspect import inspect

pytestmark = pytest.mark.usefixtures("harmless_models")

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
LARGE = {"light_bvlc_alexnet", "light_densenet121", "light_resnet50", "light_vgg19", "light_zfnet512"}
# Layers that stay as they are: after LRN in AlexNet, Inception v1 and ZFNet; ShuffleNet joins its grouped convolutions in ways
# that leave no equal numbers to remove outside its units.
UNTOUCHED = {"light_bvlc_alexnet": 2, "light_inception_v1": 1, "light_shufflenet": 14, "light_zfnet512": 2}

slow = pytest.mark.skipif(not os.environ.get("ONNXMERGE_SLOW"), reason="large; set ONNXMERGE_SLOW=1 to run it")
MODELS = [pytest.param(path, id=path.stem, marks=[slow] * (path.stem in LARGE)) for path in sorted(LIGHT.glob("*.onnx"))]


def filled(path: Path) -> onnx.ModelProto:
    """The model with weights in place of its ConstantOfShape nodes: He-scaled, and near one and zero in normalisations."""
    model = onnx.load(path)
    graph, generator = model.graph, np.random.default_rng(zlib.crc32(path.name.encode()))
    layers = readers_of(graph)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {name: tuple(tensor.dims) for name, tensor in stored.items() if tensor.data_type == onnx.TensorProto.FLOAT}
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape"]:
        name = node.output[0]
        shapes[name] = tuple(numpy_helper.to_array(stored[node.input[0]]).tolist())
        stored[name] = graph.initializer.add(name=name)
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shapes[name]))
        graph.node.remove(node)
    for name, shape in shapes.items():
        if name in layers:
            stored[name].CopyFrom(numpy_helper.from_array(random_weight(generator, shape, *layers[name]), name))
    used = {name for node in graph.node for name in node.input}
    for unused in [value for value in (*graph.initializer, *graph.input) if value.name not in used]:
        (graph.initializer if isinstance(unused, onnx.TensorProto) else graph.input).remove(unused)
    return model


def readers_of(graph: onnx.GraphProto) -> dict[str, tuple[onnx.NodeProto, int]]:
    """Tensor -> the node that reads it and at which input, looking through Unsqueeze."""
    layers: dict[str, tuple[onnx.NodeProto, int]] = {}
    for node in reversed(graph.node):
        for position, name in enumerate(node.input):
            layers[name] = layers.get(node.output[0], (node, 0)) if node.op_type == "Unsqueeze" else (node, position)
    return layers


def random_weight(generator: np.random.Generator, shape: tuple[int, ...], layer: onnx.NodeProto, position: int) -> np.ndarray:
    values = generator.standard_normal(shape, np.float32)
    transposed = any(attribute.name == "transB" and attribute.i for attribute in layer.attribute)
    if position == 1 and layer.op_type in ("Conv", "Gemm", "MatMul"):
        summed = np.prod(shape[1:]) if layer.op_type == "Conv" or transposed else shape[0]
        return values * np.float32(np.sqrt(2 / summed))
    if (layer.op_type, position) in (("BatchNormalization", 1), ("BatchNormalization", 4)) or layer.op_type == "Mul":
        return 0.5 + np.abs(values)
    return 0.1 * values


def layers_of(model: onnx.ModelProto) -> dict[str, tuple[str, np.ndarray]]:
    """First output of every layer -> its name (or what stands for it) and its weight, as stored where it is reshaped."""
    weights = weights_of(model)
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    return {
        node.output[0]: (node.name or f"{node.op_type}({node.output[0]})", weights[node.input[1]])
        for node in model.graph.node
        if node.op_type in LAYERS
    }


@pytest.mark.parametrize("path", MODELS)
def test_light_models_are_inspected_and_pruned(path: Path, tmp_path: Path) -> None:
    model = filled(path)
    source, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    result = compress(source, target, ratio=0.3, method="prune", verify=False)
    small = onnx.load(target)
    onnx.checker.check_model(small, full_check=True)
    weights = weights_of(model)
    (value,) = [value for value in model.graph.input if value.name not in weights]
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    feeds = {value.name: np.random.default_rng(0).standard_normal(shape, np.float32)}
    before, after = run(model, feeds), run(small, feeds)
    assert [(y.shape, y.dtype) for y in after] == [(y.shape, y.dtype) for y in before]
    assert all(np.isfinite(y).all() for y in after)
    assert result.after.parameters < (0.9 if path.stem != "light_shufflenet" else 0.95) * result.before.parameters
    assert result.after.macs < 0.9 * result.before.macs
    assert not [refusal for refusal in result.refusals if "would not run" in refusal.text]
    old, new = layers_of(model), layers_of(small)
    assert old.keys() == new.keys()
    untouched = {name for key, (name, weight) in old.items() if np.array_equal(weight, new[key][1])}
    assert len(untouched) == UNTOUCHED.get(path.stem, 0)
    assert untouched <= {refusal.where for refusal in result.refusals if refusal.text}


def test_inspect_tells_the_same_groups_as_compress(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(filled(LIGHT / "light_squeezenet.onnx"), source)
    seen = inspect(source)
    done = compress(source, tmp_path / "out.onnx", ratio=0.3, method="prune", verify=False)
    assert [group.name for group in seen.groups] == [group.name for group in done.groups]
    assert all(group.kept < group.channels for group in done.groups)
    assert 0 < min(group.parameters_saved for group in seen.groups) < 1
    assert seen.size.parameters == done.before.parameters
