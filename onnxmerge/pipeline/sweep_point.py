"""One point of a sweep, made in any process on any machine: the same bytes everywhere."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from onnxmerge.errors import ModelError, OnnxMergeError, VerificationError
from onnxmerge.pipeline.compress import compress_file
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.results import Compression


@dataclass(frozen=True)
class Task:
    """What a worker needs, paths absolute.

    content: the bytes of the model, None where it has weights in other files: `source` is then read and `target` written by the
    worker. options: with the target and the number of threads. room: the submitter's temporary folder, used where it is there.
    """

    source: Path
    content: bytes | None
    target: Path
    options: CompressOptions
    room: Path


@dataclass(frozen=True)
class Made:
    """What became of it: the compression and the bytes of the model (None where the worker wrote it), or why there is none."""

    result: Compression | None
    content: bytes | None = None
    error: str = ""


def make(task: Task) -> Made:
    """Compress. What a user can act on elsewhere than at this target is raised."""
    return _in_place(task) if task.content is None else _in_memory(task, task.content)


def _in_place(task: Task) -> Made:
    try:
        return Made(compress_file(task.source, task.target, task.options))
    except (ModelError, VerificationError) as error:
        return Made(None, error=str(error))


def _in_memory(task: Task, content: bytes) -> Made:
    with tempfile.TemporaryDirectory(prefix="onnxmerge-", dir=task.room if task.room.is_dir() else None) as folder:
        source, target = Path(folder) / "before" / task.source.name, Path(folder) / "after" / task.target.name
        source.parent.mkdir()
        target.parent.mkdir()
        source.write_bytes(content)
        try:
            made = _in_place(replace(task, source=source, target=target))
        except OnnxMergeError as error:
            raise type(error)(str(error).replace(str(source), str(task.source))) from None
        if made.result is None:
            return replace(made, error=made.error.replace(str(source), str(task.source)))
        return replace(made, content=target.read_bytes())
