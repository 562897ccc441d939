"""The commands of README.md and docs/ run, what they name exists, transcripts and generated pages are what the program says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import FOLDER as PICTURES_FOLDER
from pictures import PICTURES
from write_operators import operators_page
from write_options import options_page

import onnxmerge
from onnxmerge.cli import app as cli
from onnxmerge.evaluation.ratio_interval import ratio_interval
from onnxmerge.options import DEFAULT_CHANGED_DECISIONS, DEFAULT_FIDELITY
from onnxmerge.options.checks import METHOD_NAMES

ROOT = Path(__file__).resolve().parents[1]
PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in PATHS}
ALL = "\n".join(PAGES.values())
BLOCKS = {
    name: re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) for name, text in [*PAGES.items(), ("all", ALL)]
}
COMMANDS = {
    name: [line.removeprefix("$ ") for kind, block in blocks if kind == "console" for line in block.splitlines()]
    for name, blocks in BLOCKS.items()
}
TUTORIAL = [line for line in COMMANDS["tutorial.md"] if line.startswith("onnxmerge ")]
PROGRAM = [line for line in dict.fromkeys(COMMANDS["all"]) if line.startswith("onnxmerge ") and line not in TUTORIAL]
TRANSCRIPT = next(block for kind, block in BLOCKS["report.md"] if kind == "text")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
MEAN, STD = 0.3054, 0.3758
OTHER_OPTIONS = {"--help", "--rm", "--gpus", "--build-arg", "--user", "--tag", "--volume"}
"""The one that click adds, and those of docker."""
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
    """Where a reader would be who has made smaller.onnx and plan.json before: model.onnx, inputs and labels of them."""
    path = tmp_path_factory.mktemp("reader")
    shutil.copy(ROOT / "models" / "digits-mlp.onnx", path / "model.onnx")
    with np.load(ROOT / "models" / "digits.npz") as archive:
        for name, images in (("inputs", archive["images"][:300]), ("check", archive["calibration"])):
            np.save(path / f"{name}.npy", (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD))
        np.save(path / "labels.npy", archive["labels"][:300])
    inputs = {"calibration": path / "inputs.npy", "save_plan": path / "plan.json", "bench": False}
    onnxmerge.compress(path / "model.onnx", path / "smaller.onnx", target="params=0.5", **inputs)
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


@pytest.mark.parametrize("command", TUTORIAL)
def test_command_of_the_tutorial_is_one(command):
    """`make readme` runs them, for half a minute."""
    name, *arguments = shlex.split(command)[1:]
    assert cli.cli.commands[name].make_context(name, arguments)


def test_commands_are_there_to_be_run():
    assert {command.split()[1] for command in PROGRAM} == set(cli.cli.commands)


def block_of(kind: str) -> str:
    (block,) = [block for of, block in BLOCKS["pipelines.md"] if of == kind]
    return block


def called(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_shell_recipe_runs(layer, environment):
    done = called(["bash", "-c", block_of("sh")], environment)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+% of the parameters left, \d+\.\d\dx as fast, fidelity 0\.\d{3}\n", done.stdout)


def test_shell_recipe_fails_below_the_threshold(layer, environment):
    (layer / "bench.json").unlink(missing_ok=True)
    done = called(["bash", "-c", block_of("sh").replace("decisions 5%", "decisions 0.01%")], environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert "changed decisions" in done.stderr
    assert not (layer / "bench.json").exists()


@pytest.mark.parametrize(("threshold", "code"), [("5%", 0), ("0.01%", 2)], ids=["passes", "fails"])
def test_make_recipe(layer, environment, threshold, code):
    (layer / "recipe.mk").write_text(block_of("make").replace("decisions 5%", f"decisions {threshold}"), encoding="utf-8")
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


@pytest.mark.parametrize(("page", "printed"), [("README.md", "of the MACs left, fidelity"), ("api.md", "channels kept")])
def test_python_example_runs(layer, capsys, page, printed):
    (example,) = [block for kind, block in BLOCKS[page] if kind == "python"]
    exec(compile(example, page, "exec"), {})
    assert printed in capsys.readouterr().out


def test_every_option_named_exists():
    commands = (cli.cli, *cli.cli.commands.values())
    options = {name for command in commands for option in command.params for name in (*option.opts, *option.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", ALL)) - OTHER_OPTIONS
    assert named - options == set()


def test_the_readme_tells_every_command_and_method():
    for name in [*cli.cli.commands, *METHOD_NAMES]:
        assert f"`{name}`" in PAGES["README.md"] or f"onnxmerge {name} " in PAGES["README.md"]


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", ALL))
    assert {"demo", "test", "docs"} <= named <= targets


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", PAGES[path.name]):
        page = (path.parent / target) if target else path
        assert page.exists(), target
        headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], anchor


def test_python_names_exist():
    for name in re.findall(r"\bonnxmerge\.([A-Za-z]\w+)(?![\w/.])", re.sub(r"onnxmerge\.\w+/\d|onnxmerge/\S+", "", ALL)):
        assert hasattr(onnxmerge, name), name


def test_generated_pages_are_up_to_date():
    """`make schemas` writes them anew."""
    assert PAGES["operators.md"] == operators_page()
    assert PAGES["options.md"] == options_page()
    assert {name: draw() for name, draw in PICTURES.items()} == {
        path.stem: path.read_text(encoding="utf-8") for path in PICTURES_FOLDER.glob("*.svg")
    }


def test_the_navigation_of_the_site_holds_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert {path.name for path in PATHS[1:]} <= set(re.findall(r"[\w-]+\.md", navigation))


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


def test_the_transcript_of_the_readme_is_a_part_of_it():
    lines = TRANSCRIPT.splitlines()
    (short,) = [block for kind, block in BLOCKS["README.md"] if kind == "text"]
    assert set(short.splitlines()) - {"..."} <= set(lines)
    assert max(map(len, lines)) <= 80


MEASURED = {
    "VGG-16": "vgg16-cifar10-bn",
    "LeNet-300-100": "lenet-300-100",
    "ResNet-56, BatchNormalization folded": "resnet56-cifar10",
    "ResNet-56": "resnet56-cifar10-bn",
    "DenseNet-like": "cifar-densenet",
    "EfficientNet-like": "cifar-efficientnet",
    "ViT-like": "cifar-vit",
    "MobileNetV2-like": "cifar-mobilenetv2",
}
"""Networks of the README's table, and what they are called in the results."""


