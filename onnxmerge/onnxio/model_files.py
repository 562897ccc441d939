"""Model files: read and checked, sized, and written to temporary folders. `saving` writes the output."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx import ModelProto

from onnxmerge.errors import ModelError, OnnxMergeError
from onnxmerge.onnxio import storage
from onnxmerge.onnxio.export import export, export_with
from onnxmerge.onnxio.external_data import ExternalDataWriter, external_bytes, external_locations, is_external
from onnxmerge.onnxio.mapped_files import no_room
from onnxmerge.onnxio.model import Model, from_proto
from onnxmerge.onnxio.storage import fits_one_message, stored_apart, stored_beside
from onnxmerge.onnxio.traversal import stored_tensors
from onnxmerge.onnxio.validation import read_checked
from onnxmerge.onnxio.wire_format import Content, copy_fields, read_model, write_model_to
from onnxmerge.onnxio.work_folder import WorkFolder


def load(path: str | Path) -> Model:
    """The model of a file, checked, its external weights left where they are.

    Raises
    ------
    ModelError
        For anything else than a valid ONNX model; one line that says what was found.
    """
    return from_proto(read_checked(Path(path)), path)


def external_files(model: Model) -> set[Path]:
    """The files beside the model that hold weights of it."""
    return {model.folder / location for location in external_locations(model.proto)} - {model.path}


def weight_files(path: Path) -> dict[str, Path]:
    """The files beside a model that hold weights of it, by a description for messages; none where there is no valid model."""
    try:
        return {f"weights of the model in {file.name}": file for file in external_files(load(path))}
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
    with _temporary_folder() as folder:
        path = folder.path / "model.onnx"
        try:
            _write_proto(model, path)
        except OSError as error:
            raise no_room(error) from error
        try:
            yield path
        except OnnxMergeError as error:  # nobody has seen the temporary file
            raise type(error)(str(error).replace(str(path), model_name(model))) from error


def model_name(model: str | Path | ModelProto) -> str:
    """What results and messages call a model: its path, or "ModelProto main_graph" by the name of its graph."""
    return f"ModelProto {model.graph.name}".rstrip() if isinstance(model, ModelProto) else str(model)


def _write_proto(proto: ModelProto, path: Path) -> None:
    """A model from memory as a file, with a data file beside it where one message cannot hold it."""
    external = [tensor.name for tensor in stored_tensors(proto) if is_external(tensor)]
    if external:
        raise ModelError(
            f"the weights of the model in memory are in other files (initializer '{external[0]}'): give the path of the model,"
            " or load it with its external data"
        )
    if sum(tensor.ByteSize() for tensor in proto.graph.initializer) < storage.MESSAGE_LIMIT_BYTES:
        path.write_bytes(proto.SerializeToString())
        return
    outside = ModelProto()
    copy_fields(proto, outside, without={"graph"})
    copy_fields(proto.graph, outside.graph, without={"initializer"})
    with ExternalDataWriter(path.with_name(f"{path.name}.data")) as writer:
        to_tensor = stored_beside(writer, path.parent)
        outside.graph.initializer.extend(to_tensor(tensor, tensor.name) for tensor in proto.graph.initializer)
    path.write_bytes(outside.SerializeToString())


class TemporaryModel:
    """A model in a temporary folder that is removed with the last reference to this object.

    Attributes
    ----------
    path : Path
        The file; its weights are in another one beside it.
    """

    def __init__(self, model: Model) -> None:
        self._folder = _temporary_folder()
        self.path = self._folder.path / "model.onnx"
        try:
            write_model(model, self.path, self._folder.path / "model.onnx.data")
        except OSError as error:
            raise no_room(error) from error


def write_model(model: Model, path: Path, data: Path | None) -> None:
    """Write the edited model durably, its weights into `data` beside it, or into the same file where that is None.

    Raises
    ------
    OSError
        Where the system refuses.
    """
    contents: dict[str, Content] = {}
    if data is None:
        proto = export_with(model, stored_apart(contents, model))
    else:
        with ExternalDataWriter(data) as writer:
            proto = export_with(model, stored_beside(writer, model.folder))
    with path.open("wb") as stream:
        write_model_to(stream, proto, contents)
        stream.flush()
        os.fsync(stream.fileno())


def serialise(model: Model) -> bytes | TemporaryModel:
    """The edited model, to be opened: in memory where it is small, else in a temporary folder.

    Raises
    ------
    OptionError
        Where the temporary folder cannot be written.
    """
    return export(model).SerializeToString() if fits_one_message(model, for_trial=True) else TemporaryModel(model)


def stored_bytes(model: bytes | Path | TemporaryModel, proto: ModelProto | None = None) -> int:
    """Size of a model in bytes: of its file, and of its weights in other files; proto: what the file holds, if at hand."""
    if isinstance(model, bytes):
        return len(model)
    path = model if isinstance(model, Path) else model.path
    return path.stat().st_size + external_bytes(read_model(path) if proto is None else proto, path)


def _temporary_folder() -> WorkFolder:
    try:
        return WorkFolder()
    except OSError as error:
        raise no_room(error) from error
