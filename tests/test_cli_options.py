"""The command line's options: each has its help, its field in the program and one way to write a share."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import onnxmerge
from onnxmerge.cli import app as cli
from onnxmerge.cli.configuration import _read
from onnxmerge.errors import OptionError
from onnxmerge.options import InputOptions, PruningOptions, RuntimeOptions, Thresholds
from onnxmerge.options.checks import SHARES
from onnxmerge.pipeline.sweep_targets import read_targets

COMMANDS = {
    "inspect": ("MODEL",),
    "compress": ("MODEL", "OUTPUT"),
    "sweep": ("MODEL",),
    "verify": ("REFERENCE", "CANDIDATE"),
    "bench": ("REFERENCE", "CANDIDATE"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: ")
    assert all(argument in out for argument in COMMANDS[command])
    assert max(map(len, out.splitlines())) <= 120
    sections = re.findall(r"^(\w.*):$", out, re.MULTILINE)
    assert sections[-2:] == ["Output" if command == "inspect" else "CUDA", "Examples"]
    examples = re.findall(r"^  onnxmerge (.*)$", out, re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        words = shlex.split(example)
        cli.cli.commands[command].make_context(command, words[1:])
        assert words[0] == command


@pytest.mark.parametrize("name", SHARES)
def test_every_share_is_taken_in_per_cent_and_says_so(name: str) -> None:
    """In Python, on the command line, in pyproject.toml, in its help and in its message."""
    options = Thresholds if name in {field.name for field in dataclasses.fields(Thresholds)} else PruningOptions
    assert getattr(options(**{name: " 25% "}), name) == getattr(options(**{name: 0.25}), name) == 0.25
    with pytest.raises(OptionError, match=f"`{name}` must be .*%, not 'much'"):
        options(**{name: "much"})
    (option,) = [each for each in cli.cli.commands["compress"].params if each.name == name]
    assert re.search(r"\d%", option.help or "")
    assert [_read(option, name, value, Path()) for value in ("25%", 0.25)] == ["25%", 0.25]


def test_targets_are_taken_in_per_cent():
    assert PruningOptions(target="macs=50%").target == ("macs", 0.5)
    assert read_targets("macs=75%, 50%,params=0.5") == (("macs", 0.75), ("macs", 0.5), ("params", 0.5))


VALUES = {
    PruningOptions: {"target": ("macs", 2.0)},
    InputOptions: {"mean": ("grey", "x"), "std": (0.0, 1.0), "input_range": (1.0, 0.0), "input_shape": {"x": (0, 3)}},
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, values in VALUES.items() for name in values])
def test_no_error_shows_a_tuple(kind, name):
    with pytest.raises(OptionError) as told:
        kind(**{name: VALUES[kind][name]})
    assert not re.search(r"\([^()]*,[^()]*\)", str(told.value).partition(", not ")[2])


def test_every_option_has_a_help_text():
    for name, command in cli.cli.commands.items():
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.name}"


def test_every_setting_of_the_command_line_is_an_option_of_the_program():
    kinds = (PruningOptions, InputOptions, RuntimeOptions, Thresholds)
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)} | {
        "as_json",
        "bench",
        "dask",
        "in_place",
        "jobs",
        "labels",
        "layers",
        "out",
        "provenance",
        "quiet",
        "save_worst",
        "verify",
        "targets",
        "reports",
        "save_plan",
        "sensitivity",
        "verbose",
    }
    for command in cli.cli.commands.values():
        options = {option.name for option in command.params if isinstance(option, click.Option)}
        assert options <= known


def test_table_of_commands_is_complete():
    assert set(cli.cli.commands) == set(COMMANDS)


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0
    assert onnxmerge.__version__ in out


def test_no_command_shows_the_help_and_fails(run):
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "compress" in err


def test_shell_completion():
    settings = {"_ONNXMERGE_COMPLETE": "bash_complete", "COMP_WORDS": "onnxmerge compress --min-f", "COMP_CWORD": "2"}
    script = Path(sys.executable).with_name("onnxmerge")
    if not script.exists():
        pytest.skip("the onnxmerge script is not installed beside this Python")
    done = subprocess.run([script], capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **settings})
    assert "--min-fidelity" in done.stdout