def test_the_table_of_the_readme_is_what_was_measured():
    rows = json.loads((ROOT / "benchmarks" / "results" / "speed-cpu.json").read_text(encoding="utf-8"))
    found = {row["model"]: row for row in rows if (row["asked"], row["batch"], row["threads"]) == ("default", 1, 1)}
    told = [line.split("|")[1:-1] for line in PAGES["README.md"].splitlines() if line.startswith("| ")]
    table = {name.strip(): [value.strip() for value in values] for name, *values in told if len(values) == 3}
    table.pop("network")
    measured = {name: found[model] for name, model in MEASURED.items()}
    assert table == {
        name: [f"{row['speedup']:.2f}", *(f"{right:.1f}" for right in row["right"])] for name, row in measured.items()
    }


def test_what_is_said_of_changed_decisions_is_what_was_measured():
    """docs/size.md tells the same rows in a sentence, speeds to two or three digits."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "speed-cpu.json").read_text(encoding="utf-8"))
    found = {row["model"]: row for row in rows if (row["asked"], row["batch"], row["threads"]) == ("default", 1, 1)}
    sentence = re.search(r"With 128 unlabelled images\s.*?\.\s+How far", PAGES["size.md"], re.DOTALL)[0]
    numbers = r"(\d\.\d+) times[^(]*?\((\d+\.\d)[^,]*, (\d+\.\d)"
    told = [tuple(each) for each in re.findall(numbers, " ".join(sentence.split()))]
    order = ("VGG-16", "ResNet-56, BatchNormalization folded", "ResNet-56", "LeNet-300-100", "DenseNet-like", "EfficientNet-like")
    measured = [found[MEASURED[name]] for name in (*order, "MobileNetV2-like", "ViT-like")]
    assert len(told) == len(measured)
    for (speed, *right), row in zip(told, measured, strict=True):
        assert f"{row['speedup']:.{len(speed) - 2}f}" == speed
        assert [f"{each:.1f}" for each in row["right"]] == right


def test_the_readme_tells_the_defaults():
    text = " ".join(PAGES["README.md"].split())
    assert f"changes at most {100 * DEFAULT_CHANGED_DECISIONS:g} % of its decisions" in text
    assert f"keeps a *fidelity* of {DEFAULT_FIDELITY:g} where outputs hold none" in text
    most = ratio_interval(np.full(38, 1e-6), np.ones(38), 1e-6, is_share=True)[1]
    assert 0.09 < most < 0.1  # "of 38 held-out inputs no figure can tell that fewer than one in ten others change"
    assert "of 38 held-out inputs no figure can tell that fewer than one in ten others change" in text
