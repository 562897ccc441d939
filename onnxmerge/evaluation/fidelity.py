"""How close a candidate's outputs are to the reference's, batch by batch: memory does not grow with the number of inputs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from onnxmerge.data.balance import looks_like_scores
from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import BATCH
from onnxmerge.errors import InputError, VerificationError
from onnxmerge.evaluation.decisions import ChangedDecisions, as_two_classes, is_single
from onnxmerge.evaluation.examples import with_examples
from onnxmerge.evaluation.output_kinds import SIGMOID, output_kinds
from onnxmerge.evaluation.output_metrics import OutputMoments
from onnxmerge.execution.batch_axes import Axes, batch_first
from onnxmerge.execution.placement import execution_of
from onnxmerge.execution.processor import processor_name
from onnxmerge.execution.providers import CPU, Provider
from onnxmerge.execution.recorded_session import recorded
from onnxmerge.execution.sessions import ModelSource, Session, label_of, open_session
from onnxmerge.execution.shapes import read_graph
from onnxmerge.execution.tensor_specs import Feeds, batch_size
from onnxmerge.onnxio.finite import is_finite
from onnxmerge.results import Accuracy, Fidelity, OutputFidelity

Outputs = Mapping[str, Any]
"""Values of a model's outputs, by name."""


def compare(
    reference: Session,
    candidate: Session,
    batches: Iterable[Feeds],
    description: str,
    labels: np.ndarray | None = None,
    *,
    axes: tuple[Axes, Axes] = ({}, {}),
    synthetic: bool = False,
    kinds: Mapping[str, str] = MappingProxyType({}),
) -> Fidelity:
    """Run both models once on the same batches and measure every output.

    Parameters
    ----------
    reference, candidate, batches, description : Session, Session, Iterable[Feeds], str
        The two models, feeds of some inputs each, and what these are, for the report.
    labels : ndarray of shape (inputs,), int, or None
        Class numbers; then the accuracy of both models is measured in the same runs.
    axes : tuple of Mapping[str, int]
        The batch's axis by input, and by output; axis 0 of those that are not named.
    synthetic, kinds : bool, Mapping[str, str]
        Whether the inputs were made without data, and `output_kinds` of the reference.

    Returns
    -------
    Fidelity
        An output without the batch counts as one sample a batch. Sequences and maps of numbers are compared as one array; strings
        and ids by equality, the share of which is fidelity and cosine. Where shape or type differ, it is `unmeasured`.

    Raises
    ------
    VerificationError, InputError
        The name or place of an output changed; there is no batch, or the labels do not fit the inputs or the outputs.
    """
    _check_names(reference, candidate)
    not_finite: set[str] = set()
    label_counts = None if labels is None else _LabelCount(np.asarray(labels).ravel(), (reference.label, candidate.label), kinds)

    def runs() -> Iterator[tuple[int, Outputs, Outputs]]:
        for feeds in batches:
            size = batch_size(feeds, axes[0])
            expected, found = (batch_first(session.run(feeds), axes[1]) for session in (reference, candidate))
            not_finite.update(name for name, value in feeds.items() if not is_finite(value))
            if label_counts is not None:
                label_counts.add(size, expected, found)
            yield size, expected, found

    outputs, inputs = compare_outputs(runs(), reference.output_names, synthetic=synthetic, kinds=kinds)
    return Fidelity(
        outputs,
        inputs,
        description,
        candidate.provider.name,
        accuracy=None if label_counts is None else label_counts.accuracy(),
        execution=execution_of(reference, candidate),
        inputs_not_finite=tuple(sorted(not_finite)),
        processor=processor_name(gpu=candidate.provider.name != CPU.name),
    )


def fidelity_of(
    reference: ModelSource, candidate: ModelSource, inputs: Inputs, provider: Provider, threads: int | None
) -> Fidelity:
    """Compare two models as `compare` does, with examples, without optimisation, one open at a time: they may be large."""
    opened = partial(open_session, provider=provider, optimise=False, threads=threads)
    first = recorded(opened(reference, label=label_of(reference, "the reference")), inputs.batches(BATCH))
    second = opened(candidate, label=label_of(candidate, "the candidate"))
    kinds = output_kinds(read_graph(reference, first.label))
    batches, axes = inputs.batches(BATCH), (inputs.axes, inputs.output_axes)
    found = compare(first, second, batches, inputs.description, axes=axes, synthetic=inputs.synthetic, kinds=kinds)
    return with_examples(found, inputs)


def compare_outputs(
    runs: Iterable[tuple[int, Outputs, Outputs]],
    names: Sequence[str],
    axes: Axes = MappingProxyType({}),
    *,
    synthetic: bool = False,
    kinds: Mapping[str, str] = MappingProxyType({}),
) -> tuple[tuple[OutputFidelity, ...], int]:
    """As `compare`, for outputs at hand.

    Parameters
    ----------
    runs : Iterable[tuple[int, Outputs, Outputs]]
        For each batch the number of inputs, the reference's outputs and the candidate's, by name.
    names : Sequence[str]
        The outputs to compare.
    axes : Mapping[str, int]
        The batch's axis by output; axis 0 of those that are not named.
    synthetic : bool
        Whether the inputs were made without data.
    kinds : Mapping[str, str]
        `output_kinds` of the reference.

    Returns
    -------
    tuple of OutputFidelity, int
        One for each name, and the number of inputs.
    """
    moments = {
        name: OutputMoments(name, synthetic=synthetic, decisions=ChangedDecisions(holds=kinds.get(name, ""))) for name in names
    }
    inputs = 0
    for size, *both in runs:
        expected, found = (batch_first(outputs, axes) for outputs in both)
        for name, accumulated in moments.items():
            arrays = as_array(expected[name]), as_array(found[name])
            why = accumulated.unmeasured or _difference(*arrays)
            if why:
                moments[name] = OutputMoments(name, unmeasured=why)
            else:
                _add(accumulated, *arrays, size, inputs)
        inputs += size
    if not inputs:
        raise InputError("there are no check inputs: at least one batch is needed")
    return tuple(accumulated.result() for accumulated in moments.values()), inputs


