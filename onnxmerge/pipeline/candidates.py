"""A decision carried out: the rewritten model, run once, and what became of every group."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxmerge.algorithms.criteria import keep_best
from onnxmerge.errors import ModelError, Reason, Refusal, refusal
from onnxmerge.execution.sessions import ModelSource
from onnxmerge.execution.shapes import Observations, observe
from onnxmerge.graph.analysed_model import AnalysedModel, shapes_of, size_of
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.flat_bodies import with_bodies_back
from onnxmerge.graph.rewrite import Removal, Replacement, rewrite
from onnxmerge.graph.savings import savings_of
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.model_files import serialise, stored_bytes
from onnxmerge.pruning.decision import PruningDecision
from onnxmerge.pruning.merge import absorbed
from onnxmerge.results import GroupResult, Size

GONE = "gone as a whole: what read it is constant"
"""Note of a branch of which no channel stays."""


Solve = Callable[[Sequence[Removal]], Mapping[str, Replacement]]
"""Removals -> the new weights and biases that go with them, by key of the layer."""


@dataclass(frozen=True)
class Candidate:
    """A smaller model that runs, not yet written.

    Attributes
    ----------
    model : Model
        The rewritten model.
    content : ModelSource
        The same as bytes, or as a file, to be opened.
    size : Size
        Its parameters, MACs and bytes.
    groups : tuple[GroupResult, ...]
        What became of every group that shrank.
    refusals : tuple[Refusal, ...]
        Why the other layers stay as they are.
    kept : dict[str, tuple[int, ...]]
        The channels that stay, by name of the group; groups that stay whole are not in it.
    only_pruned : bool
        Whether pruning was taken in the place of method auto, because its outputs stay closer.
    """

    model: Model
    content: ModelSource
    size: Size
    groups: tuple[GroupResult, ...]
    refusals: tuple[Refusal, ...]
    kept: dict[str, tuple[int, ...]]
    only_pruned: bool = False

    def remaining_share(self, kind: str, original: Size) -> float:
        """Share of the parameters ("params") or MACs ("macs") of the original that it has."""
        own, whole = (getattr(size, {"params": "parameters"}.get(kind, kind)) for size in (self.size, original))
        return float(own / max(1, whole))


@dataclass(frozen=True)
class SearchResult:
    """The candidate that was searched for.

    Attributes
    ----------
    candidate : Candidate
        The model.
    warnings : tuple[str, ...]
        What the user should know of the search.
    latency_ratio : float or None
        Its latency over the reference's, None where it was not measured.
    missed : str
        That its outputs keep less than was asked for, as a sentence; empty where they keep it.
    unreached : str
        That it has not the size that was asked for, as a sentence; empty where it has.
    """

    candidate: Candidate
    warnings: tuple[str, ...] = ()
    latency_ratio: float | None = None
    missed: str = ""
    unreached: str = ""


def candidate_of(analysed: AnalysedModel, decision: PruningDecision, solve: Solve = absorbed) -> Candidate:
    """Carry out a decision.

    Parameters
    ----------
    analysed : AnalysedModel
        The model, which is left as it is.
    decision : PruningDecision
        What is removed from it, and what replaces that.
    solve : callable
        Gives what replaces only some of the removals, or smaller ones.

    Returns
    -------
    Candidate
        Removals that do not run together with the others are of fewer channels, or left out and refused.

    Raises
    ------
    ModelError
        Where the model does not run although nothing, or nothing that could be at fault, was removed.
    """
    removals, refusals = decision.removals, decision.refusals
    try:
        model, content, size = _rewritten(analysed, removals, decision.replacements)
    except ModelError:
        removals, refused = _removals_that_run(analysed, decision)
        if not refused and all(one is other for one, other in zip(removals, decision.removals, strict=True)):
            raise
        refusals = (*refusals, *refused)
        model, content, size = _rewritten(analysed, removals, solve(removals))
    return Candidate(
        model=model,
        content=content,
        size=size,
        groups=tuple(map(_shrunk_group, removals)),
        refusals=(*analysed.channels.refusals, *refusals),
        kept={removal.group.name: tuple(removal.kept.tolist()) for removal in removals},
    )


def _removals_that_run(analysed: AnalysedModel, decision: PruningDecision) -> tuple[tuple[Removal, ...], list[Refusal]]:
    """The removals that run one after the other, of fewer channels where not as decided, and why the others do not."""
    accepted: tuple[Removal, ...] = ()
    refused: list[Refusal] = []
    for removal in decision.removals:
        why: ModelError | None = None
        for attempt in _ever_smaller(removal):
            tried = (*accepted, attempt)
            try:
                _rewritten(analysed, tried, _fitting_replacements(decision, tried))
                accepted, why = tried, None
                break
            except ModelError as error:
                why = why or error
        if why is not None:
            refused += [refusal(name, Reason.DOES_NOT_RUN, error=why) for name in removal.group.layer_names]
    return accepted, refused


def _ever_smaller(removal: Removal) -> Iterator[Removal]:
    """The removal, then prunings of half of its channels, of a quarter, and so on: the strongest by their weights come back."""
    yield removal
    group, is_kept = removal.group, np.zeros(removal.group.size, bool)
    is_kept[removal.kept] = True
    strength = np.sum([np.square(producer.rows()).sum(1) for producer in group.producers], axis=0)
    conv_groups = group.conv_group_count
    removed = (group.size - len(removal.kept)) // conv_groups
    while removed := removed // 2:
        kept = keep_best(strength, group.size - removed * conv_groups, ~is_kept, group.conv_groups)
        yield Removal(group, kept, "prune")


def _fitting_replacements(decision: PruningDecision, removals: tuple[Removal, ...]) -> dict[str, Replacement]:
    """Those that fit where only some removals are carried out, to try whether that runs: they were solved for all removals.

    None of a consumer that keeps reading a whole group.
    """
    left_out = [removal for removal in decision.removals if all(removal is not other for other in removals)]
    groups = [removal.group for removal in left_out]
    whole = {each.key for group in groups for each in (*group.consumers, *(group.producers if group.products else ()))}
    return {key: value for key, value in decision.replacements.items() if key not in whole}


def _rewritten(
    analysed: AnalysedModel, removals: tuple[Removal, ...], replacements: Mapping[str, Replacement]
) -> tuple[Model, ModelSource, Size]:
    """The rewritten model, the same to be opened, and its size. ModelError where it does not run as before."""
    flat = rewrite(analysed.channels, removals, replacements)
    model = with_bodies_back(flat)
    content = serialise(model)
    observed = _observed(content, analysed, analysed.observed)
    if model is not flat:
        observed |= _observed(serialise(flat), analysed, analysed.observed)
    if analysed.observed_otherwise is not None:
        _observed(content, analysed, analysed.observed_otherwise)
    return model, content, size_of(model, {**analysed.shapes, **shapes_of(observed)}, stored_bytes(content))


def _observed(content: ModelSource, analysed: AnalysedModel, reference: Observations) -> Observations:
    """A run on inputs of the reference's sizes. ModelError where an output has another shape than there."""
    observed = observe(content, analysed.random_feeds(reference), label="the compressed model")
    fed = {dim for tensor in analysed.model.graph.inputs for dim in tensor.shape or ()}
    for tensor in analysed.model.graph.outputs:
        before, after = reference.get(tensor.name), observed.get(tensor.name)
        if before is not None and (after is None or not _fits(before.shape, after.shape, tensor, fed)):
            raise ModelError(f"output {tensor.name} would change its shape from {before.shape} to {after and after.shape}")
    return observed


