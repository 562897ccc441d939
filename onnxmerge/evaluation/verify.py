"""`verify`: how close the outputs of one file are to another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnxmerge.data.labels import read_labels
from onnxmerge.data.saving import save_feeds
from onnxmerge.data.selection import BATCH, inputs_for
from onnxmerge.evaluation.check import compared
from onnxmerge.evaluation.fidelity import accuracy
from onnxmerge.evaluation.layer_checks import layer_drift, mistakes_of, small_enough
from onnxmerge.evaluation.node_views import wiring_of
from onnxmerge.evaluation.thresholds import failures_of, thresholds_wished
from onnxmerge.execution.providers import provider_of
from onnxmerge.execution.sessions import open_pair
from onnxmerge.execution.shapes import observed_shapes
from onnxmerge.onnxio.files import check_place
from onnxmerge.onnxio.model_files import weights_beside
from onnxmerge.options import Options
from onnxmerge.results import Accuracy, Fidelity


def verify(reference: str | Path, candidate: str | Path, options: Options | None = None) -> tuple[Fidelity, list[str]]:
    """Compare two files; also what failed.

    Without thresholds a mean cosine of 0.9 is asked for, and where no channel was removed outputs that are equal to rounding.
    """
    reference, candidate, options = Path(reference), Path(candidate), options or Options()
    _check_place(reference, candidate, options)
    provider = provider_of(options)
    pair = open_pair(reference, candidate, provider, optimise=False, threads=options.threads)
    wirings = [wiring_of(model, str(model)) for model in (reference, candidate)]
    shapes = observed_shapes(reference)
    inputs = inputs_for(pair[0], shapes, options)
    labels = None if options.labels is None else read_labels(options.labels, inputs)
    same_layers = wirings[0].layers == wirings[1].layers
    suspected = not same_layers and not thresholds_wished(options) and small_enough(shapes)
    drift = layer_drift(reference, candidate, inputs, shapes) if options.layers or suspected else None
    fidelity = replace(
        compared(pair, inputs),
        same_layers=same_layers,
        accuracy=None if labels is None else Accuracy(*(accuracy(side, inputs.batches(BATCH), labels) for side in pair)),
        layers=drift if options.layers else None,
    )
    if options.save_worst is not None:
        save_feeds(options.save_worst, inputs.feeds_with(fidelity.worst.worst_input))
    new = [place for place in wirings[1].not_finite() if place not in wirings[0].not_finite()]
    return fidelity, [*new, *failures_of(fidelity, options, wirings[1].float_types), *mistakes_of(drift)]


def _check_place(reference: Path, candidate: Path, options: Options) -> None:
    files = {"the reference": reference, "the candidate": candidate}
    files |= {"the calibration inputs": options.calibration} if options.calibration is not None else {}
    files |= {"the labels": options.labels} if options.labels is not None else {}
    if options.save_worst is not None:
        files |= weights_beside(reference) | weights_beside(candidate)
        check_place(options.save_worst, "the worst input", files)
