"""The README's commands run, what it names exists, and its transcript is what the program prints."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onnxmerge
from onnxmerge.cli import app as cli
from onnxmerge.options.checks import METHOD_NAMES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line.removeprefix("$ ") for kind, block in BLOCKS if kind == "console" for line in block.splitlines() if line.startswith("$ ")
]
PROGRAM = [command for command in COMMANDS if command.startswith("onnxmerge ")]
TRANSCRIPT = next(block for kind, block in BLOCKS if kind == "text")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
MEAN, STD = 0.3054, 0.3758
PROGRAM_OF_RECIPES = """
from dataclasses import replace
from onnxmerge.cli.app import main
from onnxmerge.data import selection
from onnxmerge.evaluation import benchmark
selection.DENSE_CALIBRATION_INPUTS = 256
benchmark.DEFAULT_EFFORT = replace(benchmark.DEFAULT_EFFORT, seconds=0.1)
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the README's reader would be: model.onnx, inputs and labels of them, and smaller.onnx once it was made."""
    path = tmp_path_factory.mktemp("reader")
    shutil.copy(ROOT / "models" / "digits-mlp.onnx", path / "model.onnx")
    with np.load(ROOT / "models" / "digits.npz") as archive:
        for name, images in (("inputs", archive["images"][:300]), ("check", archive["calibration"])):
            np.save(path / f"{name}.npy", (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD))
        np.save(path / "labels.npy", archive["labels"][:300])
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """One where `onnxmerge` is on the path, as pip writes it, but quick as in conftest.py."""
    script = tmp_path_factory.mktemp("bin") / "onnxmerge"
    script.write_text(f"#!{sys.executable}\n{PROGRAM_OF_RECIPES}", encoding="utf-8")
    script.chmod(0o755)
    search = os.pathsep.join([str(script.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": search, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def layer(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("command", PROGRAM)
def test_command_runs(layer, capsys, command):
    with pytest.raises(SystemExit) as ending:
        cli.main(shlex.split(command)[1:])
    assert (ending.value.code or 0) == 0, capsys.readouterr().err


def test_commands_are_there_to_be_run():
    assert {command.split()[1] for command in PROGRAM} == set(cli.cli.commands)


def block_of(kind: str) -> str:
    (block,) = [block for of, block in BLOCKS if of == kind]
    return block


def called(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_shell_recipe_runs(layer, environment):
    done = called(["bash", "-c", block_of("sh")], environment)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+% of the parameters left, \d+\.\d\dx as fast, fidelity 0\.\d{3}\n", done.stdout)


def test_shell_recipe_fails_below_the_threshold(layer, environment):
    (layer / "bench.json").unlink(missing_ok=True)
    done = called(["bash", "-c", block_of("sh").replace("--min-cosine 0.9", "--min-cosine 1")], environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert "mean cosine" in done.stderr
    assert not (layer / "bench.json").exists()


@pytest.mark.parametrize(("threshold", "code"), [("0.9", 0), ("1", 2)], ids=["passes", "fails"])
def test_make_recipe(layer, environment, threshold, code):
    (layer / "recipe.mk").write_text(block_of("make").replace("--min-cosine 0.9", f"--min-cosine {threshold}"), encoding="utf-8")
    (layer / "smaller.onnx").unlink(missing_ok=True)
    done = called(["make", "-f", "recipe.mk", "smaller.onnx"], environment)
    assert done.returncode == code, done.stderr
    assert (layer / "smaller.onnx").exists() is (code == 0)


def test_completion_of_the_shell(environment):
    words = {"COMP_WORDS": "onnxmerge verify --lay", "COMP_CWORD": "2"}
    asked = {**environment, **words, "_ONNXMERGE_COMPLETE": "bash_complete"}
    assert "--layers" in called(["onnxmerge"], asked).stdout
    for shell in ("bash", "zsh"):
        script = called(["onnxmerge"], {**environment, "_ONNXMERGE_COMPLETE": f"{shell}_source"}).stdout
        assert "_ONNXMERGE_COMPLETE" in script


def test_python_example_runs(layer, capsys):
    (example,) = [block for kind, block in BLOCKS if kind == "python"]
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "channels kept" in printed
    assert "/5/Gemm is not compressed: written to the graph output y" in printed


def test_every_option_named_exists():
    commands = (cli.cli, *cli.cli.commands.values())
    options = {name for command in commands for option in command.params for name in (*option.opts, *option.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", README))
    assert named - options == set()


def test_every_command_and_method_is_told():
    for name in [*cli.cli.commands, *METHOD_NAMES]:
        assert f"`{name}`" in README or f"onnxmerge {name} " in README


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"(?:`|\$ )make ([a-z]+)", README))
    assert {"demo", "test"} <= named <= targets


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_python_names_exist():
    for name in re.findall(r"onnxmerge\.(\w+)", re.sub(r"onnxmerge/\S+", "", README)):
        assert hasattr(onnxmerge, name), name


def test_transcript_is_still_true(tmp_path):
    """Counts to the digit; what is measured or computed in floating point is not compared."""
    command = re.match(r"\$ (onnxmerge .*?)\n\n", TRANSCRIPT, re.DOTALL)[1].replace("\\\n", " ")
    source, options = shlex.split(command)[2], shlex.split(command)[4:]
    context = cli.cli.commands["compress"].make_context("compress", [source, "unused", *options])
    others = ("model", "output", "reports", "as_json", "quiet", "verbose", "verify")
    given = {name: value for name, value in context.params.items() if value is not None and name not in others}
    result = onnxmerge.compress(ROOT / source, tmp_path / "out.onnx", verify=False, **given)
    for before, after in [(result.before.macs, result.after.macs), (result.before.parameters, result.after.parameters)]:
        assert re.search(rf" {before:,} +{after:,} ", TRANSCRIPT), f"{before:,} -> {after:,}: `make readme` writes it anew"
    for group in result.groups:
        assert re.search(rf"^{re.escape(group.name)} +{group.kept} +{group.channels} ", TRANSCRIPT, re.MULTILINE)


def test_readme_has_no_line_that_a_terminal_would_fold_in_the_transcript():
    assert max(map(len, TRANSCRIPT.splitlines())) <= 80
