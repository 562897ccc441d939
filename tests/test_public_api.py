"""What `import onnxmerge` promises: its names, its keywords, and that neither it nor --help loads what it does not need."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxmerge
from onnxmerge import results
from onnxmerge.errors import OnnxMergeError, OptionError
from onnxmerge.onnxio.validation import read_checked
from onnxmerge.options import InputOptions, PruningOptions, RuntimeOptions, Thresholds
from onnxmerge.options.keywords import options_of

MLP = Path(__file__).resolve().parents[1] / "models" / "digits-mlp.onnx"
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


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The model files that are read, in order."""
    seen: list[Path] = []

    def counted(path: Path) -> onnx.ModelProto:
        seen.append(path)
        return read_checked(path)

    monkeypatch.setattr("onnxmerge.onnxio.model_files.read_checked", counted)
    return seen


ONCE: dict[str, Callable[[Path], Any]] = {
    "compress": lambda folder: onnxmerge.compress(MLP, folder / "o.onnx", fidelity=0.9, samples=64, bench=False),
    "compress to a plan": lambda folder: onnxmerge.compress(
        MLP, folder / "o.onnx", ratio=0.5, method="prune", verify=False, save_plan=folder / "p.json"
    ),
    "inspect": lambda folder: onnxmerge.inspect(MLP, sensitivity=True, samples=64),
    "sweep": lambda folder: onnxmerge.sweep(MLP, "macs=0.8,0.5,ratio=0.4", method="prune", bench=False),
}


@pytest.mark.parametrize("call", ONCE.values(), ids=ONCE.keys())
def test_a_model_is_loaded_once(call: Callable[[Path], Any], tmp_path: Path, loads: list[Path]) -> None:
    """Candidates are rewritten copies, and the points of a sweep share what was found in the model."""
    call(tmp_path)
    assert loads == [MLP]


IN_MEMORY: dict[str, Callable[[Any, Path], tuple[str, ...]]] = {
    "compress": lambda model, folder: (
        onnxmerge.compress(model, folder / "o.onnx", ratio=0.5, method="prune", verify=False).model,
    ),
    "inspect": lambda model, folder: (onnxmerge.inspect(model).model,),
    "sweep": lambda model, folder: (onnxmerge.sweep(model, "ratio=0.5", method="prune", bench=False).model,),
    "verify": lambda model, folder: astuple(onnxmerge.verify(model, model))[:2],
    "bench_batches": lambda model, folder: astuple(onnxmerge.bench_batches(model, MLP, [1]))[:2],
}


@pytest.mark.parametrize(("verb", "call"), IN_MEMORY.items(), ids=IN_MEMORY)
def test_a_model_in_memory(
    verb: str, call: Callable[[Any, Path], tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = call(onnx.load(MLP), tmp_path)
    assert names == {"bench_batches": ("ModelProto main_graph", str(MLP))}.get(verb, ("ModelProto main_graph",) * len(names))


def test_a_message_names_a_model_in_memory(tmp_path: Path) -> None:
    """Not the temporary file that it was written to, which nobody has seen."""
    whole = helper.make_model(helper.make_graph([], "nothing", [], []))
    for verb in (onnxmerge.inspect, onnxmerge.sweep):
        with pytest.raises(OnnxMergeError) as raised:
            verb(whole)
        assert "ModelProto nothing" in str(raised.value)
        assert "/onnxmerge-" not in str(raised.value)


def test_calibration_inputs_may_be_arrays(tmp_path: Path) -> None:
    """Alone or by the name of the input, and also where another process needs them."""
    images = np.random.default_rng(0).normal(size=(60, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    common = {"ratio": 0.5, "bench": False, "threads": 1}
    for name, calibration in {"path": tmp_path / "images.npy", "array": images, "mapping": {"x": images}}.items():
        onnxmerge.compress(MLP, tmp_path / f"{name}.onnx", calibration=calibration, **common)
    onnxmerge.sweep(MLP, "ratio=0.5", calibration=images, jobs=1, folder=tmp_path / "sweep", bench=False, threads=1)
    models = [tmp_path / f"{name}.onnx" for name in ("path", "array", "mapping", "sweep/digits-mlp-ratio-0.5")]
    assert len({model.read_bytes() for model in models}) == 1


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
    "list for an array": ({"calibration": [[0.0]]}, OptionError, "`calibration` must be a path, an array, or a mapping"),
    "two sizes": ({"pruning": PruningOptions(ratio=0.5), "fidelity": 0.9}, OptionError, "`ratio` and `fidelity` both say"),
}


@pytest.mark.parametrize(("keywords", "kind", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_keywords(keywords: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        options_of(keywords, *ALL)
