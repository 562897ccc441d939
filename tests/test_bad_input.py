"""Bad input through the command line: exit code 2, one line that says what to do, no traceback, nothing written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from running import built
from topologies import TOPOLOGIES
from topologies.net import Net

from onnxmerge.cli.app import main
from onnxmerge.execution.gpu_detection import CUDA_NAME, find_problem

GOOD = built(TOPOLOGIES["conv-relu-conv"]).SerializeToString()


def weightless() -> onnx.ModelProto:
    net = Net(np.random.default_rng(0))
    net.output(net.relu(net.input("x", 3)), 3)
    return net.model()


def pinned() -> onnx.ModelProto:
    """One layer, which writes the graph output."""
    net = Net(np.random.default_rng(0))
    net.output(net.gemm(net.input("x", 3), "only", 3, 4), 4)
    return net.model()


def external(folder: Path) -> bytes:
    """Weights in a file beside it that is not there."""
    model = onnx.ModelProto.FromString(GOOD)
    onnx.save(model, folder / "apart.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (folder / "weights.bin").unlink()
    return (folder / "apart.onnx").read_bytes()


def renamed(old: str, new: str) -> bytes:
    """A node input that nothing writes."""
    model = onnx.ModelProto.FromString(GOOD)
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    return model.SerializeToString()


def wrong_shape() -> bytes:
    """The second convolution reads eight channels and has weights for seven."""
    model = onnx.ModelProto.FromString(GOOD)
    for tensor in model.graph.initializer:
        if tensor.name == "out_w":
            values = onnx.numpy_helper.to_array(tensor)[:, :7]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    return model.SerializeToString()


# What the file holds, and words that the line must have.
FILES: dict[str, tuple[Callable[[Path], bytes], tuple[str, ...]]] = {
    "not-a-protobuf": (lambda folder: b"hello, this is no model\n", ("not an ONNX model",)),
    "truncated": (lambda folder: GOOD[:-100], ("cut off",)),
    "truncated-early": (lambda folder: GOOD[:40], ("model.onnx",)),
    "empty": (lambda folder: b"", ("empty",)),
    "another-protobuf": (
        lambda folder: helper.make_tensor("x", TensorProto.FLOAT, [1], [0.0]).SerializeToString(),
        ("model.onnx",),
    ),
    "no-weights": (lambda folder: weightless().SerializeToString(), ("nothing can be removed", "no Conv")),
    "nothing-removable": (lambda folder: pinned().SerializeToString(), ("nothing can be removed", "only", "graph output")),
    "unknown-operator": (
        lambda folder: built(TOPOLOGIES["unknown-custom-operator"]).SerializeToString(),
        ("Mystery", "ONNX Runtime"),
    ),
    "missing-external-data": (external, ("weights.bin", "does not exist")),
    "dangling-input": (lambda folder: renamed("conv_a_w", "nowhere"), ("nowhere",)),
    "contradicting-shapes": (lambda folder: wrong_shape(), ("out",)),
}

OPTIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "ratio-1": (["--ratio", "1"], ("--ratio", "below 1")),
    "ratio-negative": (["--ratio", "-0.1"], ("--ratio", "-0.1")),
    "ratio-nan": (["--ratio", "nan"], ("--ratio", "nan")),
    "ratio-a-word": (["--ratio", "half"], ("--ratio", "half")),
    "threshold-nan": (["--threshold", "nan"], ("--threshold",)),
    "method-unknown": (["--method", "magic"], ("--method", "magic")),
    "criterion-unknown": (["--criterion", "best"], ("--criterion", "best")),
    "include-nothing": (["--include", "zz*"], ("zz*", "inspect")),
    "exclude-nothing": (["--exclude", "zz*"], ("zz*", "inspect")),
    "option-unknown": (["--rato", "0.3"], ("--rato",)),
    "calibration-missing": (["--ratio", "0.3", "--calibration", "nothere.npz"], ("nothere.npz",)),
    "calibration-corrupt": (["--ratio", "0.3", "--calibration", "corrupt.npz"], ("corrupt.npz",)),
    "calibration-truncated": (["--ratio", "0.3", "--calibration", "cut.npy"], ("cut.npy",)),
    "calibration-of-wrong-shape": (
        ["--ratio", "0.3", "--calibration", "wrong.npz"],
        ("wrong.npz", "(N, 3, 8, 8)", "(20, 5)"),
    ),
    "calibration-with-nan": (["--ratio", "0.3", "--calibration", "nan.npy"], ("nan.npy",)),
    "calibration-empty-folder": (["--ratio", "0.3", "--calibration", "nothing"], ("nothing",)),
}


def inputs(folder: Path) -> None:
    """The files that the options above name."""
    (folder / "corrupt.npz").write_bytes(b"PK\x03\x04 no zip file")
    np.save(folder / "whole.npy", np.zeros((20, 3, 8, 8), np.float32))
    (folder / "cut.npy").write_bytes((folder / "whole.npy").read_bytes()[:500])
    np.savez(folder / "wrong.npz", x=np.zeros((20, 5), np.float32))
    np.save(folder / "nan.npy", np.full((20, 3, 8, 8), np.nan, np.float32))
    (folder / "nothing").mkdir()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a call that must fail with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("onnxmerge: ")
    assert "Traceback" not in lines[0]
    return lines[0]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (name, command)
        for name, (_, words) in FILES.items()
        for command in ("compress", "inspect", "verify", "bench")
        if command == "compress" or "nothing can be removed" not in words  # which is no error of the others
    ],
)
def test_a_bad_model(name: str, command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words = FILES[name]
    (folder / "model.onnx").write_bytes(make(folder))
    (folder / "good.onnx").write_bytes(GOOD)
    before = everything(folder)
    others = {"compress": ["out.onnx", "--ratio", "0.3", "--method", "prune"], "verify": ["good.onnx"], "bench": ["good.onnx"]}
    line = refused([command, "model.onnx", *others.get(command, [])], capsys)
    told = words if command in ("compress", "inspect") else ("model.onnx",)  # else ONNX Runtime says it in its own words
    assert all(word in line for word in told), line
    assert everything(folder) == before


@pytest.mark.parametrize("name", OPTIONS)
def test_a_bad_option(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = OPTIONS[name]
    (folder / "model.onnx").write_bytes(GOOD)
    inputs(folder)
    before = everything(folder)
    line = refused(["compress", "model.onnx", "out.onnx", *arguments], capsys)
    assert all(word in line for word in words), line
    assert everything(folder) == before


@pytest.mark.parametrize(
    ("model", "output", "words"),
    [
        ("missing.onnx", "out.onnx", ("missing.onnx", "does not exist")),
        ("somewhere", "out.onnx", ("somewhere", "directory")),
        ("model.onnx", "nowhere/out.onnx", ("nowhere", "does not exist")),
        ("model.onnx", "somewhere", ("somewhere", "folder")),
        ("model.onnx", "model.onnx/out.onnx", ("model.onnx",)),
    ],
)
def test_a_bad_place(model: str, output: str, words: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.onnx").write_bytes(GOOD)
    (folder / "somewhere").mkdir()
    before = everything(folder)
    line = refused(["compress", model, output, "--ratio", "0.3", "--method", "prune"], capsys)
    assert all(word in line for word in words), line
    assert everything(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.onnx").write_bytes(GOOD)
    (folder / "locked").mkdir(mode=0o500)
    assert "locked" in refused(["compress", "model.onnx", "locked/out.onnx", "--ratio", "0.3", "--no-verify"], capsys)


def test_a_failed_run_leaves_the_old_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.onnx").write_bytes(pinned().SerializeToString())
    (folder / "out.onnx").write_bytes(b"an earlier result")
    refused(["compress", "model.onnx", "out.onnx", "--ratio", "0.3"], capsys)
    assert (folder / "out.onnx").read_bytes() == b"an earlier result"


@pytest.mark.skipif(find_problem(CUDA_NAME) is None, reason="CUDA works here")
def test_cuda_without_a_gpu(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.onnx").write_bytes(GOOD)
    line = refused(["compress", "model.onnx", "out.onnx", "--ratio", "0.3", "--provider", "cuda"], capsys)
    assert "cuda" in line
    assert "--provider cpu" in line
    assert not (folder / "out.onnx").exists()


def test_inspect_of_a_model_without_weights_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.onnx").write_bytes(weightless().SerializeToString())
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", "model.onnx"])
    assert not stopped.value.code
    assert "No channel group can be compressed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compress", "cut.onnx", "out.onnx"], ("cut.onnx", "cut off")),
        (["compress", "model.onnx", "out.onnx", "--ratio", "1"], ("--ratio",)),
        (["inspect"], ("MODEL", "--help")),
    ],
)
def test_as_a_process_of_its_own(arguments: list[str], words: tuple[str, ...], folder: Path) -> None:
    """What ONNX Runtime's C++ writes to stderr on its own counts here."""
    (folder / "model.onnx").write_bytes(GOOD)
    (folder / "cut.onnx").write_bytes(GOOD[:-100])
    done = subprocess.run(
        [sys.executable, "-m", "onnxmerge", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["cut.onnx", "model.onnx"]
