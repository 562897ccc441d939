"""The pipeline: load, understand, decide, rewrite, prove, write."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import FEWEST_CHECKED, solving_and_checking
from onnxmerge.errors import ModelError, OptionError
from onnxmerge.evaluation.benchmark import SURE, with_macs
from onnxmerge.evaluation.check import Proof, prove
from onnxmerge.execution.providers import CPU, provider_of
from onnxmerge.execution.threads import fixed_threads
from onnxmerge.execution.versions import versions
from onnxmerge.graph.analysed_model import AnalysedModel, analyse_model
from onnxmerge.onnxio.model_files import external_files, stored_bytes
from onnxmerge.onnxio.output_files import check_output_file, would_overwrite
from onnxmerge.onnxio.saving import save
from onnxmerge.options import PlannedGroup, Progress, PruningOptions
from onnxmerge.options.keywords import takes
from onnxmerge.pipeline.builder import Found, Search
from onnxmerge.pipeline.candidates import Candidate
from onnxmerge.pipeline.compress_options import PARTS, CompressOptions
from onnxmerge.pipeline.plan_files import PlanFile, fingerprint, read_plan, write_plan
from onnxmerge.pipeline.progress import COMPRESSING, overall
from onnxmerge.pipeline.search import search
from onnxmerge.pipeline.search_latency import FRIENDLY, LATENCY_TOLERANCE
from onnxmerge.pruning.plan import selected
from onnxmerge.results import Compression, LatencyComparison, Size

DOUBTFUL_FIDELITY = 0.5
SHORT_MS = 0.2  # of a call


@takes(*PARTS)
def compress(
    model: str | Path,
    output: str | Path,
    *,
    verify: bool = True,
    bench: bool = True,
    save_plan: str | Path | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> Compression:
    """Write a smaller model to `output` and return what was done.

    progress: told the stage and the share done, 0 to 1. save_plan: where to write what was kept, for the option `plan`.
    executor: takes the statistics of a large calibration set, shard by shard; workers read model and inputs by their paths.

    Raises ModelError, OptionError or InputError where the user can act, VerificationError where the candidate failed the
    check; in all of these nothing is written. The output appears whole or not at all.
    """
    given = CompressOptions.from_keywords(options, verify=verify, bench=bench)
    return compress_file(Path(model), Path(output), given, None if save_plan is None else Path(save_plan), progress, executor)


def compress_file(
    source: Path,
    target: Path,
    options: CompressOptions,
    plan_file: Path | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Compression:
    """`compress`, its keywords sorted."""
    started = time.perf_counter()
    options = replace(options, pruning=options.pruning.sized())
    provider_of(options.runtime)  # refused before any work where it does not work here
    _check_target(target)
    analysed = analyse_model(source)
    if not analysed.channels.groups:
        raise ModelError(_nothing_to_remove(source, analysed))
    _check_not_needed(target, analysed, options)
    external = sorted(external_files(analysed.model))
    _check_plan_file(plan_file, source, target, external, options)
    mark = "" if plan_file is None and options.pruning.plan is None else fingerprint(source, external)
    options = _replayed(options, mark, analysed)
    progress = overall(progress, COMPRESSING)
    with fixed_threads(options.runtime.threads):
        progress("inputs", 0.0)
        solving, checking = solving_and_checking(
            source, analysed, options.inputs, options.runtime, options.pruning, options.verify
        )
        found = search(Search(source, analysed, options, solving, checking, progress, executor))
        chosen = found.candidate
        progress("checking", 0.0)
        proof = _proved(source, chosen, checking, options) if options.verify else None
        progress("checking", 1.0)
    save(chosen.model, target)
    if plan_file is not None:
        write_plan(plan_file, source, mark, selected(analysed, options.pruning)[0], _what_was_kept(chosen, options.pruning))
    return Compression(
        model=str(source),
        output=str(target),
        before=analysed.size,
        after=Size(chosen.size.parameters, chosen.size.macs, stored_bytes(target)),
        groups=chosen.groups,
        refusals=chosen.refusals,
        fidelity=None if proof is None else proof.fidelity,
        latency=_beside_macs(proof, analysed.size.macs, chosen.size.macs),
        warnings=(
            *found.warnings,
            *_nothing_removed(chosen),
            *_told_of(found, proof, checking, options),
            *_told_by(proof, chosen, options),
        ),
        seconds=time.perf_counter() - started,
        seed=options.inputs.seed,
        versions=versions(),
    )


def _proved(source: Path, chosen: Candidate, checking: Inputs, options: CompressOptions) -> Proof:
    """A latency that was asked for is measured for longer."""
    effort, seed = SURE if options.pruning.is_latency_target else None, options.inputs.seed
    return prove(
        source, chosen.content, checking, options.runtime, options.thresholds, bench=options.bench, effort=effort, seed=seed
    )


def _check_plan_file(
    plan_file: Path | None, source: Path, target: Path, external: Sequence[Path], options: CompressOptions
) -> None:
    """OptionError where the plan to be saved would destroy something that is needed."""
    if plan_file is None:
        return
    needed = {"the model": source, "the output": target, "the calibration inputs": options.inputs.calibration_path}
    needed |= {"the plan that is read": _plan_read(options)}
    needed |= {f"weights of the model in {path.name}": path for path in external}
    check_output_file(plan_file, "the plan", needed)


def _plan_read(options: CompressOptions) -> Path | None:
    return options.pruning.plan if isinstance(options.pruning.plan, Path) else None


def _replayed(options: CompressOptions, mark: str, analysed: AnalysedModel) -> CompressOptions:
    """With what the plan file says in the place of its path."""
    file, pruning = _plan_read(options), options.pruning
    if file is None:
        return options
    plan = read_plan(file, mark, selected(analysed, pruning)[0])
    method = plan.method if pruning.method == "auto" else pruning.method
    return replace(options, pruning=replace(pruning, plan=plan.groups, method=method))


def _what_was_kept(chosen: Candidate, options: PruningOptions) -> PlanFile:
    """Of a candidate, so that a plan gives the same one again."""
    methods = {group.name: group.method for group in chosen.groups}
    groups = {name: PlannedGroup(len(stays), stays, methods[name]) for name, stays in chosen.kept.items()}
    return PlanFile("prune" if chosen.alone else options.method, groups)


def _beside_macs(proof: Proof | None, before: int, after: int) -> LatencyComparison | None:
    return None if proof is None or proof.latency is None else with_macs(proof.latency, before, after)


def _nothing_removed(chosen: Candidate) -> list[str]:
    return [] if chosen.groups else ["nothing was removed: the output is the model as it was; the reasons are listed"]


def _told_of(found: Found, proof: Proof | None, checking: Inputs, options: CompressOptions) -> list[str]:
    """What became of a latency, and on how little a fidelity rests."""
    told = []
    kind, share = options.pruning.target or ("", 0.0)
    ratio = found.ratio if proof is None or proof.latency is None else proof.latency.latency_ratio
    if kind == "latency" and ratio is not None and abs(ratio / share - 1.0) > LATENCY_TOLERANCE:
        told.append(f"latency={share:g} was not reached within {LATENCY_TOLERANCE:.0%}: it takes {ratio:.2f} of the time")
    if options.pruning.fidelity is not None and checking.count < FEWEST_CHECKED:
        told.append(
            f"the fidelity rests on {checking.source}: give at least {2 * FEWEST_CHECKED} calibration inputs to rely on it"
        )
    return told


def _told_by(proof: Proof | None, chosen: Candidate, options: CompressOptions) -> list[str]:
    """What a user should know before deploying: of the time, and of a result that drifted."""
    if proof is None:
        return []
    timed = options.pruning.is_latency_target
    told = [warning if timed else f"{warning}{_why(proof.latency, chosen)}" for warning in proof.warnings]
    worst = proof.fidelity.worst
    if worst.fidelity < DOUBTFUL_FIDELITY:
        less = "a lower `ratio`" if options.pruning.ratio is not None else "a larger model"
        remedy = less if options.inputs.calibration is not None else f"{less}, or `calibration` with real inputs"
        kept = f"output {worst.name} keeps only {max(0.0, worst.fidelity):.0%} of the reference's variance"
        told.append(f"{kept}; try {remedy}")
    return told


def _why(latency: LatencyComparison | None, chosen: Candidate) -> str:
    """Why a smaller model may not be faster, where that is known."""
    odd = sum(group.kept % FRIENDLY != 0 for group in chosen.groups)
    told = []
    if odd:
        told.append(f"{odd} of {len(chosen.groups)} groups keep a count that is no multiple of {FRIENDLY}: try `round_to=auto`")
    if latency is not None and latency.provider != CPU.name and latency.batch_size == 1:
        told.append("with one input a call a GPU mostly waits: time the batch that you serve with `batch`")
    elif latency is not None and latency.batch_size == 1 and latency.reference.median_ms < SHORT_MS:
        told.append("calls this short are mostly overhead: time larger batches with `batch`")
    return "".join(f"; {each}" for each in told)


def _nothing_to_remove(source: Path, analysed: AnalysedModel) -> str:
    """One line that says why."""
    layers = {layer.name for layer in analysed.channels.layers}
    refusals = sorted(analysed.channels.refusals, key=lambda refusal: refusal.where not in layers)
    if not refusals:
        return f"{source}: nothing can be removed: it has no Conv, ConvTranspose, Gemm or MatMul with weights in the file"
    others = f", and {len(refusals) - 1} more reasons" if len(refusals) > 1 else ""
    return f"{source}: nothing can be removed: {refusals[0].where}: {refusals[0].text}{others} (`onnxmerge inspect` lists them)"


def _check_target(target: Path) -> None:
    folder = target.resolve().parent
    if not folder.is_dir():
        raise OptionError(f"the output folder {folder} does not exist; create it first")
    if target.is_dir():
        raise OptionError(f"the output {target} is a folder; name a file")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"the output folder {folder} is not writable")


def _check_not_needed(target: Path, analysed: AnalysedModel, options: CompressOptions) -> None:
    """OptionError where writing the target would destroy weights of the source, or the calibration inputs."""
    needed = [(location, "the weights of the model") for location in external_files(analysed.model)]
    calibration = options.inputs.calibration_path
    needed += [(calibration, "the calibration inputs")] if calibration is not None else []
    plan = _plan_read(options)
    needed += [(plan, "the plan that is read")] if plan is not None else []
    for path, what in needed:
        if target.exists() and path.exists() and would_overwrite(target, path):
            raise OptionError(f"the output {target} holds {what}; name another file")
