"""One point of a sweep, compressed in any process on any machine: the same bytes on every processor of a kind."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxmerge.errors import ModelError, OnnxMergeError, VerificationError
from onnxmerge.onnxio.work_folder import WorkFolder
from onnxmerge.pipeline.compress import compress_file
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.model_measurements import SharedWork
from onnxmerge.pipeline.time_limit import TimeLimit
from onnxmerge.results import Compression


@dataclass(frozen=True)
class PointTask:
    """What a worker needs, paths absolute.

    Attributes
    ----------
    model : Path
        The model's file.
    content : bytes or None
        Its bytes; None where it has weights in other files, which the worker then reads at `model`.
    output : Path
        Where the worker writes the smaller model if there is no content.
    options : CompressOptions
        With the target and the number of threads.
    temporary_folder : Path
        Of the process that sends the task, used where the worker sees it.
    limit : TimeLimit
        Of the whole sweep.
    is_first : bool
        Whether the point is begun however little time is left.
    """

    model: Path
    content: bytes | None
    output: Path
    options: CompressOptions
    temporary_folder: Path
    limit: TimeLimit = field(default_factory=TimeLimit)
    is_first: bool = True


@dataclass(frozen=True)
class PointOutcome:
    """What became of a task.

    Attributes
    ----------
    result : Compression or None
        The compression; None where it failed.
    content : bytes or None
        Bytes of the smaller model; None where the worker wrote it.
    failure : str
        Why there is no result.
    """

    result: Compression | None
    content: bytes | None = None
    failure: str = ""


def compress_point(task: PointTask, shared: SharedWork | None = None) -> PointOutcome:
    """Compress. An error that is not only this target's is raised.

    Parameters
    ----------
    task : PointTask
        What to compress.
    shared : SharedWork or None
        What the points share, in the process of the sweep, where the output is written at once.
    """
    if not task.is_first and task.limit.is_over(0.0):
        return PointOutcome(None, failure=f"not begun: the time limit of {task.limit.seconds:g} s had run out")
    if task.content is None or shared is not None:
        return _compress_in_place(task, shared)
    folder = task.temporary_folder if task.temporary_folder.is_dir() else None
    with WorkFolder(folder) as own:
        model, output = own.path / "before" / task.model.name, own.path / "after" / task.output.name
        model.parent.mkdir()
        output.parent.mkdir()
        model.write_bytes(task.content)
        try:
            outcome = _compress_in_place(replace(task, model=model, output=output))
        except OnnxMergeError as error:
            raise type(error)(str(error).replace(str(model), str(task.model))) from None
        if outcome.result is None:
            return replace(outcome, failure=outcome.failure.replace(str(model), str(task.model)))
        return replace(outcome, content=output.read_bytes())


def _compress_in_place(task: PointTask, shared: SharedWork | None = None) -> PointOutcome:
    try:
        return PointOutcome(compress_file(task.model, task.output, task.options, shared=shared, limit=task.limit))
    except VerificationError as error:  # its cures are those of `compress`
        missed = error.result.failures if isinstance(error.result, Compression) else ()
        return PointOutcome(None, failure="; ".join(missed) or str(error))
    except ModelError as error:
        return PointOutcome(None, failure=str(error))
