"""The examples in docstrings run, in a folder with a small model."""

from __future__ import annotations

import doctest
import pkgutil
import shutil
from importlib import import_module
from pathlib import Path

import pytest

import onnxmerge

NAMES = [module.name for module in pkgutil.walk_packages(onnxmerge.__path__, "onnxmerge.")]
MODULES = [name for name in NAMES if not name.endswith("__main__")]  # importing that runs the program
FINDER = doctest.DocTestFinder(exclude_empty=True)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(models_folder / "digits-mlp.onnx", tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    failed = [example.name for example in FINDER.find(import_module(name)) if doctest.DocTestRunner().run(example).failed]
    assert failed == []
