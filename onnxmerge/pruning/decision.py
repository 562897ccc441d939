"""From options to a decision: which channels of which groups are removed, and what replaces them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.merge_validity import pre_activations
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.options import PruningOptions
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.importance import are_given
from onnxmerge.pruning.layer_statistics import LayerStatistics
from onnxmerge.pruning.masked_means import means_over
from onnxmerge.pruning.merge import absorbed
from onnxmerge.pruning.methods import METHODS, best_removal
from onnxmerge.pruning.solve_consumers import solve_consumers


@dataclass(frozen=True)
class PruningDecision:
    """What is to be done, and nothing done yet: `rewrite` takes it.

    Attributes
    ----------
    removals : tuple of Removal
        What is removed from each group that shrinks.
    replacements : dict[str, Replacement]
        New weights and biases by key of the layer.
    refusals : tuple of Refusal
        Why other layers stay whole.
    """

    removals: tuple[Removal, ...]
    replacements: dict[str, Replacement]
    refusals: tuple[Refusal, ...]


def decide(
    analysed: AnalysedModel, options: PruningOptions, statistics: LayerStatistics | None, counts: Mapping[str, int]
) -> PruningDecision:
    """Which channels every group keeps, and what replaces the others.

    Parameters
    ----------
    analysed : AnalysedModel
        The model.
    options : PruningOptions
        What is removed and how.
    statistics : LayerStatistics or None
        What was observed of the model; None where `options.uses_weights_only`.
    counts : Mapping[str, int]
        Kept channels by name of the group.

    Returns
    -------
    PruningDecision
        Groups for which the method is not valid stay whole, with the reason.

    Raises
    ------
    OptionError
        A pattern or a plan that does not fit the model.
    """
    groups, refusals = prunable_groups(analysed.channels, options)
    shrinking = [group for group in groups if counts[group.name] < group.size]
    for group in [group for group in groups if counts[group.name] == group.size]:
        reason = _reason_to_stay_whole(analysed.channels, group, options)
        refusals += [replace(reason, where=name) for name in group.layer_names]
    if statistics is None:
        method = METHODS[options.method]
        outcomes = [(group, method(analysed.channels, group, counts[group.name], options, None)) for group in shrinking]
        refused = [(group, each) for group, each in outcomes if isinstance(each, Refusal)]
        refusals += [replace(each, where=name) for group, each in refused for name in group.layer_names]
        removals = [_told(analysed.channels, each) for _, each in outcomes if isinstance(each, Removal)]
        return PruningDecision(tuple(removals), absorbed(removals), tuple(refusals))
    best = (best_removal(statistics, group, counts[group.name], options) for group in shrinking)
    removals = [_told(analysed.channels, removal) for removal in best]
    statistics.forget_expected_errors()
    given = {removal.group.name for removal in removals if are_given(removal.group, options)}
    removals, replacements = _solved(statistics, removals, given)
    return PruningDecision(tuple(removals), replacements, tuple(refusals))


def replacements_for(statistics: LayerStatistics | None, removals: Sequence[Removal]) -> dict[str, Replacement]:
    """New weights and biases by key of the layer where these removals are carried out, and no others; statistics: of `decide`."""
    if statistics is None:
        return absorbed(removals)
    return _solved(statistics, removals, {removal.group.name for removal in removals})[1]


def _told(channels: Channels, removal: Removal) -> Removal:
    """The same, and of a residual stream that its channels are principal directions."""
    if not means_over(channels, [removal.group]):
        return removal
    note = f"residual stream of {removal.group.size} channels to {len(removal.kept)} principal directions"
    return replace(removal, note="; ".join(filter(None, (note, removal.note))))


def _reason_to_stay_whole(channels: Channels, group: ChannelGroup, options: PruningOptions) -> Refusal:
    """Why a group keeps all of its channels, without a place."""
    compared = pre_activations(channels, group) if options.method == "merge" else None
    if isinstance(compared, Refusal):
        return compared
    return refusal("", Reason.ALL_KEPT) if options.ratio is None else refusal("", Reason.RATIO_TOO_SMALL, ratio=options.ratio)


def _solved(
    statistics: LayerStatistics, removals: Sequence[Removal], given: Collection[str]
) -> tuple[list[Removal], dict[str, Replacement]]:
    """The removals, and new weights of all consumers: solved, but those of groups that no consumer is solved for.

    given: names of the groups whose channels are not chosen once more.
    """
    merged = absorbed(removals)
    solved = {each.key for removal in removals if removal.method == "reconstruct" for each in removal.group.consumers}
    unsolved = {each.key for removal in removals for each in removal.group.consumers} - solved
    unsolved -= statistics.reference.too_wide.keys()  # their means are kept
    replaced = {key: merged.get(key) for key in unsolved}
    return solve_consumers(statistics, removals, replaced, given)