def _fits(before: tuple[int, ...], after: tuple[int, ...], tensor: gs.Tensor, fed: Container[int | str | None]) -> bool:
    """Whether an output has the sizes that it had, but for open ones that no input has: these may count what was found."""
    declared = [*(tensor.shape or ()), *[""] * len(before)]
    return len(before) == len(after) and all(
        own == other or (isinstance(dim, str) and dim != "" and dim not in fed)
        for own, other, dim in zip(before, after, declared, strict=False)
    )


def whole_group(group: ChannelGroup) -> GroupResult:
    """A group with all of its channels."""
    return GroupResult(
        name=group.name,
        channels=group.size,
        removable=int(group.removable.sum()),
        kept=group.size,
        method="",
        producers=tuple(layer.name for layer in group.producers),
        consumers=tuple(layer.name for layer in group.consumers),
        note=_reason_to_stay(group),
    )


def with_savings(
    analysed: AnalysedModel, groups: Iterable[GroupResult], kept: Mapping[str, Sequence[int]]
) -> tuple[GroupResult, ...]:
    """Groups with what they save where these channels stay, by name of the group."""
    saved = savings_of(analysed.channels, analysed.shapes, {name: np.asarray(each, np.int64) for name, each in kept.items()})
    of_none = (0.0, 0.0, 0.0)
    shares = [(group, saved.get(group.name, of_none)) for group in groups]
    return tuple(
        replace(group, parameters_saved=parameters, macs_saved=macs, time_saved=time)
        for group, (parameters, macs, time) in shares
    )


def _reason_to_stay(group: ChannelGroup) -> str:
    """Why channels of a group must stay, empty where all may go."""
    if group.refusal is None:
        return "" if group.is_entered else Reason.NOT_ENTERED.value
    return f"{group.refusal.text} ({group.refusal.where})" if group.refusal.where else group.refusal.text


def _shrunk_group(removal: Removal) -> GroupResult:
    """A group after a removal."""
    return replace(
        whole_group(removal.group),
        kept=len(removal.kept),
        method=removal.method,
        expected_error=dict(removal.expected_error),
        note=removal.note or (_reason_to_stay(removal.group) if len(removal.kept) else GONE),
    )
