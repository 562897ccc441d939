"""`compress`: load and analyse a model, search for a candidate, check it, write it."""

import time
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from onnx import ModelProto

from onnxmerge.data.given_shapes import given_shapes
from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import BATCH, calibration_and_check_inputs
from onnxmerge.errors import ModelError, OptionError, VerificationError
from onnxmerge.evaluation.benchmark import CONFIRMING_EFFORT, explained, time_pair
from onnxmerge.evaluation.fidelity import fidelity_of
from onnxmerge.evaluation.thresholds import missed_sizes, missed_speedup, missed_thresholds, output_checks, size_checks
from onnxmerge.execution.providers import CPU, provider_of
from onnxmerge.execution.threads import fixed_threads
from onnxmerge.execution.versions import versions
from onnxmerge.graph.analysed_model import AnalysedModel, analyse_model
from onnxmerge.onnxio.model_files import as_file, external_files, model_name, stored_bytes
from onnxmerge.onnxio.model_saving import save
from onnxmerge.onnxio.side_files import check_output_file, would_overwrite
from onnxmerge.options import Progress, PruningOptions
from onnxmerge.options.keywords import takes
from onnxmerge.pipeline.candidate_builder import CandidateBuilder
from onnxmerge.pipeline.candidates import Candidate, SearchResult, with_savings
from onnxmerge.pipeline.compress_options import PARTS, CompressOptions
from onnxmerge.pipeline.compression_warnings import odd_widths, unreached_target, warnings_of
from onnxmerge.pipeline.model_measurements import ModelMeasurements, SharedWork
from onnxmerge.pipeline.output_paths import check_nothing_is_lost
from onnxmerge.pipeline.plan_files import fingerprint, plan_of, planned_held_out, read_plan, write_plan
from onnxmerge.pipeline.predicted_work import compress_stages
from onnxmerge.pipeline.progress import overall, tell_expected
from onnxmerge.pipeline.provenance import provenance_of
from onnxmerge.pipeline.search import search
from onnxmerge.pipeline.streams import with_streams
from onnxmerge.pipeline.time_limit import TimeLimit
from onnxmerge.pipeline.unseen_bodies import unseen_bodies
from onnxmerge.pipeline.unused_options import check_compress_options
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.kept_counts import kept_counts
from onnxmerge.results import Compression, Fidelity, LatencyComparison
from onnxmerge.results.execution import chosen_sizes


class Checked(NamedTuple):
    """What a candidate was found to be: the thresholds that are missed, and how it is written all the same."""

    fidelity: Fidelity | None
    latency: LatencyComparison | None
    missed: list[str]
    cure: str


