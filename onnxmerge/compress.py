"""The pipeline: load, understand, decide, rewrite, prove, write."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnxruntime

from onnxmerge import __version__
from onnxmerge.errors import ModelError, OptionError
from onnxmerge.graph.channels import ChannelGroup
from onnxmerge.graph.cost import macs_of
from onnxmerge.graph.flow import label
from onnxmerge.graph.io import Model, save, serialise
from onnxmerge.graph.rewrite import Removal, Replacement, apply
from onnxmerge.graph.weights import parameters_of
from onnxmerge.methods.by_weights import BY_WEIGHTS
from onnxmerge.methods.planning import Plan, decide
from onnxmerge.options import Options
from onnxmerge.proof import BATCH, CHECK_INPUTS, inputs_for, prove
from onnxmerge.results import Compression, Fidelity, GroupResult, Inspection, Refusal, Size
from onnxmerge.runtime.sessions import open_session
from onnxmerge.runtime.shapes import Observations, observe
from onnxmerge.statistics.balance import balanced
from onnxmerge.statistics.inputs import Inputs
from onnxmerge.statistics.shaped import dense_first_layer, with_shaped_noise
from onnxmerge.understanding import Understanding, measure, understand

SOLVE_INPUTS, POOL_SHARE = 384, 5  # synthetic inputs, out of a pool so many times larger
DENSE_INPUTS = 2048  # a dense network gives one sample an input, and costs little
SMALLEST_SPLIT = 16
HELD_BACK, HELD_BACK_SHARE = 128, 0.1
DOUBTFUL_FIDELITY = 0.5
PACKAGES = ("onnx", "onnx-graphsurgeon", "numpy")


def inspect(source: str | Path) -> Inspection:
    """The channel groups of a model, what each of them unlocks, and why the rest must stay."""
    understood = understand(Path(source))
    groups = tuple(_unlocked(understood, group) for group in understood.channels.groups)
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
    options = options or Options()
    source, target = Path(source), Path(target)
    _check_target(target)
    understood = understand(source)
    if not understood.channels.groups:
        raise ModelError(_nothing_to_remove(source, understood))
    tell = progress or _silent
    solving, checking = _inputs(source, understood, options)
    decided = decide(understood, options, solving, tell)
    results = {id(removal): _result(understood, removal) for removal in decided.removals}
    model, observed, accepted, failed = _rewrite(source, understood, decided)
    proto_bytes = serialise(model)
    after = measure(model, {name: seen.shape for name, seen in observed.items()}, len(proto_bytes))
    proof = prove(source, proto_bytes, checking, options) if options.verify else None
    save(model, target)
    return Compression(
        source=str(source),
        target=str(target),
        before=understood.size,
        after=Size(after.parameters, after.macs, target.stat().st_size),
        groups=tuple(results[id(removal)] for removal in accepted),
        refusals=(*understood.channels.refusals, *decided.refusals, *failed),
        fidelity=None if proof is None else proof.fidelity,
        latency=None if proof is None else proof.latency,
        warnings=(*_nothing_removed(accepted), *(() if proof is None else (*proof.warnings, *_doubts(proof.fidelity, options)))),
        seconds=time.perf_counter() - started,
        seed=options.seed,
        versions=versions(),
    )


def _nothing_removed(accepted: tuple[Removal, ...]) -> list[str]:
    return [] if accepted else ["nothing was removed: the output is the model as it was; the reasons are listed"]


def _doubts(fidelity: Fidelity, options: Options) -> list[str]:
    """What a user should know before deploying a result that drifted."""
    worst = fidelity.worst
    if worst.fidelity >= DOUBTFUL_FIDELITY:
        return []
    remedy = "a lower --ratio" if options.calibration is not None else "a lower --ratio, or --calibration with real inputs"
    return [f"output {worst.name} keeps only {max(0.0, worst.fidelity):.0%} of the reference's variance; try {remedy}"]


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
    session = open_session(source, optimise=True, label=str(source))
    if options.calibration is None:
        check = inputs_for(session, understood.shapes, replace(options, seed=options.seed + 1, samples=None), CHECK_INPUTS)
        if options.method in BY_WEIGHTS:
            return check, check
        dense = dense_first_layer(understood.channels)
        wanted = options.samples or (SOLVE_INPUTS if dense is None else DENSE_INPUTS)
        share = POOL_SHARE if dense is None else 2
        pool = inputs_for(session, understood.shapes, replace(options, samples=None), share * wanted)
        if dense is not None:
            pool = with_shaped_noise(pool, *dense, options.seed)
        return balanced(pool, session, min(wanted, pool.count // 2), BATCH), check
    given = inputs_for(session, understood.shapes, options)
    if not options.verify or given.count < SMALLEST_SPLIT:
        return given, given
    return given.split(min(HELD_BACK, given.count * HELD_BACK_SHARE))


def _silent(stage: str, share: float) -> None:
    """No progress is wanted."""


def _rewrite(
    source: Path, understood: Understanding, plan: Plan
) -> tuple[Model, Observations, tuple[Removal, ...], list[Refusal]]:
    """Remove the channels and run the result once. What cannot be removed together is found group by group and refused."""
    try:
        return *_applied(understood, plan.removals, plan.replacements), plan.removals, []
    except (ModelError, ValueError) as error:
        if not plan.removals:
            raise
        first_error = error
    accepted: tuple[Removal, ...] = ()
    refused: list[Refusal] = []
    for removal in plan.removals:
        try:
            _applied(fresh := understand(source), _moved(fresh, (*accepted, removal)), _left(plan, (*accepted, removal)))
            accepted = (*accepted, removal)
        except (ModelError, ValueError) as error:
            reason = f"the model would not run without its channels: {error}"
            refused += [Refusal(name, reason) for name in removal.group.layers]
    if not refused:
        raise first_error
    fresh = understand(source)
    return *_applied(fresh, _moved(fresh, accepted), _left(plan, accepted)), accepted, refused


def _left(plan: Plan, removals: tuple[Removal, ...]) -> dict[str, Replacement]:
    """The replacements that still fit when only some removals are done: none of a consumer that keeps reading all of a group."""
    refused = [removal for removal in plan.removals if all(removal is not other for other in removals)]
    keys = {link.key for removal in refused for link in removal.group.consumers}
    return {key: value for key, value in plan.replacements.items() if key not in keys}


def _moved(fresh: Understanding, removals: tuple[Removal, ...]) -> tuple[Removal, ...]:
    """The same removals on another load of the same file."""
    groups = {group.producers[0].key: group for group in fresh.channels.groups}
    return tuple(replace(removal, group=groups[removal.group.producers[0].key]) for removal in removals)


def _applied(
    understood: Understanding, removals: tuple[Removal, ...], replaced: dict[str, Replacement]
) -> tuple[Model, Observations]:
    """The rewritten model and its shapes in the same tiny run; its outputs must keep their shapes."""
    apply(understood.channels, removals, replaced)
    model = understood.model
    observed = observe(serialise(model), understood.feeds, label="the compressed model")
    for tensor in model.graph.outputs:
        before, after = understood.observed.get(tensor.name), observed.get(tensor.name)
        if before is not None and (after is None or after.shape != before.shape):
            raise ModelError(f"output {tensor.name} would change its shape from {before.shape} to {after and after.shape}")
    return model, observed


def _unlocked(understood: Understanding, group: ChannelGroup) -> GroupResult:
    """What a group is and what shrinks with it."""
    flow, shapes, size = understood.channels.flow, understood.shapes, understood.size
    links = {link.key: link for link in (*group.producers, *group.consumers)}.values()
    return GroupResult(
        name=group.name,
        channels=group.size,
        removable=int(group.removable.sum()),
        kept=group.size,
        method="",
        producers=tuple(link.name for link in group.producers),
        consumers=tuple(link.name for link in group.consumers),
        parameters_share=sum(parameters_of(flow, link.node) for link in links) / max(1, size.parameters),
        macs_share=sum(macs_of(link.node, shapes) for link in links) / max(1, size.macs),
        note=group.reason,
    )


def _result(understood: Understanding, removal: Removal) -> GroupResult:
    """The same with what became of it; asked for before anything is rewritten."""
    return replace(
        _unlocked(understood, removal.group),
        kept=len(removal.kept),
        method=removal.method,
        expected_error=dict(removal.expected_error),
        note=removal.note or removal.group.reason,
    )


def _check_target(target: Path) -> None:
    folder = target.resolve().parent
    if not folder.is_dir():
        raise OptionError(f"the output folder {folder} does not exist; create it first")
    if target.is_dir():
        raise OptionError(f"the output {target} is a folder; name a file")


def versions() -> dict[str, str]:
    """What the figures were made with."""
    found = {name: version(name) for name in PACKAGES}
    return {"onnxmerge": __version__, "onnxruntime": onnxruntime.__version__, **found}
