"""Files: what is refused and how it is said, that writing is all or nothing, and weights in files beside the model."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, parser
from stored_models import edit, run

from onnxmerge.errors import ModelError
from onnxmerge.graph.constant_folding import constant_value
from onnxmerge.onnxio import model_files as io
from onnxmerge.onnxio.model_saving import save


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


def test_a_path_is_a_file_already(tmp_path: Path) -> None:
    with io.as_file(str(tmp_path / "missing.onnx")) as path:
        assert path == tmp_path / "missing.onnx"


def test_a_model_in_memory_without_its_weights_is_refused(outside: Path) -> None:
    proto = onnx.load(outside, load_external_data=False)
    with pytest.raises(ModelError, match="give the path of the model"), io.as_file(proto):
        pass


@pytest.mark.parametrize(("source", "outside_bytes"), [("inline", 0), ("outside", 4 * (12 + 3))])
def test_sizes_count_external_data(source: str, outside_bytes: int, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(source)
    assert io.stored_bytes(path) == path.stat().st_size + outside_bytes
    assert io.stored_bytes(path.read_bytes()) == path.stat().st_size
