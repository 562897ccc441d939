"""`sweep`: a model for each of several targets, and with them the curve of size and speed against fidelity."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxmerge.data.calibration import NEEDED
from onnxmerge.data.given_shapes import given_shapes
from onnxmerge.errors import InputError, OptionError
from onnxmerge.evaluation.benchmark import benchmark
from onnxmerge.execution.providers import provider_of
from onnxmerge.execution.threads import default_threads, fixed_threads
from onnxmerge.execution.versions import versions
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.onnxio.model_files import as_file, external_files, model_name
from onnxmerge.onnxio.side_files import check_output_file, write_atomically
from onnxmerge.onnxio.storage import fits_one_message
from onnxmerge.onnxio.work_folder import WorkFolder
from onnxmerge.options import DEFAULT_TARGETS, SIZES, Progress, silent
from onnxmerge.options.keywords import takes
from onnxmerge.parallel.tasks import LostTask, run_tasks
from onnxmerge.pipeline.compress_options import PARTS, CompressOptions
from onnxmerge.pipeline.model_measurements import SharedWork
from onnxmerge.pipeline.predicted_work import ELSEWHERE, sweep_stages
from onnxmerge.pipeline.progress import overall, tell_expected
from onnxmerge.pipeline.streams import with_streams
from onnxmerge.pipeline.sweep_point import PointOutcome, PointTask, compress_point
from onnxmerge.pipeline.sweep_targets import Target, options_by_target
from onnxmerge.pipeline.time_limit import TimeLimit
from onnxmerge.pipeline.unused_options import check_sweep_options
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.results import LatencyComparison, Sweep, SweepPoint


@takes(*PARTS)
def sweep(
    model: str | Path | ModelProto,
    targets: str | Sequence[str | Target] = DEFAULT_TARGETS,
    *,
    bench: bool = True,
    provenance: bool = True,
    folder: str | Path | None = None,
    executor: Executor | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Sweep:
    """Compress a model once for each target, independently of the others.

    The models are the same bytes wherever they are made on the same kind of processor. Only targets that are found by timing
    (latency, and all with `round_to="measured"`) differ from run to run; they are made, and all latencies measured, here.

    Parameters
    ----------
    model : str, Path or ModelProto
        Path of the model, or the model itself.
    targets : str or Sequence[str | Target]
        "macs=0.75,0.5,params=0.5", or a list of such texts or of pairs ("macs", 0.75); also of "fidelity",
        "max_changed_decisions" and "ratio".
    bench, provenance : bool
        Whether each result is timed against the model, and whether its metadata says how it was made.
    folder : str, Path or None
        Where the models are kept; None where they are not.
    executor, jobs : Executor or None, int or None
        What makes the points, if not this process: any executor of concurrent.futures or Dask, or so many processes.
    progress : Progress or None
        Called with the name of a stage and the share of the work that is done.
    **options
        As for `compress`, but for those that say how small; `minimize` is that of targets of fidelity and decisions.

    Returns
    -------
    Sweep
        A point for each target, in order; one that failed says why.

    Raises
    ------
    ModelError, OptionError, InputError, ProviderError
        Where the user can act and not only one target is concerned; wrong options before any work.

    Examples
    --------
    >>> import onnxmerge
    >>> result = onnxmerge.sweep("model.onnx", "macs=0.8,0.4", method="prune", bench=False)
    >>> [point.after.macs < result.before.macs for point in result.points]
    [True, True]
    """
    _check_workers(executor, jobs)
    common = _common_options(CompressOptions.from_keywords(options, bench=bench, provenance=provenance))
    by_target = options_by_target(common, targets)
    check_sweep_options(common, by_target.values(), is_kept=folder is not None)
    place = None if folder is None else Path(folder)
    with as_file(model) as path, fixed_threads(1):
        result = _sweep_file(path, by_target, common, place, executor, jobs, progress or silent)
    return replace(result, model=model_name(model))


def _check_workers(executor: Executor | None, jobs: int | None) -> None:
    if executor is not None and jobs is not None:
        raise OptionError("`jobs` and `executor` both say where the points are made: drop one of the two")
    if jobs is not None and jobs < 1:
        raise OptionError(f"`jobs` must be at least 1, not {jobs}")


def _sweep_file(
    model: Path,
    by_target: Mapping[str, CompressOptions],
    common: CompressOptions,
    folder: Path | None,
    executor: Executor | None,
    jobs: int | None,
    progress: Progress,
) -> Sweep:
    limit = TimeLimit(common.pruning.time_limit)
    shapes = given_shapes(model, common.inputs)
    analysed = analyse_model(model, common.runtime.max_memory, shapes, common.pruning.whole_heads)
    analysed = with_streams(model, analysed, common)
    prunable_groups(analysed.channels, common.pruning)  # refuses patterns that match nothing before any work
    names = {target: f"{model.stem}-{target.replace('=', '-')}.onnx" for target in by_target}
    if folder is not None:
        _check_folder(folder, names.values(), model, common)
    with WorkFolder() as temporary:
        outputs = {target: (folder or temporary.path) / name for target, name in names.items()}
        inline = not external_files(analysed.model) and fits_one_message(analysed.model, for_trial=executor is None)
        content, path = model.read_bytes() if inline else None, model.absolute()
        first = min(by_target, key=lambda target: _is_timed(by_target[target]))  # the first that is made
        tasks = {
            target: PointTask(path, content, outputs[target].absolute(), options, temporary.path, limit, is_first=target == first)
            for target, options in by_target.items()
        }
        order = [task.options for task in sorted(tasks.values(), key=lambda task: _is_timed(task.options))]
        is_here = executor is None and jobs is None
        made = [_is_timed(each) or is_here for each in order]
        outcomes: dict[str, PointOutcome] = {}

        def counted(stage: str, share: float) -> None:
            count = f"{len(outcomes)} of {len(tasks)} points"
            progress(count if stage == ELSEWHERE else stage if len(outcomes) == len(tasks) else f"{count}: {stage}", share)

        stages = sweep_stages(analysed, order, made, common.bench)
        tell_expected(progress, stages, can_end_early=limit.seconds is None)
        shared = SharedWork(analysed, overall(counted, stages))
        _make_points(tasks, outcomes, shared, executor, jobs)
        points = []
        for target in tasks:
            outcome = outcomes[target]
            if common.bench:
                shared.progress("timing", 0.0)
            latency = _latency(model, outputs[target], common, outcome)
            points.append(_point(target, outcome, latency, None if folder is None else outputs[target]))
        if common.bench:
            shared.progress("timing", 1.0)
    found = (outcome.result.fidelity for outcome in (outcomes[target] for target in tasks) if outcome.result is not None)
    fidelities = [fidelity for fidelity in found if fidelity is not None]  # of a whole model, on fewer inputs
    most = max(fidelities, key=lambda fidelity: fidelity.input_count, default=None)
    description = "" if most is None else most.input_description
    inputs = next((each.result.inputs for each in outcomes.values() if each.result is not None), analysed.inputs)
    return Sweep(str(model), analysed.size, tuple(points), description, common.inputs.seed, versions(), inputs)


def _common_options(options: CompressOptions) -> CompressOptions:
    """With everything fixed that another process could see in another way. OptionError where something speaks against a sweep."""
    given = next((name for name in SIZES if getattr(options.pruning, name) is not None), None)
    if given is not None:
        raise OptionError(f"`{given}` and `targets` both say how small the models become: drop one of the two")
    if options.thresholds.min_speedup is not None:
        raise OptionError("`sweep` marks what is slower and fails for no `min_speedup`: give it to `compress`")
    path, runtime = options.inputs.calibration_path, options.runtime
    if path is not None and not path.exists():
        raise InputError(f"{path} does not exist: {NEEDED} is needed")
    provider = provider_of(runtime).option if runtime.provider == "auto" else runtime.provider
    runtime = replace(runtime, provider=provider, threads=runtime.threads or default_threads())
    return replace(options, inputs=options.inputs.absolute(), runtime=runtime)


def _check_folder(folder: Path, names: Iterable[str], model: Path, options: CompressOptions) -> None:
    """Create the folder where it is missing. OptionError where a model has no place in it."""
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"the folder {folder} for the models is a file; name another one")
    if not folder.resolve().parent.is_dir():
        raise OptionError(f"the folder {folder.resolve().parent} does not exist; create it first")
    folder.mkdir(exist_ok=True)
    read = {"the model": model, "the calibration inputs": options.inputs.calibration_path}
    for name in names:
        check_output_file(folder / name, "the model", read)


def _make_points(
    tasks: Mapping[str, PointTask],
    outcomes: dict[str, PointOutcome],
    shared: SharedWork,
    executor: Executor | None,
    jobs: int | None,
) -> None:
    """Fill in the outcome of every task; models are in their place as soon as they are made, also where the rest is interrupted.

    Tasks that are found by timing come last, alone on this machine. Those that are made here share what is measured of the model.
    """
    timed = [target for target, task in tasks.items() if _is_timed(task.options)]
    others = [target for target in tasks if target not in timed]
    compress_here = partial(compress_point, shared=shared)

    def keep(target: str, outcome: PointOutcome | LostTask) -> None:
        if isinstance(outcome, LostTask):
            outcome = PointOutcome(None, failure=outcome.reason)
        if outcome.content is not None:
            write_atomically(tasks[target].output, "the model", partial(Path.write_bytes, data=outcome.content))
        outcomes[target] = replace(outcome, content=None)
        shared.progress(ELSEWHERE, 1.0)

    compress_there = compress_here if executor is None and jobs is None else compress_point
    run_tasks(compress_there, [tasks[name] for name in others], lambda number, each: keep(others[number], each), executor, jobs)
    for target in timed:
        keep(target, compress_here(tasks[target]))


def _is_timed(options: CompressOptions) -> bool:
    return options.pruning.round_to == "measured" or options.pruning.is_latency_target


def _latency(model: Path, output: Path, options: CompressOptions, outcome: PointOutcome) -> LatencyComparison | None:
    if not options.bench or outcome.result is None:
        return None
    return outcome.result.latency or benchmark(model, output, options.inputs, options.runtime, (None,)).batches[0]


def _point(target: str, outcome: PointOutcome, latency: LatencyComparison | None, output: Path | None) -> SweepPoint:
    result = outcome.result
    if result is None or result.fidelity is None:
        return SweepPoint(target, None, None, None, None, {}, (), failure=outcome.failure)
    here = versions()
    other = [f"{name} {version}" for name, version in result.versions.items() if here.get(name) != version and name != "system"]
    warnings = [f"made with {', '.join(other)}, other than here: the bytes may differ"] if other else []
    worst, decided = result.fidelity.worst, result.fidelity.most_changed
    return SweepPoint(
        target=target,
        after=result.after,
        fidelity=worst.fidelity,
        fidelity_low=worst.fidelity_low,
        fidelity_high=worst.fidelity_high,
        top1_agreement=worst.top1_agreement,
        changed_decisions=None if decided is None else decided.changed_decisions,
        changed_decisions_low=None if decided is None else decided.changed_decisions_low,
        changed_decisions_high=None if decided is None else decided.changed_decisions_high,
        latency=latency,
        kept_by_group={group.name: group.kept for group in result.groups},
        warnings=(*filter(None, [result.unreached]), *result.warnings, *warnings),
        output="" if output is None else str(output),
    )
