"""Predicted layouts against the graph that ONNX Runtime makes of a model for this processor."""

from __future__ import annotations

import platform
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from onnxmerge.execution.processor import channel_block
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.graph.layouts import layouts

MODELS = Path(__file__).parent.parent / "models"


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="ONNX Runtime blocks channels otherwise on this processor"
)
@pytest.mark.parametrize(
    "name", ["cifar-densenet", "cifar-mobilenetv2", "cifar-vit", "digits-resnet", "digits-resnet-bn", "digits-mlp"]
)
def test_layout_changes_are_those_of_onnx_runtime(name: str, tmp_path: Path) -> None:
    path, optimised = MODELS / f"{name}.onnx", tmp_path / "optimised.onnx"
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(optimised), 4
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(optimised).graph.node]
    analysed = analyse_model(path)
    predicted = layouts(analysed.model.graph.nodes, analysed.shapes, channel_block())
    assert len(predicted.changes) == sum(operator.startswith("Reorder") for operator in found)


@pytest.mark.parametrize("name", ["cifar-mobilenetv2", "digits-resnet", "digits-resnet-bn"])
def test_activations_behind_convolutions_are_merged(name: str) -> None:
    analysed = analyse_model(MODELS / f"{name}.onnx")
    nodes = analysed.model.graph.nodes
    merged = layouts(nodes, analysed.shapes, channel_block()).merged
    assert all(id(node) in merged for node in nodes if node.op in ("Relu", "Clip", "BatchNormalization"))
