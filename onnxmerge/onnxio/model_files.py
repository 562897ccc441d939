"""Model files: a model is read whole or refused with one line, and written whole or not at all."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from onnxmerge.errors import ModelError, OptionError
from onnxmerge.onnxio import storage
from onnxmerge.onnxio.data_file import DataFile
from onnxmerge.onnxio.export import bare, copy_fields, export, export_with
from onnxmerge.onnxio.model import Model, from_proto
from onnxmerge.onnxio.storage import fits_inside
from onnxmerge.onnxio.tensors import byte_count, is_external, one_line
from onnxmerge.onnxio.validation import PROTOBUF_LIMIT, model_tensors, read


def load(path: str | Path) -> Model:
    """The model of a file, its external weights left where they are. ModelError, one line, for anything else."""
    return from_proto(read(Path(path)), path)


def external_files(model: Model) -> set[Path]:
    """The files beside the model that hold weights of it."""
    return {model.folder / _location(tensor) for tensor in model_tensors(model.proto) if is_external(tensor)}


def weights_beside(path: Path) -> dict[str, Path]:
    """What the files are that hold weights of the model at a path, and where; none where there is no model."""
    try:
        return {f"weights of the model in {each.name}": each for each in external_files(load(path))}
    except ModelError:
        return {}


@contextmanager
def as_file(model: str | Path | ModelProto) -> Iterator[Path]:
    """The path of a model; one in memory is written to a temporary folder, which is removed at the end.

    Parameters
    ----------
    model : str, Path or ModelProto
        A file, which is yielded as it is and not looked at, or a model with its weights in it.

    Raises
    ------
    ModelError
        Where a model in memory refers to external data, since nothing says in which folder that is.
    OptionError
        Where the temporary folder cannot be written.

    Examples
    --------
    >>> with as_file("model.onnx") as path:
    ...     print(path)
    model.onnx
    """
    if not isinstance(model, ModelProto):
        yield Path(model)
        return
    with tempfile.TemporaryDirectory(prefix="onnxmerge-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        try:
            _write_proto(model, path)
        except OSError as error:
            raise OptionError(_no_room(path.parent, error)) from error
        yield path


def _write_proto(proto: ModelProto, path: Path) -> None:
    """A model from memory as a file, with a data file beside it where one message cannot hold it."""
    external = [tensor.name for tensor in model_tensors(proto) if is_external(tensor)]
    if external:
        raise ModelError(
            f"the weights of the model in memory are in other files (initializer '{external[0]}'): give the path of the model,"
            " or load it with its external data"
        )
    if sum(tensor.ByteSize() for tensor in proto.graph.initializer) < storage.EMBED_LIMIT:
        path.write_bytes(proto.SerializeToString())
        return
    outside = ModelProto()
    copy_fields(proto, outside, without={"graph"})
    copy_fields(proto.graph, outside.graph, without={"initializer"})
    with DataFile(path.with_name(f"{path.name}.data"), path.parent) as file:
        outside.graph.initializer.extend(file.place(tensor, tensor.name) for tensor in proto.graph.initializer)
    path.write_bytes(outside.SerializeToString())


class TemporaryModel:
    """A model that one message cannot hold, in a temporary folder that is removed with the last reference to this object.

    Attributes
    ----------
    path : Path
        The file; its weights are in another one beside it.
    """

    def __init__(self, model: Model) -> None:
        folder = Path(tempfile.mkdtemp(prefix="onnxmerge-"))
        self._removal = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = folder / "model.onnx"
        try:
            _write(model, self.path, folder / "model.onnx.data")
        except OSError as error:
            raise OptionError(_no_room(folder, error)) from error


def serialise(model: Model) -> bytes | TemporaryModel:
    """The edited model, to be opened: in memory, or from 2 GB on in a temporary folder.

    Raises
    ------
    OptionError
        Where the temporary folder cannot be written.
    """
    return export(model).SerializeToString() if fits_inside(model) else TemporaryModel(model)


def stored_bytes(model: bytes | Path | TemporaryModel) -> int:
    """Size of a model in bytes: of its file, and of its weights in other files."""
    if isinstance(model, bytes):
        return len(model)
    path = model if isinstance(model, Path) else model.path
    return path.stat().st_size + external_bytes(onnx.load(path, load_external_data=False))


def external_bytes(proto: ModelProto) -> int:
    """Size of the weights that a model has in other files, in bytes."""
    return sum(byte_count(tensor) for tensor in model_tensors(proto) if is_external(tensor))


def _no_room(folder: Path, error: OSError) -> str:
    reason = error.strerror or one_line(error)
    return f"a model cannot be written into the temporary folder {folder.parent}: {reason}; TMPDIR names another one"


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
    if not target.exists() or target.stat().st_size >= PROTOBUF_LIMIT:
        return []
    try:
        old = ModelProto.FromString(target.read_bytes())
    except DecodeError:
        return []
    ours = re.compile(re.escape(target.name) + r"(\.\d+)?\.data")
    names = {_location(tensor) for tensor in model_tensors(old) if is_external(tensor)}
    if model.folder.resolve() == target.parent:
        names -= {_location(tensor) for tensor in model_tensors(model.proto) if is_external(tensor)}
    return [target.parent / name for name in sorted(names) if ours.fullmatch(name) and not _is_named_beside(target, name)]


def _is_named_beside(target: Path, data_name: str) -> bool:
    """Whether another file of the folder, small enough to be a model, holds the name of a data file, or cannot be read."""
    for other in target.parent.iterdir():
        if other in (target, target.parent / data_name) or not other.is_file():
            continue
        try:
            size = other.stat().st_size
            if not 0 < size < PROTOBUF_LIMIT:
                continue
            with other.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(data_name.encode()) >= 0:
                    return True
        except OSError:
            return True
    return False


def _location(tensor: TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
