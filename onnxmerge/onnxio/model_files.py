"""Files: a model is read whole or refused with one line, and written whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from onnxmerge.errors import ModelError, OptionError
from onnxmerge.onnxio.data_file import DataFile
from onnxmerge.onnxio.export import bare, export, export_with
from onnxmerge.onnxio.model import Model, from_proto, graphs
from onnxmerge.onnxio.storage import fits_inside, weight_bytes
from onnxmerge.onnxio.tensors import is_external, one_line
from onnxmerge.onnxio.validation import read


def load(path: str | Path) -> Model:
    """The model of a file, its external weights left where they are. ModelError, one line, for anything else."""
    return from_proto(read(Path(path)), path)


def external_files(model: Model) -> set[Path]:
    """The files beside the model that hold weights of it."""
    tensors = [tensor for graph in graphs(model.proto.graph) for tensor in graph.initializer]
    tensors += [a.t for graph in graphs(model.proto.graph) for node in graph.node for a in node.attribute if a.HasField("t")]
    locations = [
        entry.value for tensor in tensors if is_external(tensor) for entry in tensor.external_data if entry.key == "location"
    ]
    return {model.folder / location for location in locations}


def weights_beside(path: Path) -> dict[str, Path]:
    """What the files are that hold weights of the model at a path, and where; none where there is no model."""
    try:
        return {f"weights of the model in {each.name}": each for each in external_files(load(path))}
    except ModelError:
        return {}


def serialise(model: Model | ModelProto) -> bytes:
    """The model as one protobuf message; ModelError from 2 GB on, where only `save` can write it."""
    if isinstance(model, Model) and not fits_inside(model):
        raise ModelError(f"{model.path}: its weights need {weight_bytes(model)} bytes, one message holds less than 2 GB")
    return (export(model) if isinstance(model, Model) else model).SerializeToString()


def save(model: Model, path: str | Path) -> None:
    """Write the edited model: one file, or from 2 GB on also `<name>.data` beside it. Checked before it gets its name.

    The output may be the file the model came from. OptionError when the place cannot be written; what was there then stays.
    """
    target = Path(os.path.realpath(path))
    _check_target(target)
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxmerge-", dir=target.parent) as room:
            draft = Path(room) / target.name
            data = Path(room) / _unused_data_name(target)
            _write(model, draft, data)
            _check(model, draft)
            _publish(model, draft, data, target)
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror or one_line(error)}") from error


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise OptionError(f"cannot write {target}: it is a directory, a file name is needed")
    if target.exists() and not target.is_file():
        raise OptionError(f"cannot write {target}: it is not a regular file")
    if not target.parent.is_dir():
        raise OptionError(f"cannot write {target}: the folder {target.parent} does not exist")


def _unused_data_name(target: Path) -> str:
    """A name beside the output that nothing has yet: the old model and its data stay whole until the new model is in place."""
    number = 0
    name = f"{target.name}.data"
    while os.path.lexists(target.parent / name):
        number += 1
        name = f"{target.name}.{number}.data"
    return name


def _write(model: Model, draft: Path, data: Path) -> None:
    if fits_inside(model):
        content = export(model).SerializeToString()
    else:
        with DataFile(data, model.folder) as file:
            content = export_with(model, file.place).SerializeToString()
    with draft.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _check(model: Model, draft: Path) -> None:
    """The checker with shape inference, as strict as the model that was read can bear. What it finds is a bug of ours."""
    try:
        onnx.checker.check_model(str(draft), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        original = bare(from_proto(model.proto, model.path))
        try:
            onnx.shape_inference.infer_shapes(original, check_type=True, strict_mode=True)
        except onnx.shape_inference.InferenceError:
            onnx.checker.check_model(str(draft))
        else:
            raise


def _publish(model: Model, draft: Path, data: Path, target: Path) -> None:
    superseded = _superseded_data(model, target) if data.exists() else []
    published = target.parent / data.name
    try:
        if data.exists():
            os.replace(data, published)
        os.replace(draft, target)
    except BaseException:
        if not data.exists():
            published.unlink(missing_ok=True)
        raise
    for file in superseded:
        file.unlink(missing_ok=True)


def _superseded_data(model: Model, target: Path) -> list[Path]:
    """The data files of an earlier run's output, which nobody reads once it is replaced; never those of the model in hand."""
    if not target.exists():
        return []
    try:
        tensors = ModelProto.FromString(target.read_bytes()).graph.initializer
    except DecodeError:
        return []
    ours = re.compile(re.escape(target.name) + r"(\.\d+)?\.data")
    in_use = {_location(tensor) for tensor in model.proto.graph.initializer} if model.folder.resolve() == target.parent else set()
    return [target.parent / name for name in sorted({*map(_location, tensors)} - in_use) if ours.fullmatch(name)]


def _location(tensor: TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
