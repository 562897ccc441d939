"""How close and how much faster a candidate is: the part of the pipeline that measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxmerge.errors import InputError, ModelError, VerificationError
from onnxmerge.files import check_place
from onnxmerge.graph.cost import total_macs
from onnxmerge.graph.io import load, weights_beside
from onnxmerge.judging import failures_of, layer_drift, missed_thresholds, mistakes_of, small_enough, thresholds_wished
from onnxmerge.options import Options, provider_of
from onnxmerge.results import Accuracy, Bench, Comparison, Fidelity
from onnxmerge.runtime.execution import execution_of
from onnxmerge.runtime.fidelity import accuracy, compare
from onnxmerge.runtime.latency import compare_latency
from onnxmerge.runtime.providers import Provider
from onnxmerge.runtime.sessions import Session, open_session
from onnxmerge.runtime.shapes import observe_twice
from onnxmerge.runtime.wiring import wiring_of
from onnxmerge.statistics.hints import Hints, spread
from onnxmerge.statistics.inputs import ImageRange, Inputs, calibration_inputs, synthetic_inputs
from onnxmerge.statistics.labels import read_labels
from onnxmerge.statistics.saving import save_feeds

CHECK_INPUTS = 256
INPUT_ELEMENTS = 128 * 3 * 224 * 224  # large inputs are checked with fewer of them
BATCH = 32

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Effort:
    """How well a latency is measured: seconds, rounds of freshly opened sessions, and at least so many calls."""

    seconds: float
    rounds: int
    calls: int


USUAL = Effort(4.0, 16, 20)
TRIAL = Effort(1.5, 16, 8)
SURE = Effort(8.0, 48, 20)  # for a latency that was asked for: sessions of one model differ more than calls do


@dataclass(frozen=True)
class Proof:
    """What was measured, and what a user should know about it."""

    fidelity: Fidelity
    latency: Comparison | None
    warnings: tuple[str, ...]


def inputs_for(
    session: Session, shapes: Shapes, options: Options, count: int = CHECK_INPUTS, hints: Hints | None = None
) -> Inputs:
    """Calibration inputs where the user gave some, synthetic ones elsewhere; hints: what the graph says of its inputs."""
    hints = hints or Hints()
    image_range = _image_range(options)
    if options.calibration is not None:
        given = calibration_inputs(options.calibration, session.inputs, shapes, image_range)
        if options.samples is None or given.count <= options.samples or given.batch_size is not None:
            return given
        return given.chosen(np.linspace(0, given.count - 1, options.samples).astype(np.int64), "evenly chosen")
    count = options.samples or min(count, _affordable(shapes, session))
    made = synthetic_inputs(session.inputs, shapes, count, options.seed, image_range, hints.limits)
    return made if image_range is not None else spread(made, hints)


def _image_range(options: Options) -> ImageRange | None:
    """None where nothing was said of pixels."""
    if options.input_range is None and options.mean is None and options.std is None:
        return None
    low, high = options.input_range or (0.0, 1.0)
    return ImageRange(low, high, options.mean or (0.0,), options.std or (1.0,))


def _affordable(shapes: Shapes, session: Session) -> int:
    elements = sum(int(np.prod(shapes.get(spec.name, ())[1:])) for spec in session.inputs)
    return max(8, INPUT_ELEMENTS // max(1, elements))


def fidelity_of(
    reference: Path | bytes, candidate: Path | bytes, inputs: Inputs, provider: Provider, options: Options
) -> Fidelity:
    """Compare outputs, both models without optimisation."""
    pair = [_open(model, name, provider, options, optimise=False) for model, name in _named(reference, candidate)]
    return _compared(pair, inputs)


def _compared(pair: Sequence[Session], inputs: Inputs) -> Fidelity:
    measured = compare(pair[0], pair[1], inputs.batches(BATCH), inputs.source)
    return replace(measured, execution=execution_of(pair[0], pair[1]))


def prove(reference: Path | bytes, candidate: Path | bytes, inputs: Inputs, options: Options) -> Proof:
    """Compare outputs without optimisation, then time both with it. VerificationError where a threshold is missed."""
    provider = provider_of(options)
    fidelity = fidelity_of(reference, candidate, inputs, provider, options)
    failures = missed_thresholds(fidelity, options)
    if failures:
        raise VerificationError(f"{'; '.join(failures)} (nothing was written; --no-verify keeps the result all the same)")
    asked = options.target is not None and options.target[0] == "latency"
    effort = SURE if asked else USUAL
    latency = time_pair(reference, candidate, inputs, provider, options, effort=effort) if options.bench else None
    warnings = [] if latency is None or latency.ratio_high < 1.0 else [_not_faster(latency)]
    return Proof(fidelity, latency, tuple(warnings))


def verify(reference: str | Path, candidate: str | Path, options: Options | None = None) -> tuple[Fidelity, list[str]]:
    """Compare two files; also what failed.

    Without thresholds a mean cosine of 0.9 is asked for, and where no channel was removed outputs that are equal to rounding.
    """
    reference, candidate, options = Path(reference), Path(candidate), options or Options()
    _check_place(reference, candidate, options)
    provider = provider_of(options)
    pair = [_open(model, "", provider, options, optimise=False) for model in (reference, candidate)]
    wirings = [wiring_of(model, str(model)) for model in (reference, candidate)]
    shapes = _observed_shapes(reference)
    inputs = inputs_for(pair[0], shapes, options)
    labels = None if options.labels is None else read_labels(options.labels, inputs)
    same_layers = wirings[0].layers == wirings[1].layers
    suspected = not same_layers and not thresholds_wished(options) and small_enough(shapes)
    drift = layer_drift(reference, candidate, inputs, shapes) if options.layers or suspected else None
    fidelity = replace(
        _compared(pair, inputs),
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


def bench(reference: str | Path, candidate: str | Path, options: Options | None = None, batch: int | None = None) -> Comparison:
    """Time two files in turn, `batch` inputs a call: Options.batch or 1 unless told otherwise, or as many as the model takes."""
    return bench_batches(reference, candidate, options or Options(), (batch,)).batches[0]


def bench_batches(reference: str | Path, candidate: str | Path, options: Options, batches: Sequence[int | None]) -> Bench:
    """A comparison for each batch size, None for that of the options. Raises InputError where the model takes another one."""
    batches = [batch or options.batch for batch in batches]
    reference, candidate = Path(reference), Path(candidate)
    provider = provider_of(options)
    session = _open(reference, "", provider, options, optimise=False)
    _open(candidate, "", provider, options, optimise=False)
    shapes = _observed_shapes(reference)
    inputs = inputs_for(session, shapes, options, count=max(2, *(batch or 1 for batch in batches)))
    for batch in batches:
        check_batch(reference, inputs.batch_size, batch)
    macs = _macs(reference, shapes), _macs(candidate, _observed_shapes(candidate))
    found = [time_pair(reference, candidate, inputs, provider, options, batch) for batch in batches]
    return Bench(tuple(with_macs(latency, *macs) for latency in found))


def check_batch(model: Path, taken: int | None, batch: int | None) -> None:
    """Raises InputError where the model takes another number of inputs a call (None: any) than is to be timed."""
    if batch is not None and taken not in (None, batch):
        raise InputError(f"{model} takes exactly {taken} inputs a call: --batch {batch} cannot be timed")


def _macs(model: Path, shapes: Shapes) -> int | None:
    """Multiply-accumulates of one tiny run; None for a model that runs but cannot be understood."""
    try:
        return total_macs(load(model), shapes)
    except ModelError:
        return None


def with_macs(latency: Comparison, before: int | None, after: int | None) -> Comparison:
    """The comparison with the MACs beside it: how much of the work saved became time saved."""
    if not before or after is None:
        return latency
    ratio = after / before
    return replace(latency, macs_ratio=ratio, realised=(1 - latency.ratio) / (1 - ratio) if ratio < 1 else None)


def _observed_shapes(model: Path) -> Shapes:
    return {name: seen.shape for name, seen in observe_twice(model, label=str(model))[0].items()}


def time_pair(
    reference: Path | bytes,
    candidate: Path | bytes,
    inputs: Inputs,
    provider: Provider,
    options: Options,
    batch: int | None = None,
    effort: Effort | None = None,
) -> Comparison:
    """Latency of one call of `batch` inputs (Options.batch or 1 unless told), reference and candidate in turn."""
    provider = replace(provider, settings=replace(provider.settings, cuda_graph=options.cuda_graph))
    pair = [_open(model, name, provider, options, optimise=True) for model, name in _named(reference, candidate)]
    feeds = inputs.call(batch or options.batch or 1)
    how = effort or USUAL
    return compare_latency(pair[0], pair[1], feeds, seconds=how.seconds, min_runs=how.calls, rounds=how.rounds, seed=options.seed)


def _named(reference: Path | bytes, candidate: Path | bytes) -> list[tuple[Path | bytes, str]]:
    return [(reference, "the reference"), (candidate, "the candidate")]


def _open(model: Path | bytes, name: str, provider: Provider, options: Options, *, optimise: bool) -> Session:
    label = str(model) if isinstance(model, Path) else name
    return open_session(model, provider, optimise=optimise, threads=options.threads, label=label)


def _not_faster(latency: Comparison) -> str:
    return (
        f"the smaller model is not measurably faster here ({latency.provider}, batch {latency.batch}, "
        f"{latency.threads} threads): {1 / latency.ratio_high:.2f}x to {1 / latency.ratio_low:.2f}x"
    )
