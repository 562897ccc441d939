"""Quantised files: refused in one sentence with the cure, their sizes counted; and the road that docs/quantise.md describes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import ROOT
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from running import analysed, built, relative_error, run, written
from topologies import TOPOLOGIES, feeds_of

from onnxmerge import compress
from onnxmerge.errors import ModelError, Reason
from onnxmerge.report.reasons import reasons

CURE = "quantised: compress the float model first, then quantise the result"
TOPOLOGY = TOPOLOGIES["residual-two-blocks"]


class Reader(CalibrationDataReader):
    """Four batches of random inputs."""

    def __init__(self) -> None:
        self.feeds = iter([feeds_of(TOPOLOGY, seed) for seed in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def static(quant_format: QuantFormat, per_channel: bool) -> Callable[[Path, Path], None]:
    def quantise(source: Path, target: Path) -> None:
        quantize_static(str(source), str(target), Reader(), quant_format=quant_format, per_channel=per_channel)

    return quantise


WAYS = {
    "QDQ": static(QuantFormat.QDQ, True),
    "QOperator": static(QuantFormat.QOperator, False),
    "dynamic": lambda source, target: quantize_dynamic(str(source), str(target)),
}


@pytest.mark.parametrize("quantise", WAYS.values(), ids=WAYS.keys())
def test_one_sentence_with_the_cure(quantise: Callable[[Path, Path], None], tmp_path: Path) -> None:
    source, target = written(built(TOPOLOGY), tmp_path), tmp_path / "quantised.onnx"
    quantise(source, target)
    before, after = (analysed(onnx.load(path), tmp_path) for path in (source, target))
    assert before.size.parameters <= after.size.parameters + 30 <= 1.1 * before.size.parameters  # scales, less int32 biases
    assert after.size.macs == before.size.macs
    assert {refusal.reason for refusal in after.channels.refusals} == {Reason.QUANTISED}
    (shared,) = reasons(after.channels.refusals)
    assert shared.text == CURE
    assert shared.parameters_share > 0.9
    with pytest.raises(ModelError, match=f"it is {CURE}$"):
        compress(target, tmp_path / "out.onnx", ratio=0.5)


def test_the_road_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(built(TOPOLOGY), tmp_path)
    np.save(tmp_path / "calibration.npy", np.random.default_rng(0).normal(size=(96, *TOPOLOGY.feeds["x"][1:])).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    (recipe,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "quantise.md").read_text(encoding="utf-8"), re.DOTALL)
    untimed = recipe.replace('target="macs=0.6"', 'target="macs=0.6", bench=False')
    exec(compile(untimed, "quantise.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0.5
    small, target = tmp_path / "smaller.onnx", tmp_path / "quantised.onnx"
    feeds = feeds_of(TOPOLOGY, 9)
    assert relative_error(run(small, feeds), run(target, feeds)) < 0.2
    sizes = [analysed(onnx.load(path), tmp_path).size for path in (source, small, target)]
    assert sizes[1].macs == sizes[2].macs <= 0.6 * sizes[0].macs
    assert sizes[2].parameters < 0.8 * sizes[0].parameters