@takes(*PARTS)
def compress(
    model: str | Path | ModelProto,
    output: str | Path,
    *,
    verify: bool = True,
    bench: bool | None = None,
    save_plan: str | Path | None = None,
    in_place: bool = False,
    provenance: bool = True,
    progress: Progress | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> Compression:
    """Remove channels of a model, repair the layers behind them, compare the outputs, and write the smaller model.

    Parameters
    ----------
    model, output : str, Path or ModelProto, str or Path
        The model or its path, and where the smaller one is written, which appears whole or not at all.
    verify, bench : bool, bool or None
        Whether the outputs are compared with the model's before anything is written, and both models timed then; None: where
        they are compared.
    save_plan : str, Path or None
        Where to write which channels of which group stayed, for the option `plan`.
    in_place, provenance : bool
        Whether the output may be the model's own file, which is then replaced, and whether its metadata says how it was made:
        version, options, digest of the model, fidelity.
    progress : Progress or None
        Called with the name of a stage and the share of the work that is done.
    executor : Executor or None
        Takes the statistics of a large calibration set, shard by shard; workers read the model by its path.
    **options
        Fields of `PruningOptions`, `InputOptions`, `RuntimeOptions` and `Thresholds`, or such objects by their `part`.

    Returns
    -------
    Compression
        What was removed, how close the outputs are, how much smaller and faster the model is.

    Raises
    ------
    ModelError, OptionError, InputError, ProviderError, VerificationError
        Where the user can act; the last, whose `result` is what was measured, where that misses what was asked for.

    Examples
    --------
    >>> import onnxmerge
    >>> result = onnxmerge.compress("model.onnx", "smaller.onnx", target="macs=0.5", bench=False)
    >>> result.after.macs <= 0.5 * result.before.macs, result.fidelity.worst.fidelity > 0.5
    (True, True)
    """
    given = CompressOptions.from_keywords(options, verify=verify, bench=bench, provenance=provenance)
    check_compress_options(given)
    saved_plan = None if save_plan is None else Path(save_plan)
    with as_file(model) as path:
        result = compress_file(
            path, Path(output), given, saved_plan=saved_plan, in_place=in_place, progress=progress, executor=executor
        )
        return replace(result, model=model_name(model))


def compress_file(
    model: Path,
    output: Path,
    options: CompressOptions,
    *,
    saved_plan: Path | None = None,
    in_place: bool = False,
    progress: Progress | None = None,
    executor: Executor | None = None,
    shared: SharedWork | None = None,
    limit: TimeLimit | None = None,
) -> Compression:
    """`compress` for a file, with its options sorted. shared: what other points of a sweep have done."""
    started, limit = time.perf_counter(), limit or TimeLimit(options.pruning.time_limit)
    given, options = options.pruning, replace(options, pruning=options.pruning.sized())
    asked = options.pruning
    _check_paths(model, output, options, in_place=in_place)
    options = replace(options, held_out=None if asked.plan_file is None else planned_held_out(asked.plan_file))
    analysed = _analysed(model, options) if shared is None else shared.analysed
    if not analysed.channels.groups:
        raise ModelError(_nothing_to_remove(model, analysed))
    weight_files = sorted(external_files(analysed.model))
    check_nothing_is_lost(model, output, saved_plan, weight_files, options)
    model_sha256 = fingerprint(model, weight_files)
    options = replace(options, pruning=_with_plan_read(asked, model_sha256, analysed))
    groups = prunable_groups(analysed.channels, options.pruning)[0]
    kept_counts(groups, options.pruning)  # refuses a plan before any work
    tell = _progress(progress, analysed, options) if shared is None else shared.progress
    with fixed_threads(1):  # the same bytes whatever the number of threads
        measured = (shared or SharedWork(analysed, tell)).measurements(options, partial(_measured, model, options, executor))
        if asked is not given and measured.checking.states:
            options = options.of_streams()
        found = search(CandidateBuilder(measured, options, limit))
        checking = measured.checking if found.candidate.kept else measured.checking.first(BATCH)  # the whole model, rewritten
        tell("checking", 0.0)
        checked = _check(model, analysed, found, checking, options)
        metadata = {}
        if options.provenance and not checked.missed:
            on_cpu = _on_cpu(model, found.candidate, checking, options, checked.fidelity)
            metadata = provenance_of(asked, options.inputs, model_sha256, checking, on_cpu)
        tell("checking", 1.0)
    if fingerprint(model, weight_files) != model_sha256:  # weights of large files are read from them up to the end
        raise ModelError(f"{model} was changed while it was read, so nothing was written: run again")
    if not checked.missed:
        save(replace(found.candidate.model, metadata=metadata), output)
        if saved_plan is not None:
            held_out = measured.held_out or options.held_out  # pruning by weights splits none
            write_plan(saved_plan, model, model_sha256, groups, plan_of(found.candidate, options.pruning, held_out))
    result = replace(_compression(analysed, found, checked, checking, options), model=str(model), output=str(output))
    if checked.missed:
        told = f"{'; '.join(checked.missed)} (nothing was written; {checked.cure})"
        raise VerificationError(told, replace(result, seconds=time.perf_counter() - started))
    after = replace(found.candidate.size, file_bytes=stored_bytes(output))
    return replace(result, after=after, seconds=time.perf_counter() - started)


def _check_paths(model: Path, output: Path, options: CompressOptions, *, in_place: bool) -> None:
    """Refuse before any work what cannot be run or written here."""
    provider_of(options.runtime)
    check_output_file(output, "the output", {})
    if output.exists() and would_overwrite(output, model) and not in_place:
        raise OptionError(f"the output {output} is the model itself: name another file, or replace it with `in_place`")


def _analysed(model: Path, options: CompressOptions) -> AnalysedModel:
    """The model as it is compressed."""
    limits = options.runtime.max_memory, given_shapes(model, options.inputs), options.pruning.whole_heads
    return with_streams(model, analyse_model(model, *limits), options)


def _compression(
    analysed: AnalysedModel, found: SearchResult, checked: Checked, checking: Inputs, options: CompressOptions
) -> Compression:
    """What was done, but for the files and the time that it took."""
    candidate, fidelity, limits = found.candidate, checked.fidelity, options.thresholds
    warnings = warnings_of(found, analysed.size, fidelity, checking, options)
    unseen = () if fidelity is None else tuple(unseen_bodies(analysed, candidate.model, checking))
    of_outputs = [] if fidelity is None else output_checks(fidelity, limits)
    is_run = options.verify or not options.pruning.uses_weights_only
    return Compression(
        model="",
        output="",
        before=analysed.size,
        after=candidate.size,
        groups=with_savings(analysed, candidate.groups, candidate.kept),
        refusals=candidate.refusals,
        fidelity=fidelity,
        latency=checked.latency,
        warnings=(*chosen_sizes(analysed.inputs), *warnings, *unseen),
        seconds=0.0,
        seed=options.inputs.seed,
        versions=versions(),
        inputs=checking.noted(analysed.inputs) if is_run else analysed.inputs,
        simplifications=analysed.simplifications,
        failures=tuple(checked.missed),
        unreached=unreached_target(found, checked.latency, options),
        thresholds=(*of_outputs, *size_checks(analysed.size, candidate.size, limits)),
    )


def _progress(progress: Progress | None, analysed: AnalysedModel, options: CompressOptions) -> Progress:
    """Takes the share of a stage and tells that of the whole; before that it tells how long long work takes."""
    stages, pruning = compress_stages(analysed, options), options.pruning
    can_end_early = pruning.time_limit is None and (pruning.is_searched or pruning.target is not None)
    tell_expected(progress, stages, can_end_early=can_end_early)
    return overall(progress, stages)


def _measured(
    model: Path, options: CompressOptions, executor: Executor | None, analysed: AnalysedModel, tell: Progress
) -> ModelMeasurements:
    """The inputs, and what will be measured on them."""
    tell("inputs", 0.0)
    given = options.inputs, options.runtime, options.pruning, options.verify, partial(tell, "inputs"), options.held_out
    inputs = calibration_and_check_inputs(model, analysed, *given)
    any_size = replace(options, pruning=replace(options.pruning, ratio=None))  # other points of a sweep take the measurements too
    return ModelMeasurements(model, analysed, any_size, *inputs, tell, executor)


def _with_plan_read(pruning: PruningOptions, model_sha256: str, analysed: AnalysedModel) -> PruningOptions:
    """With what the plan file says in the place of its path."""
    if pruning.plan_file is None:
        return pruning
    plan = read_plan(pruning.plan_file, model_sha256, prunable_groups(analysed.channels, pruning)[0])
    return replace(pruning, plan=plan.groups, method=plan.method if pruning.method == "auto" else pruning.method)


def _check(model: Path, analysed: AnalysedModel, found: SearchResult, checking: Inputs, options: CompressOptions) -> Checked:
    """Its size, outputs (without optimisation) and speed against the model's; timed for longer where a latency was asked for.

    A model of which nothing was removed takes the time that it took, and is timed only where a threshold asks for it.
    """
    candidate, runtime, thresholds, original = found.candidate, options.runtime, options.thresholds, analysed.size
    content = candidate.content
    missed = missed_sizes(original, candidate.size, thresholds)
    fidelity, latency, cure = None, None, "without these thresholds it is written"
    if options.verify:
        fidelity = fidelity_of(model, content, checking, provider_of(runtime), runtime.threads)
        missed_outputs = missed_thresholds(fidelity, thresholds)
        if (missed_outputs or found.missed) and not missed:
            cure = "`verify=False` keeps the result all the same"
            cure = f"more time may find a model that keeps it, and {cure}" if found.missed else cure
        missed += [*([found.missed] if found.missed else []), *missed_outputs]
    is_changed = bool(candidate.kept or analysed.simplifications)
    is_unknown = fidelity is not None and any(output.unmeasured for output in fidelity.outputs)  # its speed still helps
    has_use = is_changed and (not missed or is_unknown)
    if options.verify and options.bench and (has_use or thresholds.min_speedup is not None):
        effort = CONFIRMING_EFFORT if options.pruning.is_latency_target else None
        latency = time_pair(model, content, checking, runtime, effort=effort, seed=options.inputs.seed)
        latency = explained(latency, original.macs, candidate.size.macs, odd_widths(candidate, options))
        missed += missed_speedup(latency, thresholds.min_speedup)
        latency = replace(latency, min_speedup=thresholds.min_speedup)
    return Checked(fidelity, latency, missed, cure)


def _on_cpu(
    model: Path, candidate: Candidate, checking: Inputs, options: CompressOptions, fidelity: Fidelity | None
) -> Fidelity | None:
    """The fidelity on the CPU, which changes no byte where there is a GPU."""
    if fidelity is None or fidelity.provider == CPU.name:
        return fidelity
    return fidelity_of(model, candidate.content, checking, CPU, options.runtime.threads)


def _nothing_to_remove(model: Path, analysed: AnalysedModel) -> str:
    """Why, on one line: what the user can do, else the reason of the layer with the most parameters."""
    refusals = analysed.channels.refusals
    if not refusals:
        return f"{model}: nothing can be removed: it has no Conv, ConvTranspose, Gemm or MatMul with weights in the file"
    first = refusals[0]
    if first.reason.has_cure:
        return f"{model}: nothing can be removed: it is {first.text}"
    others = f", and {len(refusals) - 1} more reasons" if len(refusals) > 1 else ""
    return f"{model}: nothing can be removed: {first.where}: {first.text}{others} (`onnxmerge inspect` lists them)"
