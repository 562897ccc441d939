"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

import onnxmerge

NAMES = [module.name for module in pkgutil.walk_packages(onnxmerge.__path__, "onnxmerge.")]
MODULES = [name for name in NAMES if not name.endswith("__main__")]  # importing that runs the program
FINDER = doctest.DocTestFinder(exclude_empty=True)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    failed = [example.name for example in FINDER.find(import_module(name)) if doctest.DocTestRunner().run(example).failed]
    assert failed == []
