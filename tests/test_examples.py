"""The examples run from the model to their verdict, on few inputs, where the packages that they need are there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"
EXAMPLES = {
    "encoder": (None, "--sentences 64", r"passed: \d+% of the MACs left, fidelity 0\.\d+"),
    "detector": ("nudenet", "--size 64 --samples 8 --target macs=0.9", r"(passed|failed): \d+% of the MACs left"),
    "ocr": (
        "rapidocr_onnxruntime",
        "--lines 12 --target macs=0.9",
        r"of 6 lines that it never saw \d were read right before but for spaces, \d are now",
    ),
    "resnet": (
        "torchvision",
        "--size 32 --samples 8 --target macs=0.9",
        r"\d+% of the MACs left, [\d.]+ to [\d.]+ times as fast",
    ),
}
"""Script -> package that it needs, options, and what its last lines say."""


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package, options, verdict = EXAMPLES[name]
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}")
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    example.main([*options.split(), "--output", str(tmp_path / "smaller.onnx")])
    assert (tmp_path / "smaller.onnx").exists()
    assert re.search(verdict, capsys.readouterr().out)


def test_every_example_is_tried_and_told() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert (
        set(EXAMPLES) == {path.stem for path in FOLDER.glob("*.py")} == set(re.findall(r"^\| \[(\w+)\.py\]", text, re.MULTILINE))
    )
