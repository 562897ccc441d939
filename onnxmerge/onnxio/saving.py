"""Writing a model whole or not at all, with external data where one message cannot hold its weights."""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from onnxmerge.errors import OptionError, one_line
from onnxmerge.onnxio.export import export_without_weights
from onnxmerge.onnxio.external_data import external_locations
from onnxmerge.onnxio.model import Model, from_proto
from onnxmerge.onnxio.model_files import write_model
from onnxmerge.onnxio.quiet import nothing_on_stdout
from onnxmerge.onnxio.validation import PROTOBUF_LIMIT_BYTES


def save(model: Model, path: str | Path) -> None:
    """Write the edited model, and check it before it gets its name.

    It is one file; from 2 GB on `<name>.data` beside it holds the weights.

    Parameters
    ----------
    model : Model
        The model; not changed.
    path : str or Path
        The output, which may be the file that the model came from. A link is followed.

    Raises
    ------
    OptionError
        Where the output cannot be written; what was there before stays.
    """
    target = Path(os.path.realpath(path))
    _check_target(target)
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxmerge-", dir=target.parent) as folder:
            draft = Path(folder) / target.name
            data = Path(folder) / _unused_data_name(target)
            write_model(model, draft, data)
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
    """A name beside the output that no file has yet: the old model and its data stay whole until the new model is in place."""
    number = 0
    name = f"{target.name}.data"
    while os.path.lexists(target.parent / name):
        number += 1
        name = f"{target.name}.{number}.data"
    return name


@nothing_on_stdout()
def _check(model: Model, draft: Path) -> None:
    """Run ONNX's checker with strict shape inference, unless the model as read does not pass it. What is found is a bug here."""
    try:
        onnx.checker.check_model(str(draft), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        original = export_without_weights(from_proto(model.proto, model.path))
        try:
            onnx.shape_inference.infer_shapes(original, check_type=True, strict_mode=True)
        except onnx.shape_inference.InferenceError:
            onnx.checker.check_model(str(draft))
        else:
            raise


def _publish(model: Model, draft: Path, data: Path, target: Path) -> None:
    """Move the files to their place, the weights first, and delete the weights of the model that is replaced."""
    superseded = _superseded_data(model, target)
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
    """The data files that only the model about to be replaced reads, by the names that this program gives.

    Kept are those that the model in hand still reads, and those that any other file of the folder names: a copy of the old
    model may be among them.
    """
    if not target.exists() or target.stat().st_size >= PROTOBUF_LIMIT_BYTES:
        return []
    try:
        old = ModelProto.FromString(target.read_bytes())
    except DecodeError:
        return []
    ours = re.compile(re.escape(target.name) + r"(\.\d+)?\.data")
    names = external_locations(old)
    if model.folder.resolve() == target.parent:
        names -= external_locations(model.proto)
    return [target.parent / name for name in sorted(names) if ours.fullmatch(name) and not _is_named_beside(target, name)]


def _is_named_beside(target: Path, data_name: str) -> bool:
    """Whether another file of the folder, small enough to be a model, holds the name of a data file, or cannot be read."""
    for other in target.parent.iterdir():
        if other in (target, target.parent / data_name) or not other.is_file():
            continue
        try:
            size = other.stat().st_size
            if not 0 < size < PROTOBUF_LIMIT_BYTES:
                continue
            with other.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(data_name.encode()) >= 0:
                    return True
        except OSError:
            return True
    return False
