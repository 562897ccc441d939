"""Writing a model whole or not at all, with external data where one message cannot hold its weights."""

from __future__ import annotations

import os
import re
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
from onnxmerge.onnxio.side_files import check_output_file
from onnxmerge.onnxio.storage import fits_one_message
from onnxmerge.onnxio.validation import PROTOBUF_LIMIT_BYTES, stand_in
from onnxmerge.onnxio.wire_format import is_large, read_model
from onnxmerge.onnxio.work_folder import WorkFolder, taking_turns


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
    check_output_file(Path(path), "the output", {})
    target = Path(os.path.realpath(path))
    try:
        with WorkFolder(target.parent) as folder:
            draft = folder.path / target.name
            data = None if fits_one_message(model) else folder.reserve(target.name)
            data_draft = None if data is None else folder.path / data.name
            write_model(model, draft, data_draft)
            _check(model, draft)
            with taking_turns(target.parent):
                if data is not None and data_draft is not None:
                    folder.publish(data_draft, data, target)
                folder.disown(_data_of(target))
                folder.publish(draft, target)
                folder.remove()
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror or one_line(error)}") from error


@nothing_on_stdout()
def _check(model: Model, draft: Path) -> None:
    """Run ONNX's checker with strict shape inference. What is found is a bug here, unless the model as read is to blame.

    So it is where it does not pass itself, or where it declares shapes of its outputs that it does not compute, which shows only
    when sizes that it had computed have become constants.
    """
    checked = stand_in(read_model(draft), is_large(draft))
    try:
        onnx.checker.check_model(checked or str(draft), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        original, undeclared = (export_without_weights(each) for each in (from_proto(model.proto, model.path), model))
        for output in undeclared.graph.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")
        if _passes(original) and not _passes(undeclared):
            raise
        onnx.checker.check_model(checked or str(draft))


def _passes(proto: ModelProto) -> bool:
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def _data_of(target: Path) -> list[str]:
    """The data files of the model that a file holds, where their names are among those that this program gives."""
    if not target.exists() or target.stat().st_size >= PROTOBUF_LIMIT_BYTES:
        return []
    try:
        locations = external_locations(read_model(target))
    except DecodeError:
        return []
    return [name for name in locations if re.fullmatch(re.escape(target.name) + r"(\.\d+)?\.data", name)]
