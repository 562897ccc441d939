"""The pipeline: load, understand, decide, rewrite, prove, write."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnxruntime

from onnxmerge import __version__
from onnxmerge.candidates import Candidate, unlocked_by
from onnxmerge.errors import ModelError, OptionError
from onnxmerge.graph.flow import label
from onnxmerge.graph.io import external_files, save
from onnxmerge.methods.by_weights import BY_WEIGHTS
from onnxmerge.options import Options
from onnxmerge.proof import BATCH, CHECK_INPUTS, Proof, inputs_for, prove, provider_of, with_macs
from onnxmerge.results import Comparison, Compression, Inspection, Size
from onnxmerge.runtime.sessions import open_session
from onnxmerge.searching import Search, search
from onnxmerge.statistics.balance import balanced
from onnxmerge.statistics.hints import hints_of
from onnxmerge.statistics.inputs import Inputs
from onnxmerge.statistics.shaped import dense_first_layer, with_shaped_noise
from onnxmerge.understanding import Understanding, understand

SOLVE_INPUTS, POOL_SHARE = 384, 5  # synthetic inputs, out of a pool so many times larger
DENSE_INPUTS, DENSE_POOL_SHARE = 2048, 2  # a dense network gives one sample an input, and costs little
STAGES = {
    "inputs": (0.0, 0.1),
    "statistics": (0.1, 0.2),
    "probes": (0.2, 0.3),
    "reconstruction": (0.3, 0.9),
    "checking": (0.9, 1.0),
}
SMALLEST_SPLIT = 16
HELD_BACK, HELD_BACK_SHARE = 128, 0.1
DOUBTFUL_FIDELITY = 0.5
PACKAGES = ("onnx", "onnx-graphsurgeon", "numpy")


def inspect(source: str | Path) -> Inspection:
    """The channel groups of a model, what each of them unlocks, and why the rest must stay."""
    understood = understand(Path(source))
    groups = tuple(unlocked_by(understood, group) for group in understood.channels.groups)
    return Inspection(str(source), understood.size, groups, understood.channels.refusals)


def compress(
    source: str | Path,
    target: str | Path,
    options: Options | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Compression:
    """Write a smaller model to `target` and return what was done. progress: told the stage and the share done, 0 to 1.

    Raises ModelError, OptionError or InputError where the user can act, VerificationError where the candidate failed the
    check; in all of these nothing is written. The target appears whole or not at all.
    """
    started = time.perf_counter()
    options = (options or Options()).sized()
    source, target = Path(source), Path(target)
    _check_target(target)
    understood = understand(source)
    if not understood.channels.groups:
        raise ModelError(_nothing_to_remove(source, understood))
    _check_not_needed(target, understood, options)
    tell = _overall(progress, options.fidelity is not None) if progress is not None else _silent
    tell("inputs", 0.0)
    solving, checking = _inputs(source, understood, options)
    found = search(Search(source, understood, options, solving, checking, tell))
    chosen = found.candidate
    tell("checking", 0.0)
    proof = prove(source, chosen.content, checking, options) if options.verify else None
    save(chosen.model, target)
    return Compression(
        source=str(source),
        target=str(target),
        before=understood.size,
        after=Size(chosen.size.parameters, chosen.size.macs, target.stat().st_size),
        groups=chosen.groups,
        refusals=chosen.refusals,
        fidelity=None if proof is None else proof.fidelity,
        latency=_beside_macs(proof, understood.size.macs, chosen.size.macs),
        warnings=(*found.warnings, *_nothing_removed(chosen), *_told_by(proof, options)),
        seconds=time.perf_counter() - started,
        seed=options.seed,
        versions=versions(),
    )


def _beside_macs(proof: Proof | None, before: int, after: int) -> Comparison | None:
    return None if proof is None or proof.latency is None else with_macs(proof.latency, before, after)


def _nothing_removed(chosen: Candidate) -> list[str]:
    return [] if chosen.groups else ["nothing was removed: the output is the model as it was; the reasons are listed"]


def _told_by(proof: Proof | None, options: Options) -> list[str]:
    """What a user should know before deploying: of the time, and of a result that drifted."""
    if proof is None:
        return []
    worst = proof.fidelity.worst
    if worst.fidelity >= DOUBTFUL_FIDELITY:
        return list(proof.warnings)
    less = "a lower --ratio" if options.ratio is not None else "a larger model"
    remedy = less if options.calibration is not None else f"{less}, or --calibration with real inputs"
    kept = f"output {worst.name} keeps only {max(0.0, worst.fidelity):.0%} of the reference's variance"
    return [*proof.warnings, f"{kept}; try {remedy}"]


def _nothing_to_remove(source: Path, understood: Understanding) -> str:
    """One line that says why."""
    layers = {label(weighted.node) for weighted in understood.channels.flow.weighted}
    refusals = sorted(understood.channels.refusals, key=lambda refusal: refusal.where not in layers)
    if not refusals:
        return f"{source}: nothing can be removed: it has no Conv, ConvTranspose, Gemm or MatMul with weights in the file"
    others = f", and {len(refusals) - 1} more reasons" if len(refusals) > 1 else ""
    return f"{source}: nothing can be removed: {refusals[0].where}: {refusals[0].reason}{others} (`onnxmerge inspect` lists them)"


def _inputs(source: Path, understood: Understanding, options: Options) -> tuple[Inputs, Inputs]:
    """Inputs to solve on and inputs to check on: other seeds of synthetic ones, a part held back of the user's."""
    provider = provider_of(options)
    session = open_session(source, provider, optimise=True, threads=options.threads, label=str(source))
    if options.calibration is None:
        hints = hints_of(understood.channels)
        check = inputs_for(session, understood.shapes, replace(options, seed=options.seed + 1, samples=None), CHECK_INPUTS, hints)
        if options.method in BY_WEIGHTS:
            return check, check
        dense = dense_first_layer(understood.channels)
        wanted = SOLVE_INPUTS if dense is None else DENSE_INPUTS
        share = POOL_SHARE if dense is None else DENSE_POOL_SHARE
        samples = None if options.samples is None else share * options.samples
        pool = inputs_for(session, understood.shapes, replace(options, samples=samples), share * wanted, hints)
        wanted = options.samples or min(wanted, pool.count // 2)
        if dense is not None:
            pool = with_shaped_noise(pool, *dense, options.seed)
        return balanced(pool, session, wanted, BATCH), check
    given = inputs_for(session, understood.shapes, options)
    if not options.verify or options.method in BY_WEIGHTS:
        return given, given
    if given.count < max(SMALLEST_SPLIT, 2 * (given.batch_size or 1)):
        return given, replace(given, source=f"{given.source}, the same that were solved on")
    return given.split(min(HELD_BACK, given.count * HELD_BACK_SHARE))


def _silent(stage: str, share: float) -> None:
    """No progress is wanted."""


def _overall(progress: Callable[[str, float], None], repeated: bool) -> Callable[[str, float], None]:
    """Shares of stages as shares of the whole, so that the time left can be told.

    repeated: nobody knows how often the reconstruction will run, so every run takes half of what is left of its stage.
    """
    reached, left = {"share": 0.0}, {"whole": 1.0}

    def tell(stage: str, share: float) -> None:
        start, end = STAGES[stage]
        if repeated and stage == "reconstruction":
            left["whole"] *= 0.5 if share < reached["share"] else 1.0
            reached["share"] = share
            share = 1.0 - left["whole"] + 0.5 * left["whole"] * share
        progress(stage, start + (end - start) * share)

    return tell


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
    for path, what in needed:
        if target.exists() and path.exists() and target.samefile(path):
            raise OptionError(f"the output {target} holds {what}; name another file")


def versions() -> dict[str, str]:
    """What the figures were made with."""
    found = {name: version(name) for name in PACKAGES}
    system = {"python": platform.python_version(), "system": platform.platform()}
    return {"onnxmerge": __version__, "onnxruntime": onnxruntime.__version__, **found, **system}
