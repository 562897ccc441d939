"""Models that one protobuf message cannot hold, through the public functions; the limit is patched to a few kB."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxmerge
from onnxmerge.onnxio import mapped_files, storage, wire_format

MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with its weights inside or outside, where everything is too large for one message."""
    name, outside = request.param
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "model.onnx"
    data = "weights.bin" if outside else None
    onnx.save(onnx.load(MODELS / name), path, save_as_external_data=outside, location=data, size_threshold=100)
    monkeypatch.setattr(storage, "MESSAGE_LIMIT_BYTES", 4096)
    monkeypatch.setattr(wire_format, "LEAST_FILE_BYTES", 4096)
    monkeypatch.setattr(wire_format, "LEAST_WEIGHT_BYTES", 256)
    monkeypatch.setattr(mapped_files, "LEAST_BYTES", 256)
    monkeypatch.setattr("onnxmerge.onnxio.storage.SMALL_TENSOR_BYTES", 256)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "out").mkdir()
    return path


CASES = [
    pytest.param((name, outside), options, id=case)
    for case, name, outside, options in (
        ("weights inside", "digits-resnet-bn.onnx", False, {"ratio": 0.3, "samples": 32}),
        ("weights outside", "digits-resnet-bn.onnx", True, {"ratio": 0.3, "samples": 32}),
        ("a search for a size", "digits-mobile.onnx", True, {"target": "macs=0.7", "round_to": 1, "samples": 32}),
        ("weights alone", "digits-mlp.onnx", True, {"ratio": 0.5, "method": "prune"}),
    )
]


@pytest.mark.parametrize(("source", "options"), CASES, indirect=["source"])
def test_a_large_model_is_compressed(source: Path, options: dict[str, object], tmp_path: Path) -> None:
    target = tmp_path / "out" / "model.onnx"
    before = sum(file.stat().st_size for file in source.parent.iterdir())
    result = onnxmerge.compress(source, target, threads=1, bench=False, **options)
    assert sorted(os.listdir(target.parent)) == ["model.onnx", "model.onnx.data"]
    assert os.listdir(tmp_path / "temporary") == []
    assert result.before.file_bytes == pytest.approx(before, rel=0.1)
    assert result.after.file_bytes == pytest.approx(sum(file.stat().st_size for file in target.parent.iterdir()), rel=0.5)
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    feeds = {
        each.name: np.zeros([size if isinstance(size, int) else 1 for size in each.shape], np.float32)
        for each in session.get_inputs()
    }
    assert all(np.isfinite(output).all() for output in session.run(None, feeds))
    assert onnxmerge.verify(source, target, threads=1, min_cosine=0.0, samples=16).fidelity.worst.fidelity > 0
