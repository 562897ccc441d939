"""Defaults of the command line from a pyproject.toml: what they do, what replaces them, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

MODEL = Path(__file__).resolve().parents[1] / "models" / "digits-mlp.onnx"
Run = Callable[..., tuple[int, str, str]]
NO_DECISIONS = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 8] x) => (float[N, 1] y) { y = ReduceMean<axes = [1]>(x) }'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes a pyproject.toml; the working folder is one below it."""
    monkeypatch.delenv("ONNXMERGE_NO_CONFIG", raising=False)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")

    def write(text: str) -> Path:
        (tmp_path / "pyproject.toml").write_text(text)
        return tmp_path

    return write


def test_a_file_above_gives_defaults_and_reports_name_them(project: Callable[[str], Path], run: Run) -> None:
    folder = project("""
        [tool.onnxmerge]
        scope = "all"
        mean = [0.25]
        samples = 16
        [tool.onnxmerge.compress]
        bench = false
        ratio = 0.25
        method = "prune"
        save-plan = "plan.json"
        report = "report.html"
    """)
    code, out, err = run("compress", MODEL, "small.onnx", "--json", "--samples", "8")
    assert code == 0, err
    found = json.loads(out)
    taken = found["defaults"]
    assert found["latency"] is None
    assert (folder / "plan.json").exists(), "a path is relative to the file"
    assert taken.endswith(f" from {folder / 'pyproject.toml'}")
    assert all(each in taken for each in ("mean=0.25", "ratio=0.25", "method=prune", "bench=False")), taken
    assert "samples" not in taken
    assert "options: " in (folder / "report.html").read_text()


@pytest.mark.parametrize("way", ["option", "environment"])
def test_the_file_can_be_ignored(project: Callable[[str], Path], run: Run, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    project("[tool.onnxmerge]\nno-such = 1")
    if way == "environment":
        monkeypatch.setenv("ONNXMERGE_NO_CONFIG", "1")
    code, out, err = run(*(["--no-config"] if way == "option" else []), "inspect", MODEL, "--json")
    assert (code, json.loads(out)["defaults"]) == (0, ""), err


def test_what_is_typed_replaces_another_way_to_say_the_same(project: Callable[[str], Path], run: Run) -> None:
    project("[tool.onnxmerge]\nfidelity = 0.9\nminimize = 'macs'")
    code, out, err = run("compress", MODEL, "small.onnx", "--ratio", "0.25", "--method", "prune", "--no-bench", "--json")
    assert code == 0, err
    assert json.loads(out)["defaults"] == ""


def test_decisions_that_no_output_holds(project: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    """A file for all commands may say how many may change: compress keeps a fidelity where none are, and verify lets it be."""
    onnx.save(onnx.parser.parse_model(NO_DECISIONS), tmp_path / "below" / "m.onnx")
    code, _, err = run("verify", "m.onnx", "m.onnx", "--max-changed-decisions", "2%")
    assert (code, err.count("\n")) == (2, 1)
    assert "no output of m.onnx holds decisions, so that --max-changed-decisions has no effect" in err
    project("[tool.onnxmerge]\nmax-changed-decisions = 0.02")
    code, out, err = run("verify", "m.onnx", "m.onnx", "--json")
    assert (code, json.loads(out)["failures"]) == (0, []), err


def test_what_is_refused_names_the_options_of_the_file(project: Callable[[str], Path], run: Run) -> None:
    folder = project("[tool.onnxmerge]\nmin-fidelity = 0.1\nverify = false")
    code, _, err = run("compress", MODEL, "small.onnx")
    assert (code, err.count("\n")) == (2, 1)
    assert all(each in err for each in ("min_fidelity=0.1", "verify=False", f" from {folder / 'pyproject.toml'};")), err


CONTRADICTIONS = {  # file, typed, what of the file holds
    "size": ("target = 'macs=0.5'", ("--ratio", "0.25"), ""),
    "size and what it is for": ("fidelity = 0.9\nminimize = 'macs'", ("--ratio", "0.25"), ""),
    "threshold": ("min-fidelity = 0.1\nmin-cosine = 0.1\nscope = 'all'", ("--no-verify",), "scope=all"),
    "speed": ("min-speedup = 9", ("--no-bench",), ""),
    "no check": ("no-verify = true", ("--min-cosine", "-1"), ""),
    "settings of CUDA": ("cuda-graph = true\ntf32 = true", ("--provider", "cpu"), ""),
    "reading of images": ("fit = 'letterbox'\ncolor = 'bgr'\nseed = 3", ("--calibration", "x.npy"), "seed=3"),
}


@pytest.mark.parametrize(("text", "typed", "holds"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_is_typed_puts_aside_what_speaks_against_it(
    project: Callable[[str], Path], run: Run, text: str, typed: tuple[str, ...], holds: str
) -> None:
    folder = project(f"[tool.onnxmerge]\n{text}")
    np.save("x.npy", np.zeros((8, 1, 8, 8), np.float32))
    size = () if "--ratio" in typed else ("--ratio", "0.25")
    given = ("compress", MODEL, "small.onnx", *size, "--method", "prune", "--no-bench", "--samples", "8", *typed)
    code, out, err = run(*given, "--json")
    assert code == 0, err
    assert json.loads(out)["defaults"] == (f"{holds} from {folder / 'pyproject.toml'}" if holds else "")
    assert "put aside" not in err
    _, _, err = run(*given, "-v")
    assert "put aside for what was typed: " in err


BAD = {
    "key": ("[tool.onnxmerge]\nno-such = 1", "has the key 'no-such', which is no option of any command"),
    "key of a command": ("[tool.onnxmerge.inspect]\nratio = 0.5", "has the key 'ratio', which is no option of inspect"),
    "command": ("[tool.onnxmerge.shrink]\nratio = 0.5", "is for no command; they are inspect, compress"),
    "flag": ("[tool.onnxmerge]\njson = 1", "json: true or false is needed, not 1"),
    "number": ('[tool.onnxmerge]\nsamples = "8"', "samples: a whole number is needed, not '8'"),
    "whole": ("[tool.onnxmerge]\nsamples = 8.5", "samples: a whole number is needed, not 8.5"),
    "choice": ('[tool.onnxmerge]\nmethod = "x"', "method: 'x' is not one of"),
    "two numbers": ("[tool.onnxmerge]\ninput-range = [1]", "input-range: "),
    "list": ('[tool.onnxmerge]\nmethod = ["auto", "merge"]', "method: one value is needed, not a list"),
    "words": ('[tool.onnxmerge]\nmean = "grey"', "mean: 'grey' is not a list of numbers"),
    "date": ("[tool.onnxmerge]\nmean = 2026-01-01", "mean: "),
    "no table": ("[tool]\nonnxmerge = 3", "must be a table, not 3"),
    "no TOML": ("onnxmerge = [", "is no valid TOML file"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_wrong_file_is_one_line(project: Callable[[str], Path], run: Run, text: str, message: str) -> None:
    folder = project(text)
    code, out, err = run("inspect", MODEL)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{folder / 'pyproject.toml'}" in err
    assert message in err
    assert run("inspect", "--help")[0] == 0


def test_help_reads_no_file(project: Callable[[str], Path]) -> None:
    project("[tool.onnxmerge]\nratio = 0.5")
    code = (
        "import sys; from onnxmerge.cli import app\ntry: app.main(['compress', '-h'])\nfinally: print('tomllib' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.endswith("False\n")
