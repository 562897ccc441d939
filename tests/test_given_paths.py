"""Paths and numbers as a shell, or a mistake, may give them."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from test_surroundings import MLP, PRUNE, Run, one_line

import onnxmerge
from onnxmerge.errors import InputError, OptionError

PATHS = {
    "a pipe": ("pipe.npy", "a pipe"),
    "a device": ("/dev/zero", "a device"),
    "a link to itself": ("circle.npz", "Too many levels of symbolic links"),
    "a name of 260 characters": (f"{'n' * 256}.npy", "File name too long"),
}
ARGUMENTS = {
    "MODEL": ["inspect", "PATH"],
    "OUTPUT": ["compress", "in.onnx", "PATH", *PRUNE],
    "--calibration": ["verify", "in.onnx", "in.onnx", "--calibration", "PATH"],
    "--labels": ["verify", "in.onnx", "in.onnx", "--calibration", "x.npy", "--labels", "PATH"],
    "--save-worst": ["verify", "in.onnx", "in.onnx", "--save-worst", "PATH"],
    "--plan": ["compress", "in.onnx", "o.onnx", "--plan", "PATH"],
    "--save-plan": ["compress", "in.onnx", "o.onnx", *PRUNE, "--save-plan", "PATH"],
    "--report": ["inspect", "in.onnx", "--report", "PATH"],
    "--out": ["sweep", "in.onnx", "--out", "PATH"],
}


def make_paths() -> None:
    os.mkfifo("pipe.npy")
    os.symlink("circle.npz", "circle.npz")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_path_that_leads_to_no_file(run: Run, folder: Path, argument: str, path: str) -> None:
    make_paths()
    before = sorted(os.listdir())
    name, told = PATHS[path]
    code, out, err = run(*(name if each == "PATH" else each for each in ARGUMENTS[argument]))
    assert (code, out) == (2, "")
    assert told in one_line(err)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_working_folder_that_was_removed(run: Run, folder: Path, argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    absolute = {"in.onnx", "o.onnx", "x.npy"}
    words = [str(folder / each) if each in absolute else each for each in ARGUMENTS[argument]]
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "the working folder does not exist any more" in one_line(err)


@pytest.mark.parametrize("name", [name for name, _ in PATHS.values()])
def test_paths_from_python(folder: Path, name: str) -> None:
    make_paths()
    path = folder / name
    with pytest.raises(InputError):
        onnxmerge.verify(MLP, MLP, calibration=path)
    with pytest.raises(InputError):
        onnxmerge.verify(MLP, MLP, calibration=folder / "x.npy", labels=path)
    with pytest.raises(OptionError):
        onnxmerge.compress(MLP, folder / "o.onnx", plan=path)
    with pytest.raises(OptionError):
        onnxmerge.compress(MLP, path, ratio=0.5)


def same_file(kind: str) -> str:
    match kind:
        case "a symbolic link":
            os.symlink("in.onnx", "other.onnx")
        case "a hard link":
            os.link("in.onnx", "other.onnx")
        case "another spelling":
            return "../" + Path.cwd().name + "/./in.onnx"
    return "other.onnx"


@pytest.mark.parametrize("kind", ["a symbolic link", "a hard link", "another spelling"])
def test_the_model_is_replaced_only_on_request(run: Run, folder: Path, kind: str) -> None:
    output = same_file(kind)
    code, _, err = run("compress", "in.onnx", output, *PRUNE)
    assert code == 2
    assert "--in-place" in one_line(err)
    assert Path("in.onnx").read_bytes() == MLP.read_bytes()
    source = hashlib.sha256(Path("in.onnx").read_bytes()).hexdigest()
    code, out, _ = run("compress", "in.onnx", output, *PRUNE, "--in-place", "--json")
    assert code == 0
    assert Path(output).stat().st_size < MLP.stat().st_size
    result = hashlib.sha256(Path(output).read_bytes()).hexdigest()
    assert {source, result} == set(json.loads(out)["sha256"].values())


def test_the_mode_of_a_file_that_is_replaced_stays(run: Run, folder: Path) -> None:
    files = [Path(name) for name in ("o.onnx", "plan.json", "r.html")]
    for file in files:
        file.touch()
        file.chmod(0o640)
    assert run("compress", "in.onnx", "o.onnx", *PRUNE, "--save-plan", "plan.json", "--report", "r.html")[0] == 0
    assert all(file.stat().st_size and file.stat().st_mode & 0o777 == 0o640 for file in files)


NUMBERS = {
    "threads": (["bench", "in.onnx", "in.onnx", "--threads", "1000000000"], "whole number of at least 1 and at most"),
    "more threads than a number holds": (["bench", "in.onnx", "in.onnx", "--threads", "9" * 30], "--threads must be"),
    "samples": (["verify", "in.onnx", "in.onnx", "--samples", "9" * 30], "whole number of at least 2 and at most"),
    "batch": (["bench", "in.onnx", "in.onnx", "--batch", "1000000000000"], "--batch 1000000000000 is too large for in.onnx"),
    "batch of compress": (["compress", "in.onnx", "o.onnx", "--batch", "9" * 30], "is too large for in.onnx"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_no_machine_can_take(run: Run, folder: Path, case: str) -> None:
    arguments, told = NUMBERS[case]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert told in one_line(err)
