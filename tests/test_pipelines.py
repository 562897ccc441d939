"""What runs the program elsewhere: the action, the hook of pre-commit, and the image."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

yaml = pytest.importorskip("yaml", reason="the files are YAML, which PyYAML reads")

ROOT = Path(__file__).resolve().parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
PIXELS = "--mean 0.3054 --std 0.3758"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with a model and inputs."""
    (tmp_path / "model.onnx").symlink_to(ROOT / "models" / "digits-mlp.onnx")
    with np.load(ROOT / "models" / "digits.npz") as digits:
        np.save(tmp_path / "inputs.npy", digits["calibration"])
        np.save(tmp_path / "check.npy", digits["images"][:64])
    script = tmp_path / "bin" / "onnxmerge"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m onnxmerge "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return tmp_path


def run(folder: Path, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in the folder, with onnxmerge on the path."""
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def act(folder: Path, **inputs: str) -> tuple[int, str, str]:
    """The exit code of the step that compresses, as GitHub runs it, the summary of the job and its outputs."""
    (step,) = [step for step in ACTION["runs"]["steps"] if step.get("id") == "compress"]
    given: dict[str, Any] = {"model": "model.onnx", "output": "smaller.onnx", "options": "", "verify": "", **inputs}
    variables = {name: given[value.removeprefix("${{ inputs.").removesuffix(" }}")] for name, value in step["env"].items()}
    (folder / "step.sh").write_text(step["run"], encoding="utf-8")
    files = {"GITHUB_OUTPUT": folder / "outputs", "GITHUB_STEP_SUMMARY": folder / "summary"}
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "step.sh"]
    done = run(folder, shell, **variables, **{name: str(path) for name, path in files.items()})
    return done.returncode, files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8"), files["GITHUB_OUTPUT"].read_text("utf-8")


def test_the_action_compresses_and_checks(folder: Path) -> None:
    options = f"--ratio 0.25 --method prune --calibration inputs.npy --no-bench {PIXELS}"
    code, summary, outputs = act(folder, options=options, verify=f"--calibration check.npy {PIXELS} --min-cosine 0.5")
    assert code == 0, summary
    assert (folder / "smaller.onnx").exists()
    assert "Smaller by" in summary
    assert "Passed" in summary
    assert Path(outputs.strip().removeprefix("report=")).exists()


@pytest.mark.parametrize("threshold", ["options", "verify"])
def test_the_action_fails_on_thresholds_and_says_so(folder: Path, threshold: str) -> None:
    given = {"options": f"--ratio 0.25 --method prune --calibration inputs.npy --no-bench {PIXELS}"}
    given["verify"] = f"--calibration check.npy {PIXELS}"
    given[threshold] += " --min-fidelity 0.9999"
    code, summary, _ = act(folder, **given)
    assert code == 1
    assert "**onnxmerge: verification failed" in summary
    assert (folder / "smaller.onnx").exists() is (threshold == "verify")


def test_every_input_of_the_action_is_used() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    assert all(f"${{{{ inputs.{name} }}}}" in text for name in ACTION["inputs"])


def test_the_hook_fails_on_another_model(folder: Path) -> None:
    (folder / "other.onnx").symlink_to(ROOT / "models" / "digits-resnet.onnx")
    command = [*shlex.split(HOOK["entry"]), "model.onnx", "other.onnx", "--calibration", "check.npy", *PIXELS.split()]
    assert run(folder, command).returncode == 1
    assert not HOOK["pass_filenames"]
