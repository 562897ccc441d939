"""A plan done: the rewritten model, run once, with what became of every group."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxmerge.errors import ModelError, Reason, Refusal, refusal
from onnxmerge.execution.sessions import ModelSource
from onnxmerge.execution.shapes import Observations, observe
from onnxmerge.graph.analysed_model import AnalysedModel, size_of
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.cost import node_macs, node_parameters
from onnxmerge.graph.rewrite import Removal, Replacement, rewrite
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.model_files import serialise, stored_bytes
from onnxmerge.pruning.plan import Plan
from onnxmerge.results import GroupResult, Size


@dataclass(frozen=True)
class Candidate:
    """A smaller model that runs, not yet written: where it can be opened, what it weighs, what was done and what was not.

    kept: by group, the channels that stay; groups that stay whole are not in it. alone: pruning alone was taken.
    """

    model: Model
    content: ModelSource
    size: Size
    groups: tuple[GroupResult, ...]
    refusals: tuple[Refusal, ...]
    kept: dict[str, tuple[int, ...]]
    alone: bool = False


def candidate_of(analysed: AnalysedModel, plan: Plan) -> Candidate:
    """Remove the channels and run the result once. What cannot be removed together is found group by group and refused."""
    results = {id(removal): _result(analysed, removal) for removal in plan.removals}
    accepted, refused = plan.removals, plan.refusals
    try:
        model, content, size = _applied(analysed, accepted, plan.replacements)
    except ModelError as error:
        if not plan.removals:
            raise
        accepted, more = _accepted(analysed, plan)
        if not more:
            raise error
        refused = (*refused, *more)
        model, content, size = _applied(analysed, accepted, _left(plan, accepted))
    groups = tuple(results[id(removal)] for removal in accepted)
    kept = {removal.group.name: tuple(removal.kept.tolist()) for removal in accepted}
    return Candidate(model, content, size, groups, (*analysed.channels.refusals, *refused), kept)


def _accepted(analysed: AnalysedModel, plan: Plan) -> tuple[tuple[Removal, ...], list[Refusal]]:
    """The removals that work one after the other, and why the others do not."""
    accepted: tuple[Removal, ...] = ()
    refused: list[Refusal] = []
    for removal in plan.removals:
        try:
            _applied(analysed, (*accepted, removal), _left(plan, (*accepted, removal)))
            accepted = (*accepted, removal)
        except ModelError as error:
            refused += [refusal(name, Reason.DOES_NOT_RUN, error=error) for name in removal.group.layer_names]
    return accepted, refused


def _left(plan: Plan, removals: tuple[Removal, ...]) -> dict[str, Replacement]:
    """The replacements that still fit when only some removals are done: none of a consumer that keeps reading all of a group."""
    refused = [removal for removal in plan.removals if all(removal is not other for other in removals)]
    keys = {link.key for removal in refused for link in removal.group.consumers}
    return {key: value for key, value in plan.replacements.items() if key not in keys}


def _applied(
    analysed: AnalysedModel, removals: tuple[Removal, ...], replaced: dict[str, Replacement]
) -> tuple[Model, ModelSource, Size]:
    """The rewritten model, where it can be opened, and its size; it must run as before and its outputs must keep their shapes."""
    model = rewrite(analysed.channels, removals, replaced)
    content = serialise(model)
    observed = _observed(content, analysed, analysed.observed)
    if analysed.observed_otherwise is not None:
        _observed(content, analysed, analysed.observed_otherwise)
    return model, content, size_of(model, {name: seen.shape for name, seen in observed.items()}, stored_bytes(content))


def _observed(content: ModelSource, analysed: AnalysedModel, reference: Observations) -> Observations:
    """A run on inputs of the reference's sizes; ModelError where an output has another shape than there."""
    observed = observe(content, analysed.random_feeds(reference), label="the compressed model")
    for tensor in analysed.model.graph.outputs:
        before, after = reference.get(tensor.name), observed.get(tensor.name)
        if before is not None and (after is None or after.shape != before.shape):
            raise ModelError(f"output {tensor.name} would change its shape from {before.shape} to {after and after.shape}")
    return observed


def unlocked_by(analysed: AnalysedModel, group: ChannelGroup) -> GroupResult:
    """What a group is and what shrinks with it."""
    facts, shapes, size = analysed.channels.facts, analysed.shapes, analysed.size
    links = {link.key: link for link in (*group.producers, *group.consumers)}.values()
    return GroupResult(
        name=group.name,
        channels=group.size,
        removable=int(group.removable.sum()),
        kept=group.size,
        method="",
        producers=tuple(link.name for link in group.producers),
        consumers=tuple(link.name for link in group.consumers),
        parameters_share=sum(node_parameters(facts, link.node) for link in links) / max(1, size.parameters),
        macs_share=sum(node_macs(link.node, shapes) for link in links) / max(1, size.macs),
        note=_note(group),
    )


def _note(group: ChannelGroup) -> str:
    """Why channels of a group must stay."""
    if group.refusal is None:
        return ""
    return f"{group.refusal.text} ({group.refusal.where})" if group.refusal.where else group.refusal.text


def _result(analysed: AnalysedModel, removal: Removal) -> GroupResult:
    """The same with what became of it; asked for before anything is rewritten."""
    return replace(
        unlocked_by(analysed, removal.group),
        kept=len(removal.kept),
        method=removal.method,
        expected_error=dict(removal.expected_error),
        note=removal.note or _note(removal.group),
    )
