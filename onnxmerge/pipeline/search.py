"""From what was asked for to a candidate: a ratio or a plan at once; a size, a latency or a fidelity by trying a few."""

from onnxmerge.pipeline.candidate_builder import CandidateBuilder
from onnxmerge.pipeline.candidates import SearchResult
from onnxmerge.pipeline.channel_multiples import rounded_counts
from onnxmerge.pipeline.fidelity_search import smallest_with_fidelity
from onnxmerge.pipeline.latency_search import closest_to_latency
from onnxmerge.pipeline.size_search import largest_within_size
from onnxmerge.pruning.kept_counts import kept_counts


def search(builder: CandidateBuilder) -> SearchResult:
    """The candidate that the options ask for; the whole model where no group may shrink."""
    pruning = builder.pruning
    if not builder.groups:
        return SearchResult(builder.pruned_candidate({}))
    if pruning.target is not None:
        kind, share = pruning.target
        return closest_to_latency(builder, share) if kind == "latency" else largest_within_size(builder, kind, share)
    if pruning.is_searched:
        return smallest_with_fidelity(builder)
    return SearchResult(builder.candidate(rounded_counts(builder, kept_counts(builder.groups, pruning))))
