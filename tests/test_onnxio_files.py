"""Files: what is refused and how it is said, that writing is all or nothing, and weights in files beside the model."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, parser
from onnx.external_data_helper import convert_model_to_external_data

from onnxmerge.errors import ModelError, OptionError
from onnxmerge.graph.constant_folding import constant_value
from onnxmerge.onnxio import model_files as io
from onnxmerge.onnxio import storage as placing
from onnxmerge.onnxio.edits import new_constant
from onnxmerge.onnxio.model_saving import save

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
example (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] b = {1, 0, -1}>
{
  hidden = MatMul(x, w)
  y = Add(hidden, b)
}"""


@pytest.fixture
def inline(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    onnx.save(parser.parse_model(TEXT), path)
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A model whose weights (as raw bytes) are in a subfolder."""
    (tmp_path / "weights").mkdir()
    path = tmp_path / "in.onnx"
    proto = parser.parse_model(TEXT)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    convert_model_to_external_data(proto, location="weights/w.bin", size_threshold=0)
    onnx.save(proto, path)
    return path


def run(path: Path | bytes) -> np.ndarray:
    content = str(path) if isinstance(path, Path) else path
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.arange(8, dtype=np.float32).reshape(2, 4)})[0]


def edit(path: Path, change: Callable[[ModelProto], object]) -> None:
    proto = onnx.load(path, load_external_data=False)
    change(proto)
    path.write_bytes(proto.SerializeToString())


def set_entry(key: str, value: str | None) -> Callable[[Path], None]:
    """Another value for an entry of the first initializer's external data."""

    def change(proto: ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        kept = [(entry.key, entry.value) for entry in tensor.external_data if entry.key != key]
        del tensor.external_data[:]
        for name, content in kept + ([(key, value)] if value is not None else []):
            tensor.external_data.add(key=name, value=content)

    return lambda path: edit(path, change)


def make_link(path: Path) -> None:
    data = path.parent / "weights" / "w.bin"
    data.rename(path.parent / "blob")
    data.symlink_to(path.parent / "blob")


def resize(path: Path, size: int) -> None:
    os.truncate(path, size)


def duplicate(proto: ModelProto) -> None:
    proto.graph.initializer.append(proto.graph.initializer[0])


def hide(proto: ModelProto) -> None:
    """A body of an If with an initializer named like one outside."""
    body = parser.parse_graph("branch () => (float[3] z) <float[3] b = {0, 0, 0}> { z = Identity(b) }")
    condition = onnx.numpy_helper.from_array(np.array(True), "condition")
    proto.graph.initializer.append(condition)
    node = onnx.helper.make_node("If", ["condition"], ["z_out"], then_branch=body, else_branch=body)
    proto.graph.node.insert(0, node)


SHORT = TensorProto(name="b", dims=[3], data_type=TensorProto.FLOAT, raw_data=b"1234")

INLINE = {
    "missing": (lambda path: path.unlink(), "does not exist"),
    "directory": (lambda path: (path.unlink(), path.mkdir()), "is a directory"),
    "fifo": (lambda path: (path.unlink(), os.mkfifo(path)), "not a regular file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("not a model"), "cannot be parsed"),
    "zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(60)), "cannot be parsed"),
    "format of ONNX Runtime": (lambda path: path.write_bytes(b"\x18\0\0\0ORTM" + bytes(60)), "ONNX Runtime's own format"),
    "cut off": (lambda path: resize(path, path.stat().st_size - 20), "cannot be parsed"),
    "no graph": (lambda path: edit(path, lambda proto: proto.ClearField("graph")), "holds no graph"),
    "no nodes": (lambda path: edit(path, lambda proto: proto.graph.ClearField("node")), "no nodes"),
    "IR too new": (lambda path: edit(path, lambda proto: setattr(proto, "ir_version", 99)), "IR version is 99"),
    "no IR": (lambda path: edit(path, lambda proto: proto.ClearField("ir_version")), "IR version is 0"),
    "opset too new": (lambda path: edit(path, lambda proto: setattr(proto.opset_import[0], "version", 999)), "opset is 999"),
    "unknown operator": (lambda path: edit(path, lambda proto: setattr(proto.graph.node[0], "op_type", "Foo")), "not a valid"),
    "not sorted": (lambda path: edit(path, lambda proto: proto.graph.node.reverse()), "not a valid ONNX model"),
    "too few values": (lambda path: edit(path, lambda proto: proto.graph.initializer[0].dims.append(9)), "what its shape needs"),
    "too few bytes": (lambda path: edit(path, lambda proto: proto.graph.initializer[1].CopyFrom(SHORT)), "holds 4 bytes"),
    "negative size": (lambda path: edit(path, lambda proto: proto.graph.initializer[1].dims.__setitem__(0, -3)), "negative size"),
    "name twice": (lambda path: edit(path, duplicate), "'w' occurs twice"),
    "name hidden": (lambda path: edit(path, hide), "'b' hides a tensor"),
}  # fmt: skip

OUTSIDE = {
    "data missing": (lambda path: (path.parent / "weights" / "w.bin").unlink(), "does not exist"),
    "data cut off": (lambda path: resize(path.parent / "weights" / "w.bin", 50), "has 50"),
    "data linked": (make_link, "Hugging Face"),
    "offset past the end": (set_entry("offset", "1000000"), "offset 1000000"),
    "offset negative": (set_entry("offset", "-8"), "offset -8"),
    "offset no number": (set_entry("offset", "zero"), "no number"),
    "length too long": (set_entry("length", "4000000000"), "declared are 4000000000"),
    "length too short": (set_entry("length", "4"), "declared are 4 "),
    "upwards": (set_entry("location", "../w.bin"), "not a relative path"),
    "absolute": (set_entry("location", "/etc/passwd"), "not a relative path"),
    "no location": (set_entry("location", None), "not a relative path"),
    "location is a folder": (set_entry("location", "weights"), "does not exist"),
}


@pytest.mark.parametrize("case", INLINE)
def test_refused(inline: Path, case: str) -> None:
    spoil, message = INLINE[case]
    spoil(inline)
    check_refusal(inline, message)


@pytest.mark.parametrize("case", OUTSIDE)
def test_refused_external(outside: Path, case: str) -> None:
    spoil, message = OUTSIDE[case]
    spoil(outside)
    check_refusal(outside, message)


def check_refusal(path: Path, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        io.load(path)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert str(path) in text


def test_in_order_these_would_load(inline: Path, outside: Path) -> None:
    assert [node.op for node in io.load(inline).graph.nodes] == ["MatMul", "Add"]
    assert [node.op for node in io.load(outside).graph.nodes] == ["MatMul", "Add"]


def test_external_weights_are_mapped_and_embedded(outside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(outside.parent)
    model = io.load("in.onnx")
    monkeypatch.chdir("/")
    assert all(not tensor.raw_data for tensor in model.proto.graph.initializer)
    weight = constant_value(model, model.graph.nodes[0].inputs[1])
    assert weight.tolist() == np.arange(1, 13).reshape(4, 3).tolist()
    assert isinstance(origin(weight), mmap.mmap)
    assert not weight.flags.writeable
    expected = run(outside)
    assert np.array_equal(run(io.serialise(model)), expected)
    (tmp_path / "elsewhere").mkdir()
    save(model, tmp_path / "elsewhere" / "out.onnx")
    assert os.listdir(tmp_path / "elsewhere") == ["out.onnx"]
    assert np.array_equal(run(tmp_path / "elsewhere" / "out.onnx"), expected)


def origin(array: np.ndarray) -> object:
    """What the array's memory belongs to."""
    owner: object = array
    while getattr(owner, "base", None) is not None:
        owner = owner.base
    return owner.obj if isinstance(owner, memoryview) else owner


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


def test_a_path_is_a_file_already(tmp_path: Path) -> None:
    with io.as_file(str(tmp_path / "missing.onnx")) as path:
        assert path == tmp_path / "missing.onnx"


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


def test_a_model_in_memory_without_its_weights_is_refused(outside: Path) -> None:
    proto = onnx.load(outside, load_external_data=False)
    with pytest.raises(ModelError, match="give the path of the model"), io.as_file(proto):
        pass


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


@pytest.mark.parametrize(("source", "outside_bytes"), [("inline", 0), ("outside", 4 * (12 + 3))])
def test_sizes_count_external_data(source: str, outside_bytes: int, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(source)
    assert io.stored_bytes(path) == path.stat().st_size + outside_bytes
    assert io.stored_bytes(path.read_bytes()) == path.stat().st_size


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
