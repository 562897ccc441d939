"""What `import onnxmerge` promises: its names, its keywords, and that neither it nor --help loads what it does not need."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

import onnxmerge
from onnxmerge import results
from onnxmerge.errors import OptionError
from onnxmerge.options import InputOptions, PruningOptions, RuntimeOptions, Thresholds
from onnxmerge.options.keywords import options_of

HEAVY = ("numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "rich", "jinja2", "PIL", "threadpoolctl")
ALL = (PruningOptions, InputOptions, RuntimeOptions, Thresholds)
VERBS = {
    "compress": ALL,
    "inspect": ALL,
    "sweep": ALL,
    "verify": (InputOptions, RuntimeOptions, Thresholds),
    "bench": (InputOptions, RuntimeOptions),
    "bench_batches": (InputOptions, RuntimeOptions),
}


def test_every_public_name_is_there_and_no_other() -> None:
    assert set(dir(onnxmerge)) == set(onnxmerge.__all__)
    assert all(getattr(onnxmerge, name) is not None for name in onnxmerge.__all__)
    assert set(results.__all__) <= set(onnxmerge.__all__)
    shown = {name for name, value in vars(onnxmerge).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert shown == set()
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = onnxmerge.compres


LIGHT = {
    "import": ["-c", "import onnxmerge"],
    "help": ["-m", "onnxmerge", "--help"],
    "version": ["-m", "onnxmerge", "--version"],
    **{
        f"help of {command}": ["-m", "onnxmerge", command, "--help"]
        for command in ("inspect", "compress", "sweep", "verify", "bench")
    },
}


@pytest.mark.parametrize("arguments", LIGHT.values(), ids=LIGHT.keys())
def test_nothing_heavy_is_loaded(arguments: list[str]) -> None:
    """`-v` lists every module that is imported, on stderr."""
    done = subprocess.run([sys.executable, "-v", *arguments], capture_output=True, text=True, timeout=60, check=True)
    loaded = {line.split("'")[1].split(".")[0] for line in done.stderr.splitlines() if line.startswith("import '")}
    assert "onnxmerge" in loaded
    assert loaded & set(HEAVY) == set()


@pytest.mark.parametrize(("verb", "parts"), VERBS.items(), ids=VERBS)
def test_the_signature_shows_every_keyword(verb: str, parts: tuple[type, ...]) -> None:
    shown = inspect.signature(getattr(onnxmerge, verb)).parameters
    assert all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in shown.values())
    for part in parts:
        assert shown[part.part].default is None
        assert {field.name: field.default for field in fields(part)} == {
            field.name: shown[field.name].default for field in fields(part)
        }


def test_parts_and_fields_go_together() -> None:
    whole = PruningOptions(ratio=0.5, method="merge")
    pruning, inputs = options_of({"pruning": whole, "threshold": 0.3, "samples": 64}, PruningOptions, InputOptions)
    assert pruning == PruningOptions(ratio=0.5, method="merge", threshold=0.3)
    assert inputs == InputOptions(samples=64)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown": ({"rato": 0.5}, TypeError, "unexpected keyword argument 'rato'; known are batch"),
    "another part": (
        {"pruning": InputOptions()},
        TypeError,
        "'pruning' must be an object of PruningOptions, not of InputOptions",
    ),
    "text for a number": ({"ratio": "half"}, OptionError, "`ratio` must be at least 0 and below 1 .* not 'half'"),
    "number for a list": ({"std": 2.0}, OptionError, "`std` must be above 0, not 2.0"),
    "list for an array": ({"calibration": [[0.0]]}, OptionError, "`calibration` must be a path, an array, or a mapping"),
    "two sizes": ({"pruning": PruningOptions(ratio=0.5), "fidelity": 0.9}, OptionError, "`ratio` and `fidelity` both say"),
}


@pytest.mark.parametrize(("keywords", "kind", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_keywords(keywords: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        options_of(keywords, *ALL)
