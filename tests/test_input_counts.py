"""How many inputs a model is pruned on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from running import written
from topologies.net import Net

from onnxmerge.data import selection
from onnxmerge.data.selection import calibration_and_check_inputs, inputs_needed
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import InputOptions, PruningOptions, RuntimeOptions
from onnxmerge.pipeline import predicted_work
from onnxmerge.pipeline.compress_options import CompressOptions


@pytest.mark.parametrize(("width", "extent", "expected"), [(16, 2, 384), (256, 2, 576), (256, 4, 384), (256, 1, 576)])
def test_small_maps_take_more_inputs(
    width: int, extent: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as give the widest consumer a sample an unknown: width * 9 unknowns, extent * extent samples an input."""
    net = Net(np.random.default_rng(0))
    y = net.relu(net.conv(net.input("x", 3, extent, extent), "first", 3, width))
    net.output(net.conv(y, "second", width, 8), 8, extent, extent)
    source = written(net.model(), tmp_path)
    settings = InputOptions(), RuntimeOptions(), PruningOptions()
    analysed = analyse_model(source)
    monkeypatch.setattr(selection, "CHEAP_MACS", 0.0)
    solving, checking = calibration_and_check_inputs(source, analysed, *settings)
    assert (solving.count, checking.count) == (expected, 256)
    monkeypatch.setattr(selection, "CHEAP_MACS", 1000.0 * analysed.size.macs)
    assert inputs_needed(analysed) == max(expected, min(1000, 16 * width * 9 // extent**2))


@pytest.mark.parametrize("batch", ["N", "3"])
@pytest.mark.parametrize("length", [2, 32])
def test_rows_of_all_inputs_in_one_axis_are_as_many_samples(batch: str, length: int, tmp_path: Path) -> None:
    """A dense layer of (inputs * length, width) gives as many samples an input as one of (inputs, length, width)."""
    width, wide, draw = 64, 1000, np.random.default_rng(0).normal
    ends = {
        "rows": "r = Reshape(x, rows) a = Gemm(r, first, b) c = Relu(a) d = Gemm(c, second) y = Reshape(d, back)",
        "three": "p = MatMul(x, first) a = Add(p, b) c = Relu(a) y = MatMul(c, second)",
    }
    needed = []
    for end in ends.values():
        model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
            g (float[{batch}, {length}, {width}] x) => (float[{batch}, {length}, {width}] y)
            <int64[2] rows = {{-1, {width}}}, int64[3] back = {{-1, {length}, {width}}}> {{ {end} }}""")
        for name, shape in (("first", (width, wide)), ("b", (wide,)), ("second", (wide, width))):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(draw(size=shape)), name))
        needed.append(inputs_needed(analyse_model(written(model, tmp_path))))
    assert needed[0] == needed[1] >= (500 if length == 2 else 384)


@pytest.mark.parametrize("affordable", [40, 10_000])
def test_as_many_inputs_are_predicted_as_are_used(affordable: int, models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "INPUT_ELEMENTS", 64 * affordable)
    source, options = models_folder / "digits-mobile.onnx", CompressOptions.from_keywords({"target": "macs=0.5"})
    analysed = analyse_model(source)
    used, _ = calibration_and_check_inputs(source, analysed, options.inputs, options.runtime, options.pruning)
    assert predicted_work._work(analysed, options)[3] == used.count
