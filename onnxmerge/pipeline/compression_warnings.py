"""What a user should know of a compressed model before deploying it."""

import numpy as np

from onnxmerge.data.inputs import Inputs
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.traversal import constants
from onnxmerge.options import DEFAULT_CHANGED_DECISIONS, DEFAULT_FIDELITY
from onnxmerge.pipeline.candidates import Candidate, SearchResult
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.latency_search import LATENCY_TOLERANCE
from onnxmerge.pruning.kept_counts import fast_multiple
from onnxmerge.results import Fidelity, LatencyComparison, Size
from onnxmerge.results.fidelity_warnings import constant_outputs, few_inputs, lost_parts, unsure_decisions

LITTLE = 0.02
"""Share of a model that is next to nothing: no runtime is measurably faster without it."""


def warnings_of(
    found: SearchResult, original: Size, fidelity: Fidelity | None, checking: Inputs, options: CompressOptions
) -> tuple[str, ...]:
    """All warnings of a compression; what its figures say, that it is slower, larger or far off, the verdict of a report says.

    Parameters
    ----------
    found : SearchResult
        The result, with the warnings of the search.
    original : Size
        Of the model before.
    fidelity : Fidelity or None
        What was measured of it, None where it was not.
    checking : Inputs
        Inputs it was measured on.
    options : CompressOptions
        What was asked for.
    """
    outputs = () if fidelity is None else (*lost_parts(fidelity), *_no_decisions(fidelity, options), *constant_outputs(fidelity))
    most = options.pruning.max_changed_decisions
    return (
        *found.warnings,
        *([found.missed] if found.missed and not options.verify else []),
        *_faster_than_asked(found, options),
        *_next_to_nothing(found, original),
        *_few_inputs(checking, options),
        *outputs,
        *(() if fidelity is None or not found.candidate.kept else unsure_decisions(fidelity, most)),
        *checking.warnings(),
        *_limited_weights(found.candidate.model),
    )


def _next_to_nothing(found: SearchResult, original: Size) -> list[str]:
    """Where hardly anything was removed, of parameters and of MACs: the reason that keeps the most."""
    size = found.candidate.size
    left = min(size.parameters / max(1, original.parameters), size.macs / max(1, original.macs))
    if not found.candidate.groups or left < 1.0 - LITTLE:
        return []
    kept = max(found.candidate.refusals, key=lambda each: (-each.reason.order, each.parameters_share), default=None)
    why = f"; {kept.where} keeps its channels: {kept.text}" if kept is not None and kept.where else ""
    return [f"only {1.0 - left:.1%} of the model was removed{why}"]


def _no_decisions(fidelity: Fidelity, options: CompressOptions) -> list[str]:
    """Where a share of the decisions was asked for and no output has any."""
    asked = options.pruning.max_changed_decisions
    if asked in (None, DEFAULT_CHANGED_DECISIONS) or any(output.has_decisions for output in fidelity.outputs):
        return []
    kept = f"a fidelity of {options.pruning.fidelity or DEFAULT_FIDELITY:g} was kept in place of `max_changed_decisions`"
    return [f"no output holds best classes for certain (class scores, the result of a Softmax), so that {kept}"]


def _limited_weights(model: Model) -> list[str]:
    """Where new float16 weights are as large as they can be, and would be larger."""
    stored = ((each.name, gs.stored_values(each)) for each in constants(model.graph))
    new = ((name, values) for name, values in stored if isinstance(values, np.ndarray) and values.dtype == np.float16)
    limited = [name for name, values in new if float(np.abs(values).max(initial=0)) == np.finfo(np.float16).max]
    if not limited:
        return []
    return [f"{limited[0]} would hold larger numbers than float16 has, 65504 at most: compress the model in float32"]


def unreached_target(found: SearchResult, latency: LatencyComparison | None, options: CompressOptions) -> str:
    """That a model has another size, or takes longer, than was asked for, as a sentence; empty where it has that."""
    kind, share = options.pruning.target or ("", 0.0)
    ratio = found.latency_ratio if latency is None else latency.latency_ratio
    if kind != "latency" or ratio is None or ratio / share - 1.0 <= LATENCY_TOLERANCE:
        return found.unreached
    return f"latency={share:g} was not reached within {LATENCY_TOLERANCE:.0%}: it takes {ratio:.2f} of the time"


def _faster_than_asked(found: SearchResult, options: CompressOptions) -> list[str]:
    """That more went than was needed, where every model that was timed is far from the latency that was asked for."""
    kind, share = options.pruning.target or ("", 0.0)
    if kind != "latency" or found.latency_ratio is None or found.latency_ratio / share - 1.0 >= -LATENCY_TOLERANCE:
        return []
    return [f"latency={share:g} was asked for, and the closest model found takes {found.latency_ratio:.2f} of the time"]


def _few_inputs(checking: Inputs, options: CompressOptions) -> list[str]:
    needs_them = options.verify or options.pruning.is_searched
    return few_inputs(checking.count, checking.description) if needs_them else []


def odd_widths(candidate: Candidate, options: CompressOptions) -> str:
    """How many groups keep counts that convolutions do not compute at once, and what to do; empty where none does."""
    odd = sum(group.kept % fast_multiple(group.channels) != 0 for group in candidate.groups)
    if not odd or options.pruning.whole_heads or options.pruning.round_to == "measured":
        return ""
    remedy = "try whole multiples" if options.pruning.plan is not None else "try `round_to=measured`"
    return f"{odd} of {len(candidate.groups)} groups keep counts that convolutions do not compute at once: {remedy}"
