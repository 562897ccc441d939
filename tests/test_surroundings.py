"""Surroundings that no model is to blame for: streams, signals, paths, files of the user's that are not what they seem."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import onnxmerge
from onnxmerge.data import npy_files
from onnxmerge.errors import InputError
from onnxmerge.pipeline.candidate_builder import CandidateBuilder
from onnxmerge.pipeline.candidates import SearchResult
from onnxmerge.pipeline.search import search

MLP = Path(__file__).resolve().parents[1] / "models" / "digits-mlp.onnx"
PRUNE = ("--method", "prune", "--ratio", "0.25", "--no-verify")
START = (sys.executable, "-m", "onnxmerge")
Run = Callable[..., tuple[int, str, str]]


def one_line(text: str) -> str:
    assert text.startswith("onnxmerge: "), text
    assert text.count("\n") == 1, text
    return text


# signals

WAIT = """
import os, sys, time
def wait(*_):
    os.write(1, b"ready\\n")
    time.sleep(60)
class Waiting:
    def find_spec(self, name, *_):
        if name == "onnx":
            wait()
"""
MOMENTS = {
    "while ONNX is imported": f"{WAIT}\nsys.meta_path.insert(0, Waiting())",
    "while the model is saved": f"{WAIT}\nimport onnxmerge.onnxio.model_saving\nonnxmerge.onnxio.model_saving._check = wait",
}


def stopped(moment: str, number: int) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a `compress` that got a signal at that moment."""
    program = f"{MOMENTS[moment]}\nfrom onnxmerge.__main__ import main\nmain()"
    command = [sys.executable, "-c", program, "compress", "in.onnx", "o.onnx", *PRUNE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    return running.returncode, out, err


@pytest.mark.skipif(sys.platform == "win32", reason="these signals are not there")
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_run_at_once_and_leaves_nothing(folder: Path, moment: str, number: int, code: int) -> None:
    before = sorted(os.listdir(folder))
    assert stopped(moment, number) == (code, "", "onnxmerge: interrupted\n")
    assert sorted(os.listdir(folder)) == before


@pytest.mark.skipif(sys.platform == "win32", reason="what was killed leaves files there")
def test_the_next_run_removes_what_a_killed_one_left(run: Run, folder: Path) -> None:
    before = set(os.listdir(folder))
    assert stopped("while the model is saved", signal.SIGKILL)[0] == -signal.SIGKILL
    assert len(set(os.listdir(folder)) - before) == 1
    assert run("inspect", "in.onnx", "--report", "report.html")[0] == 0
    assert set(os.listdir(folder)) == {*before, "report.html"}


# standard streams


def end_of_pipe() -> int:
    """The writing end of a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


STREAMS = {
    "stdout is a closed pipe": (["inspect", "in.onnx"], end_of_pipe, None, 0, None),
    "help into a closed pipe": (["--help"], end_of_pipe, None, 0, None),
    "both are closed pipes": (["inspect", "missing.onnx"], end_of_pipe, end_of_pipe, 2, None),
    "stdout is full": (["inspect", "in.onnx", "--json"], lambda: os.open("/dev/full", os.O_WRONLY), None, 2, "No space left"),
    "stderr is full": (["inspect", "missing.onnx"], None, lambda: os.open("/dev/full", os.O_WRONLY), 2, None),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("case", STREAMS)
def test_standard_streams(folder: Path, case: str) -> None:
    arguments, stdout, stderr, code, told = STREAMS[case]
    opened = [subprocess.PIPE if each is None else each() for each in (stdout, stderr)]
    done = subprocess.run([*START, *arguments], stdout=opened[0], stderr=opened[1], timeout=60, check=False)
    for number in opened:
        if number != subprocess.PIPE:
            os.close(number)
    assert done.returncode == code
    if told is not None:
        assert told in one_line(done.stderr.decode())
    elif stderr is None:
        assert done.stderr == b""


def test_streams_that_are_not_open(folder: Path) -> None:
    """A file that is opened then takes the number of stdout, and must not be printed into."""
    command = f"{' '.join(START)} compress in.onnx o.onnx {' '.join(PRUNE)} --save-plan plan.json <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], timeout=60, check=False).returncode == 0
    assert json.loads(Path("plan.json").read_text())["groups"]
    assert onnxmerge.verify("o.onnx", "o.onnx", samples=4).passed


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_characters_that_an_encoding_lacks(folder: Path, encoding: str) -> None:
    name = "∞ — 模型.onnx"
    command = [*START, "compress", "in.onnx", name, *PRUNE]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert r"\u6a21\u578b.onnx" in done.stdout.decode(encoding)
    assert Path(name).exists()


# inputs, labels and plans


def write_archive(path: Path, *names: str, packed: bool = False) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.write("x.npy", name)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_arrays_of_a_name(folder: Path) -> None:
    write_archive(folder / "twice.npz", "x.npy", "x.npy")
    with pytest.raises(InputError, match=r"twice.npz cannot be read: it holds two arrays of the name 'x'"):
        onnxmerge.verify(MLP, MLP, calibration=folder / "twice.npz")


def test_an_archive_is_not_unpacked_where_that_would_fill_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(folder / "packed.npz", "x.npy", packed=True)
    write_archive(folder / "stored.npz", "x.npy")
    monkeypatch.setattr(npy_files.tempfile, "TemporaryFile", None)
    monkeypatch.setattr(npy_files, "LARGEST_UNPACKED_BYTES", 2000)
    with pytest.raises(InputError, match=r"packed.npz .* unpacked it has 2176 bytes, and at most 2000"):
        onnxmerge.verify(MLP, MLP, calibration=folder / "packed.npz")
    assert onnxmerge.verify(MLP, MLP, calibration=folder / "stored.npz").passed


@pytest.mark.parametrize("pixels", [64, 100])
def test_an_image_that_is_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    (folder / "images").mkdir()
    Image.new("L", (10, pixels // 10)).save(folder / "images" / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    if pixels == 64:
        assert onnxmerge.verify(MLP, MLP, calibration=folder / "images").passed
        return
    with pytest.raises(InputError, match=r"large.png cannot be read: Image size \(100 pixels\) exceeds limit of 64 pixels"):
        onnxmerge.verify(MLP, MLP, calibration=folder / "images")


@pytest.mark.parametrize(("label", "told"), [(-1, "the label -1"), (10, "class 10, but .* has 10 classes")], ids=["-1", "10"])
def test_labels_of_no_class(folder: Path, label: int, told: str) -> None:
    np.save("labels.npy", [0, 1, 2, 3, 4, 5, 9, label])
    with pytest.raises(InputError, match=told):
        onnxmerge.verify(MLP, MLP, calibration=folder / "x.npy", labels=folder / "labels.npy")


def test_a_plan_that_says_a_thing_twice(run: Run, folder: Path) -> None:
    assert run("compress", "in.onnx", "o.onnx", *PRUNE, "--save-plan", "plan.json")[0] == 0
    plan = Path("plan.json").read_text()
    Path("plan.json").write_text(plan.replace('"kept": ', '"kept": 5, "kept": ', 1))
    code, _, err = run("compress", "in.onnx", "o2.onnx", "--plan", "plan.json")
    assert code == 2
    assert "the key 'kept' occurs twice" in one_line(err)


# ONNX Runtime


def test_nothing_is_written_for_telemetry(folder: Path) -> None:
    for name in ("home", "temporary"):
        Path(name).mkdir()
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "temporary")}
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY" and "XDG" not in name}
    command = [*START, "compress", "in.onnx", "o.onnx", *PRUNE, "--save-plan", "plan.json"]
    subprocess.run(command, capture_output=True, env={**environment, **own}, timeout=60, check=True)
    assert [os.listdir(each) for each in own.values()] == [[], []]


@pytest.mark.parametrize(
    ("files", "code", "cause"),
    [
        ({}, 0, "are both installed and overwrite each other"),
        ({"onnxruntime/__init__.py": ""}, 2, "are both installed and overwrite each other"),
        ({"onnxruntime/__init__.py": "", "alone": ""}, 2, "its files are missing"),
    ],
    ids=["it still works", "it does not work", "one was removed"],
)
def test_packages_that_overwrote_each_other(folder: Path, files: dict[str, str], code: int, cause: str) -> None:
    installed = "onnxruntime_gpu" if "alone" in files else "onnxruntime", "onnxruntime_gpu"
    found = {f"{name}-{onnxruntime.__version__}.dist-info": name for name in installed}
    for info, name in found.items():
        files = {**files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {onnxruntime.__version__}\n"}
    for name, content in files.items():
        (folder / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "site" / name).write_text(content)
    paths = os.pathsep.join([str(folder / "site"), *filter(None, sys.path)])
    command = [*START, "verify", "in.onnx", "in.onnx", "--samples", "4"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=60, check=False
    )
    assert done.returncode == code
    assert cause in one_line(done.stderr)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install" in done.stderr


def test_a_model_that_changes_while_it_is_read(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def search_and_append(builder: CandidateBuilder) -> SearchResult:
        with (folder / "in.onnx").open("ab") as file:
            file.write(b" ")
        return search(builder)

    monkeypatch.setattr("onnxmerge.pipeline.compress.search", search_and_append)
    code, _, err = run("compress", "in.onnx", "out.onnx", *PRUNE)
    assert code == 2
    assert "was changed while it was read" in one_line(err)
    assert not (folder / "out.onnx").exists()
