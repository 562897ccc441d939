"""`sweep`: a model for each of several targets, and with them the curve of size and speed against fidelity."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from onnxmerge.errors import InputError, OptionError
from onnxmerge.evaluation.benchmark import benchmark
from onnxmerge.execution.providers import provider_of
from onnxmerge.execution.threads import default_threads, fixed_threads
from onnxmerge.execution.versions import versions
from onnxmerge.graph.analysed_model import AnalysedModel, analyse_model
from onnxmerge.onnxio.model_files import external_files
from onnxmerge.onnxio.output_files import check_output_file, write_atomically
from onnxmerge.onnxio.storage import fits_one_message
from onnxmerge.options import DEFAULT_TARGETS, SIZES, Progress, silent
from onnxmerge.options.checks import TARGETS
from onnxmerge.options.keywords import takes
from onnxmerge.parallel.tasks import LostTask, run_tasks
from onnxmerge.pipeline.compress_options import PARTS, CompressOptions
from onnxmerge.pipeline.sweep_point import Made, Task, make
from onnxmerge.pruning.plan import selected
from onnxmerge.results import Fidelity, LatencyComparison, Sweep, SweepPoint

ALONE = ("fidelity", "ratio")  # targets that are options of their own
NEEDED = f"such as macs=0.75,0.5 or params=0.5, of {', '.join((*TARGETS, *ALONE))}"
POINTS_SHARE = 0.8  # of the time; the rest is timing

Target = tuple[str, float]


@takes(*PARTS)
def sweep(
    model: str | Path,
    targets: str | Sequence[str | Target] = DEFAULT_TARGETS,
    *,
    bench: bool = True,
    folder: str | Path | None = None,
    executor: Executor | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Sweep:
    """Compress the model for each target, independently of the others; a target that fails is a point with the reason.

    targets: as the option `target`, also "fidelity=0.95" and "ratio=0.5". folder: where the models are kept. executor: any of
    concurrent.futures, or jobs: so many processes of our own; without either the points are made here, one after the other.
    The points and models are the same bytes in all three; only targets that are found by timing (latency, round_to="auto") and
    latencies, which are measured here when all models are there, differ from run to run.
    Raises what `compress` raises, save where only one target is to blame, and before any work where an option is wrong.
    """
    source, kept = Path(model), None if folder is None else Path(folder)
    if executor is not None and jobs is not None:
        raise OptionError("`jobs` and `executor` both say where the points are made: drop one of the two")
    if jobs is not None and jobs < 1:
        raise OptionError(f"`jobs` must be at least 1, not {jobs}")
    settled = _settled(CompressOptions.from_keywords(options, bench=bench))
    wanted = {_text(target): _for_target(settled, target) for target in targets_of(targets)}
    analysed = analyse_model(source)
    selected(analysed, settled.pruning)
    files = {text: f"{source.stem}-{text.replace('=', '-')}.onnx" for text in wanted}
    if kept is not None:
        _check_folder(kept, files, source, settled)
    progress = progress or silent
    with tempfile.TemporaryDirectory(prefix="onnxmerge-") as room, fixed_threads(settled.runtime.threads):
        place = kept or Path(room)
        tasks = {text: _task(source, place / name, wanted[text], analysed, Path(room)) for text, name in files.items()}
        made = _all(tasks, progress, executor, jobs)
        points = []
        for number, (text, one) in enumerate(made.items()):
            latency = _latency(source, place / files[text], settled, one)
            points.append(_point(text, one, latency, "" if kept is None else str(kept / files[text])))
            progress("timing", POINTS_SHARE + (1.0 - POINTS_SHARE) * (number + 1) / len(made))
    inputs = next((proof.input_description for one in made.values() if (proof := _fidelity(one)) is not None), "")
    return Sweep(str(source), analysed.size, tuple(points), inputs, settled.inputs.seed, versions())


def targets_of(given: str | Sequence[str | Target]) -> tuple[Target, ...]:
    """'macs=0.75,0.5,params=0.5' -> (('macs', 0.75), ('macs', 0.5), ('params', 0.5)). OptionError for anything else."""
    found: list[Target] = []
    for one in given.split(",") if isinstance(given, str) else given:
        kind, share = _read(one, found[-1][0] if found else "") if isinstance(one, str) else one
        if kind not in (*TARGETS, *ALONE) or not isinstance(share, int | float):
            raise OptionError(f"`targets` must be a list {NEEDED}, not {one!r}")
        if (kind, share) in found:
            raise OptionError(f"`targets` has {_text((kind, share))} twice")
        found.append((kind, share))
    if not found:
        raise OptionError(f"`targets` must be a list {NEEDED}, and it is empty")
    return tuple(found)


def _read(text: str, kind: str) -> Target:
    """kind: of the target before, for a number alone."""
    named, equals, value = text.rpartition("=")
    try:
        return (named.strip() if equals else kind), float(value)
    except ValueError:
        raise OptionError(f"`targets` must be a list {NEEDED}, not {text!r}") from None


def _text(target: Target) -> str:
    return f"{target[0]}={target[1]:.12g}"


def _for_target(options: CompressOptions, target: Target) -> CompressOptions:
    kind, share = target
    size: dict[str, Any] = {kind: share} if kind in ALONE else {"target": target}
    return replace(options, pruning=replace(options.pruning, **size))


def _settled(options: CompressOptions) -> CompressOptions:
    """Everything that a worker could see in another way is decided here. OptionError where something speaks against a sweep."""
    given = next((name for name in SIZES if getattr(options.pruning, name) is not None), None)
    if given is not None:
        raise OptionError(f"`{given}` and `targets` both say how small the models become: drop one of the two")
    inputs, runtime = options.inputs, options.runtime
    if inputs.calibration_path is not None and not inputs.calibration_path.exists():
        raise InputError(
            f"{inputs.calibration_path} does not exist: a .npz or .npy file, or a folder of images or .npy files, is needed"
        )
    provider = provider_of(runtime).option if runtime.provider == "auto" else runtime.provider
    runtime = replace(runtime, provider=provider, threads=runtime.threads or default_threads())
    return replace(options, inputs=inputs.absolute(), runtime=runtime)


def _check_folder(folder: Path, files: Mapping[str, str], source: Path, options: CompressOptions) -> None:
    """Made where it is missing; OptionError where a model has no place in it."""
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"the folder {folder} for the models is a file; name another one")
    if not folder.resolve().parent.is_dir():
        raise OptionError(f"the folder {folder.resolve().parent} does not exist; create it first")
    folder.mkdir(exist_ok=True)
    for name in files.values():
        check_output_file(
            folder / name, "the model", {"the model": source, "the calibration inputs": options.inputs.calibration_path}
        )


def _task(source: Path, target: Path, options: CompressOptions, analysed: AnalysedModel, room: Path) -> Task:
    content = None if external_files(analysed.model) or not fits_one_message(analysed.model) else source.read_bytes()
    timed = options.bench and options.pruning.is_latency_target  # what was asked for is measured once, with its warnings
    return Task(source.absolute(), content, target.absolute(), replace(options, bench=timed), room)


def _all(
    tasks: Mapping[str, Task], progress: Progress, executor: Executor | None, jobs: int | None
) -> dict[str, Made | LostTask]:
    """In the order of the tasks; models are in their place as soon as they are made, also where the rest is interrupted.

    Tasks that need a clock come last, alone on this machine.
    """
    timed = [text for text, task in tasks.items() if _needs_clock(task.options)]
    others = [text for text in tasks if text not in timed]
    made: dict[str, Made | LostTask] = {}

    def tell_count() -> None:
        progress(f"{len(made)} of {len(tasks)} points", POINTS_SHARE * len(made) / len(tasks))

    def keep(text: str, one: Made | LostTask) -> None:
        if isinstance(one, Made) and one.content is not None:
            write_atomically(tasks[text].target, "the model", partial(Path.write_bytes, data=one.content))
            one = replace(one, content=None)
        made[text] = one
        tell_count()

    tell_count()
    run_tasks(make, [tasks[text] for text in others], lambda number, one: keep(others[number], one), executor, jobs)
    for text in timed:
        keep(text, make(tasks[text]))
    return {text: made[text] for text in tasks}


def _needs_clock(options: CompressOptions) -> bool:
    return options.pruning.round_to == "auto" or options.pruning.is_latency_target


def _fidelity(made: Made | LostTask) -> Fidelity | None:
    return None if isinstance(made, LostTask) or made.result is None else made.result.fidelity


def _latency(source: Path, file: Path, options: CompressOptions, made: Made | LostTask) -> LatencyComparison | None:
    if not options.bench or isinstance(made, LostTask) or made.result is None:
        return None
    return made.result.latency or benchmark(source, file, options.inputs, options.runtime, (None,)).batches[0]


def _point(text: str, made: Made | LostTask, latency: LatencyComparison | None, file: str) -> SweepPoint:
    if isinstance(made, LostTask) or made.result is None:
        failure = made.reason if isinstance(made, LostTask) else made.error
        return SweepPoint(text, None, None, None, None, {}, (), failure=failure)
    result = made.result
    assert result.fidelity is not None
    worst, here = result.fidelity.worst, versions()
    other = [f"{name} {version}" for name, version in result.versions.items() if here.get(name) != version and name != "system"]
    told = (f"made with {', '.join(other)}, other than here: the bytes may differ",) if other else ()
    return SweepPoint(
        target=text,
        after=result.after,
        fidelity=worst.fidelity,
        top1_agreement=worst.top1_agreement,
        latency=latency,
        kept_by_group={group.name: group.kept for group in result.groups},
        warnings=(*result.warnings, *told),
        output=file,
    )