LISTS_WHAT_WAS_FOUND = "; an output that lists what was found can be compared in front of NonMaxSuppression, NonZero or Compress"
DECIDED_AT_ONCE = 1 << 24
"""Numbers of an output whose decisions are compared at once, in some ten arrays of them, a gigabyte: 32 predictions of 128 tokens
out of 50,000 are 205 million."""


@dataclass
class _LabelCount:
    """How many inputs each of the two models puts into the class of their label."""

    labels: np.ndarray
    models: tuple[str, str]
    kinds: Mapping[str, str]
    seen: int = 0
    correct: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, size: int, expected: Outputs, found: Outputs) -> None:
        """The outputs of one batch of so many inputs."""
        labels = self.labels[self.seen : self.seen + size]
        for side, outputs in enumerate((expected, found)):
            classes, count = _classes(outputs, size, self.models[side], self.kinds)
            if labels.size and labels.max() >= count:
                raise InputError(f"the labels hold class {labels.max()}, but {self.models[side]} has {count} classes, from 0 on")
            self.correct[side] += int(np.sum(classes[: len(labels)] == labels))
        self.seen += size

    def accuracy(self) -> Accuracy:
        """Of both models. Raises InputError where there is not one label for each input."""
        if self.seen != len(self.labels) or not self.seen:
            raise InputError(f"{len(self.labels)} labels do not fit {self.seen} inputs: one label for each input is needed")
        before, after = (count / self.seen for count in self.correct)
        return Accuracy(before, after)


def as_array(value: Any) -> np.ndarray:
    """An output of ONNX Runtime as one array: maps as rows of values in the order of keys, sequences of tensors joined flat."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return np.array([[item[key] for key in sorted(item)] for item in value])
    if isinstance(value, list):
        flat = [np.ravel(item) for item in value]
        return np.concatenate(flat)[np.newaxis] if flat else np.zeros((1, 0), np.float32)
    return np.asarray(value)


def _check_names(reference: Session, candidate: Session) -> None:
    if reference.output_names != candidate.output_names:
        expected, found = ", ".join(reference.output_names), ", ".join(candidate.output_names)
        same = set(reference.output_names) == set(candidate.output_names)
        what = "the outputs' order differs" if same else "the outputs differ"
        raise VerificationError(f"{what}: {reference.label} has {expected}; {candidate.label} has {found}")


def _difference(expected: np.ndarray, found: np.ndarray) -> str:
    """Why two outputs cannot be compared value by value, as a clause; empty where they can."""
    if expected.shape == found.shape and expected.dtype == found.dtype:
        return ""
    told = f"the reference gives {expected.dtype} {expected.shape}, the candidate {found.dtype} {found.shape}"
    may_list = expected.dtype == found.dtype and expected.ndim == found.ndim
    return f"{told}{LISTS_WHAT_WAS_FOUND * may_list}"


def _add(accumulated: OutputMoments, expected: np.ndarray, found: np.ndarray, size: int, first: int) -> None:
    whole = expected.ndim > 0 and len(expected) == size
    if not whole:
        expected, found = expected[np.newaxis], found[np.newaxis]
    are_single = accumulated.decisions.holds == SIGMOID and is_single(expected)
    scores = whole and (looks_like_scores(expected) or are_single)
    accumulated.add(expected, found, first, scores=scores)
    step = max(1, DECIDED_AT_ONCE // max(1, expected[:1].size))
    for start in range(0, len(expected), step) if whole else ():
        some, others = expected[start : start + step], found[start : start + step]
        accumulated.decisions.add(some, others)
        accumulated.neighbours.add(some, others)


def _classes(outputs: Outputs, size: int, label: str, kinds: Mapping[str, str]) -> tuple[np.ndarray, float]:
    """The class of each input, and how many there are; infinity where the output does not tell."""
    named = ((name, as_array(value)) for name, value in outputs.items())
    of_inputs = [(name, array) for name, array in named if array.ndim and len(array) == size]
    sigmoids = [array for name, array in of_inputs if kinds.get(name) == SIGMOID and is_single(array)]
    rows = [array for _, array in of_inputs]
    pairs = (array for array in rows if array.dtype.kind == "f" and array.size == 2 * size)  # two classes, as labels say
    for array in (*filter(looks_like_scores, rows), *pairs):
        if array.ndim > 1:
            scores = array.reshape(size, -1)
            return scores.argmax(axis=1), scores.shape[1]
    if sigmoids:
        return as_two_classes(sigmoids[0]).argmax(axis=1), 2
    for array in rows:
        if array.dtype.kind in "iu" and array.size == size:
            return array.ravel(), np.inf
    raise InputError(f"{label} has no output of class scores (N, K) or class numbers (N), so labels cannot be checked")
