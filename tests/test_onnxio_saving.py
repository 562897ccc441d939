"""Models are written whole or not at all, with their weights beside them or in them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from stored_models import edit, run

from onnxmerge.errors import OptionError
from onnxmerge.onnxio import model_files as io
from onnxmerge.onnxio import storage as placing
from onnxmerge.onnxio.edits import new_constant
from onnxmerge.onnxio.model_saving import save


def set_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is too large for one file."""
    monkeypatch.setattr(placing, "MESSAGE_LIMIT_BYTES", 10)
    monkeypatch.setattr("onnxmerge.onnxio.storage.SMALL_TENSOR_BYTES", 10)


@pytest.mark.parametrize("source", ["inline", "outside"])
def test_save_beside(source: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch)
    path = request.getfixturevalue(source)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "m.onnx"
    for data in ("m.onnx.data", "m.onnx.1.data", "m.onnx.data"):  # each run replaces the one before, whole
        model = io.load(path)
        model.graph.nodes[1].inputs[1] = new_constant(model, "b", np.array([1, 1, 1], np.float32))
        save(model, target)
        assert sorted(os.listdir(target.parent)) == sorted([data, "m.onnx"])
        tensors = onnx.load(target, load_external_data=False).graph.initializer
        offsets = [int(entry.value) for tensor in tensors for entry in tensor.external_data if entry.key == "offset"]
        assert offsets == [0, 4096]
        assert np.array_equal(run(target), run(path) - np.float32([1, 0, -1]) + 1)


@pytest.mark.parametrize("user", ["a copy", "a file of another kind"])
def test_data_that_another_file_names_stays(inline: Path, user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "m.onnx"
    save(io.load(inline), target)
    other = target.with_name("best.onnx" if user == "a copy" else "best.bin")
    other.write_bytes(target.read_bytes())
    save(io.load(inline), target)
    save(io.load(inline), target)
    assert sorted(os.listdir(target.parent)) == sorted([other.name, "m.onnx", "m.onnx.data", "m.onnx.2.data"])
    if user == "a copy":
        assert np.array_equal(run(other), run(inline))


def test_data_goes_with_the_large_model_that_a_small_one_replaces(
    inline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        set_limits(patch)
        save(io.load(inline), tmp_path / "out" / "m.onnx")
    save(io.load(inline), tmp_path / "out" / "m.onnx")
    assert os.listdir(tmp_path / "out") == ["m.onnx"]


@pytest.mark.parametrize("large", [False, True], ids=["one message", "external data"])
def test_a_model_in_memory_as_file(inline: Path, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        set_limits(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    proto = onnx.load(inline)
    proto.metadata_props.add(key="author", value="us")
    before = proto.SerializeToString()
    with io.as_file(proto) as path:
        assert len(list(path.parent.glob("model.*"))) == (2 if large else 1)
        assert np.array_equal(run(path), run(inline))
        assert onnx.load(path).metadata_props == proto.metadata_props
        assert io.load(path).graph.nodes[0].op == "MatMul"
    assert os.listdir(tmp_path) == ["in.onnx"]
    assert proto.SerializeToString() == before


def test_a_full_temporary_folder_is_one_line(inline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, proto = io.load(inline), onnx.load(inline)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OptionError, match="No space left on device; TMPDIR"), io.as_file(proto):
        pass
    set_limits(monkeypatch)
    with pytest.raises(OptionError, match="No space left on device; TMPDIR"):
        io.serialise(model)


def test_save_over_itself(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch)
    expected = run(outside)
    save(io.load(outside), outside)
    save(io.load(outside), outside)
    assert sorted(os.listdir(outside.parent)) == ["in.onnx", "in.onnx.1.data", "weights"]
    assert np.array_equal(run(outside), expected)


@pytest.mark.parametrize("beside", [False, True], ids=["one file", "data beside"])
@pytest.mark.parametrize("there", [False, True], ids=["new", "over an older one"])
@pytest.mark.parametrize(
    "step", ["os.fsync", "os.replace", "onnx.checker.check_model", "onnxmerge.onnxio.export.infer_value_info"]
)
def test_failure_leaves_nothing(
    inline: Path, step: str, there: bool, beside: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if beside:
        set_limits(monkeypatch)
    folder = tmp_path / "out"
    folder.mkdir()
    if there:
        (folder / "m.onnx").write_text("older")
    model = io.load(inline)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OptionError, match=r"cannot write .*m.onnx: No space left on device"):
        save(model, folder / "m.onnx")
    assert os.listdir(folder) == (["m.onnx"] if there else [])
    assert not there or (folder / "m.onnx").read_text() == "older"


def test_second_rename_fails(inline: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The data file already has its name when the model cannot get its own."""
    set_limits(monkeypatch)
    model, rename, folder = io.load(inline), os.replace, tmp_path / "out"
    folder.mkdir()

    def fail_for_model(source: Path, target: Path) -> None:
        if target.suffix == ".onnx":
            raise OSError("broken")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_for_model)
    with pytest.raises(OptionError, match="broken"):
        save(model, folder / "m.onnx")
    assert os.listdir(folder) == []


def test_invalid_edit_is_not_written(inline: Path, tmp_path: Path) -> None:
    model = io.load(inline)
    model.graph.nodes[0].inputs[1] = new_constant(model, "w", np.zeros((5, 3), np.float32))
    with pytest.raises(onnx.shape_inference.InferenceError):
        save(model, tmp_path / "out.onnx")
    assert os.listdir(tmp_path) == ["in.onnx"]


def test_model_that_was_never_strict_can_be_saved(inline: Path, tmp_path: Path) -> None:
    """A declared output shape that contradicts the nodes: the plain checker and ONNX Runtime accept it, so does saving."""
    edit(inline, lambda proto: setattr(proto.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 7))
    save(io.load(inline), tmp_path / "out.onnx")
    assert np.array_equal(run(tmp_path / "out.onnx"), run(inline))


TARGETS = {
    "directory": ("folder", "a folder"),
    "no such folder": ("nowhere/out.onnx", "does not exist"),
    "a file as folder": ("in.onnx/out.onnx", "does not exist"),
    "not a regular file": ("fifo", "is no regular file"),
}


@pytest.mark.parametrize("case", TARGETS)
def test_target_refused(inline: Path, tmp_path: Path, case: str) -> None:
    name, message = TARGETS[case]
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OptionError) as caught:
        save(io.load(inline), tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_same_bytes_every_time_and_through_links(inline: Path, tmp_path: Path) -> None:
    first, link = tmp_path / "first.onnx", tmp_path / "link.onnx"
    save(io.load(inline), first)
    link.symlink_to(first)
    save(io.load(inline), link)
    assert link.is_symlink()
    assert first.read_bytes() == io.serialise(io.load(inline))
