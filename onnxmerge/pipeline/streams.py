"""`scope` stream: residual streams that normalisations read are turned into their principal directions, which can be removed."""

from dataclasses import replace
from pathlib import Path

from onnxmerge.data.selection import calibration_and_check_inputs
from onnxmerge.errors import OptionError
from onnxmerge.execution.shapes import Observations, observe
from onnxmerge.execution.threads import fixed_threads
from onnxmerge.graph.analysed_model import AnalysedModel, shapes_of, values_of
from onnxmerge.graph.channel_analysis import analyse_channels
from onnxmerge.graph.flat_bodies import has_bodies_out
from onnxmerge.graph.refusal_shares import most_important_first
from onnxmerge.graph.stream_rotation import principal_basis, rotated
from onnxmerge.graph.streams import Stream, find_streams
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio.model_files import external_files, serialise
from onnxmerge.options import silent
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.statistics.reference_run import run_context_of
from onnxmerge.statistics.stream_moments import stream_moments


def with_streams(model: Path, analysed: AnalysedModel, options: CompressOptions) -> AnalysedModel:
    """The model with its residual streams in their principal directions, where `scope` is stream; else as it is.

    Parameters
    ----------
    model : Path
        Its file.
    analysed : AnalysedModel
        The model as analysed.
    options : CompressOptions
        Of these the scope and the inputs: the directions are those of the inputs that layers are solved on.

    Raises
    ------
    OptionError
        The model has no such stream; the message says why not.
    """
    if options.pruning.scope != "stream":
        return analysed
    whole_heads = options.pruning.whole_heads
    streams, refusals = find_streams(analysed.channels.facts, whole_heads)
    if has_bodies_out(analysed.model):
        raise OptionError("`scope` stream does not reach into models with If, Loop or Scan: leave it out")
    if external_files(analysed.model):
        raise OptionError("`scope` stream needs a model with its weights in one file: leave it out")
    if not streams:
        why = f"{refusals[0].where}: {refusals[0].text}" if refusals else "no LayerNormalization or RMSNormalization reads one"
        raise OptionError(f"`scope` stream finds no residual stream that it can turn: {why}; leave it out")
    given = options.inputs, options.runtime, options.pruning, options.verify
    solving, _ = calibration_and_check_inputs(model, analysed, *given, held_out=options.held_out)
    with fixed_threads(1):  # the same bytes whatever the number of threads
        moments = stream_moments(run_context_of(analysed, solving, options.runtime.threads, silent), streams)
        centred = [stream.normalisations[0].is_centred for stream in streams]
        turned, means = rotated(streams, list(map(principal_basis, moments, centred)))
    content = serialise(turned)

    def again(before: Observations) -> Observations:
        return {**before, **observe(content, analysed.random_feeds(before), label=f"{model.name} in principal directions")}

    observed = again(analysed.observed)
    otherwise = None if analysed.observed_otherwise is None else again(analysed.observed_otherwise)
    facts = TensorFacts(turned, shapes_of(observed), values_of(observed), None if otherwise is None else shapes_of(otherwise))
    channels = analyse_channels(facts, whole_heads, means)
    channels = replace(channels, refusals=most_important_first(facts, channels.refusals, analysed.size.parameters))
    texts = (*analysed.simplifications, *map(_text, streams))
    return replace(
        analysed, model=turned, channels=channels, observed=observed, observed_otherwise=otherwise, simplifications=texts
    )


def _text(stream: Stream) -> str:
    group = stream.group
    return f"the residual stream of {group.size} channels that {group.name} writes was turned into its principal directions"
