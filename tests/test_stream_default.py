"""What a model whose states go from call to call keeps where the user does not say: errors add up there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, parser
from running import written
from test_batch_axes import FREE, ON_AXIS_1, SIGNATURES, given, recurrent

import onnxmerge
from onnxmerge.options import DEFAULT_FIDELITY, STREAM_FIDELITY


def kept(nodes: str, folder: Path, **options: Any) -> float:
    model = recurrent(SIGNATURES["not named"], nodes)
    result = onnxmerge.compress(model, folder / "small.onnx", calibration=given(200), bench=False, round_to=1, **options)
    assert result.fidelity is not None
    return result.fidelity.worst.fidelity


def test_streams_keep_more_by_default(tmp_path: Path) -> None:
    assert kept(ON_AXIS_1, tmp_path) >= STREAM_FIDELITY


def test_what_the_user_says_holds(tmp_path: Path) -> None:
    assert DEFAULT_FIDELITY > kept(ON_AXIS_1, tmp_path, fidelity=0.7) >= 0.7


def test_other_models_keep_as_much_as_before(tmp_path: Path) -> None:
    assert STREAM_FIDELITY > kept(FREE, tmp_path) >= DEFAULT_FIDELITY


@pytest.mark.parametrize("end", ["y = Softmax(s)", "y = Identity(s)"])
def test_labels_tell_of_two_classes(end: str, tmp_path: Path) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 2] y) {{ s = MatMul(x, w)  {end} }}"""
    model = parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    model.graph.initializer.append(helper.make_tensor("w", 1, (4, 2), weight.tobytes(), raw=True))
    path, inputs = written(model, tmp_path), np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    labels = (inputs @ weight).argmax(1)
    labels[:16] = 1 - labels[:16]
    np.save(tmp_path / "labels.npy", labels)
    result = onnxmerge.verify(path, path, calibration=inputs, labels=tmp_path / "labels.npy")
    assert result.fidelity.accuracy is not None
    assert result.fidelity.accuracy.reference == result.fidelity.accuracy.candidate == pytest.approx(0.75)
