"""The pipeline: load, understand, decide, rewrite, prove, write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import FEWEST_CHECKED, solving_and_checking
from onnxmerge.errors import ModelError, OptionError
from onnxmerge.evaluation.benchmark import with_macs
from onnxmerge.evaluation.check import Proof, prove
from onnxmerge.execution.providers import CPU, provider_of
from onnxmerge.execution.sessions import fixed_threads
from onnxmerge.execution.versions import versions
from onnxmerge.graph.analysed_model import Understanding, understand
from onnxmerge.graph.channel_ids import label
from onnxmerge.onnxio.files import check_place, is_at
from onnxmerge.onnxio.model_files import external_files, save
from onnxmerge.options import Options
from onnxmerge.pipeline.builder import Found, Search
from onnxmerge.pipeline.candidates import Candidate
from onnxmerge.pipeline.plan_files import Kept, fingerprint, read_plan, write_plan
from onnxmerge.pipeline.progress import COMPRESSING, overall
from onnxmerge.pipeline.search import search
from onnxmerge.pipeline.search_latency import FRIENDLY, LATENCY_TOLERANCE
from onnxmerge.pruning.plan import selected
from onnxmerge.results import Comparison, Compression, Size

DOUBTFUL_FIDELITY = 0.5
SHORT_MS = 0.2  # of a call


def compress(
    source: str | Path,
    target: str | Path,
    options: Options | None = None,
    progress: Callable[[str, float], None] | None = None,
    save_plan: str | Path | None = None,
    executor: Executor | None = None,
) -> Compression:
    """Write a smaller model to `target` and return what was done.

    progress: told the stage and the share done, 0 to 1. save_plan: where to write what was kept, for Options.plan.
    executor: takes the statistics of a large calibration set, shard by shard; workers read model and inputs by their paths.

    Raises ModelError, OptionError or InputError where the user can act, VerificationError where the candidate failed the
    check; in all of these nothing is written. The target appears whole or not at all.
    """
    started = time.perf_counter()
    options = (options or Options()).sized()
    source, target = Path(source), Path(target)
    plan_file = None if save_plan is None else Path(save_plan)
    provider_of(options)  # refused before any work where it does not work here
    _check_target(target)
    understood = understand(source)
    if not understood.channels.groups:
        raise ModelError(_nothing_to_remove(source, understood))
    _check_not_needed(target, understood, options)
    external = sorted(external_files(understood.model))
    _check_plan_file(plan_file, source, target, external, options)
    mark = "" if plan_file is None and options.plan is None else fingerprint(source, external)
    options = _replayed(options, mark, understood)
    tell = overall(progress, COMPRESSING)
    with fixed_threads(options.threads):
        tell("inputs", 0.0)
        solving, checking = solving_and_checking(source, understood, options)
        found = search(Search(source, understood, options, solving, checking, tell, executor))
        chosen = found.candidate
        tell("checking", 0.0)
        proof = prove(source, chosen.content, checking, options) if options.verify else None
        tell("checking", 1.0)
    save(chosen.model, target)
    if plan_file is not None:
        write_plan(plan_file, source, mark, selected(understood, options)[0], _what_was_kept(chosen, options))
    return Compression(
        source=str(source),
        target=str(target),
        before=understood.size,
        after=Size(chosen.size.parameters, chosen.size.macs, target.stat().st_size),
        groups=chosen.groups,
        refusals=chosen.refusals,
        fidelity=None if proof is None else proof.fidelity,
        latency=_beside_macs(proof, understood.size.macs, chosen.size.macs),
        warnings=(
            *found.warnings,
            *_nothing_removed(chosen),
            *_told_of(found, proof, checking, options),
            *_told_by(proof, chosen, options),
        ),
        seconds=time.perf_counter() - started,
        seed=options.seed,
        versions=versions(),
    )


def _check_plan_file(plan_file: Path | None, source: Path, target: Path, external: Sequence[Path], options: Options) -> None:
    """OptionError where the plan to be saved would destroy something that is needed."""
    if plan_file is None:
        return
    needed = {"the model": source, "the output": target, "the calibration inputs": options.calibration}
    needed |= {"the plan that is read": options.plan}
    needed |= {f"weights of the model in {path.name}": path for path in external}
    check_place(plan_file, "the plan", needed)


def _replayed(options: Options, mark: str, understood: Understanding) -> Options:
    """With what the plan says in the place of the plan."""
    if options.plan is None:
        return options
    kept = read_plan(options.plan, mark, selected(understood, options)[0])
    method = kept.method if options.method == "auto" else options.method
    return replace(options, plan=None, counts=kept.counts, kept=kept.channels, methods=kept.methods, method=method)


def _what_was_kept(chosen: Candidate, options: Options) -> Kept:
    """Of a candidate, so that a plan gives the same one again."""
    counts = tuple((name, len(stays)) for name, stays in chosen.kept.items())
    methods = tuple((group.name, group.method) for group in chosen.groups)
    return Kept(counts, tuple(chosen.kept.items()), methods, "prune" if chosen.alone else options.method)


def _beside_macs(proof: Proof | None, before: int, after: int) -> Comparison | None:
    return None if proof is None or proof.latency is None else with_macs(proof.latency, before, after)


def _nothing_removed(chosen: Candidate) -> list[str]:
    return [] if chosen.groups else ["nothing was removed: the output is the model as it was; the reasons are listed"]


def _told_of(found: Found, proof: Proof | None, checking: Inputs, options: Options) -> list[str]:
    """What became of a latency, and on how little a fidelity rests."""
    told = []
    kind, share = options.target or ("", 0.0)
    ratio = found.ratio if proof is None or proof.latency is None else proof.latency.ratio
    if kind == "latency" and ratio is not None and abs(ratio / share - 1.0) > LATENCY_TOLERANCE:
        told.append(f"latency={share:g} was not reached within {LATENCY_TOLERANCE:.0%}: it takes {ratio:.2f} of the time")
    if options.fidelity is not None and checking.count < FEWEST_CHECKED:
        told.append(
            f"the fidelity rests on {checking.source}: give at least {2 * FEWEST_CHECKED} calibration inputs to rely on it"
        )
    return told


def _told_by(proof: Proof | None, chosen: Candidate, options: Options) -> list[str]:
    """What a user should know before deploying: of the time, and of a result that drifted."""
    if proof is None:
        return []
    timed = options.target is not None and options.target[0] == "latency"
    told = [warning if timed else f"{warning}{_why(proof.latency, chosen)}" for warning in proof.warnings]
    worst = proof.fidelity.worst
    if worst.fidelity < DOUBTFUL_FIDELITY:
        less = "a lower --ratio" if options.ratio is not None else "a larger model"
        remedy = less if options.calibration is not None else f"{less}, or --calibration with real inputs"
        kept = f"output {worst.name} keeps only {max(0.0, worst.fidelity):.0%} of the reference's variance"
        told.append(f"{kept}; try {remedy}")
    return told


def _why(latency: Comparison | None, chosen: Candidate) -> str:
    """Why a smaller model may not be faster, where that is known."""
    odd = sum(group.kept % FRIENDLY != 0 for group in chosen.groups)
    told = []
    if odd:
        told.append(f"{odd} of {len(chosen.groups)} groups keep a count that is no multiple of {FRIENDLY}: try --round-to auto")
    if latency is not None and latency.provider != CPU.name and latency.batch == 1:
        told.append("with one input a call a GPU mostly waits: time the batch that you serve with --batch")
    elif latency is not None and latency.batch == 1 and latency.reference.median_ms < SHORT_MS:
        told.append("calls this short are mostly overhead: time larger batches with --batch")
    return "".join(f"; {each}" for each in told)


def _nothing_to_remove(source: Path, understood: Understanding) -> str:
    """One line that says why."""
    layers = {label(weighted.node) for weighted in understood.channels.flow.weighted}
    refusals = sorted(understood.channels.refusals, key=lambda refusal: refusal.where not in layers)
    if not refusals:
        return f"{source}: nothing can be removed: it has no Conv, ConvTranspose, Gemm or MatMul with weights in the file"
    others = f", and {len(refusals) - 1} more reasons" if len(refusals) > 1 else ""
    return f"{source}: nothing can be removed: {refusals[0].where}: {refusals[0].reason}{others} (`onnxmerge inspect` lists them)"


def _check_target(target: Path) -> None:
    folder = target.resolve().parent
    if not folder.is_dir():
        raise OptionError(f"the output folder {folder} does not exist; create it first")
    if target.is_dir():
        raise OptionError(f"the output {target} is a folder; name a file")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"the output folder {folder} is not writable")


def _check_not_needed(target: Path, understood: Understanding, options: Options) -> None:
    """OptionError where writing the target would destroy weights of the source, or the calibration inputs."""
    needed = [(location, "the weights of the model") for location in external_files(understood.model)]
    needed += [(options.calibration, "the calibration inputs")] if options.calibration is not None else []
    needed += [(options.plan, "the plan that is read")] if options.plan is not None else []
    for path, what in needed:
        if target.exists() and path.exists() and is_at(target, path):
            raise OptionError(f"the output {target} holds {what}; name another file")
