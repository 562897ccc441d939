"""How close a candidate's outputs are to the reference's, streamed: nothing kept grows with the number of inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxmerge.data.balance import looks_like_scores
from onnxmerge.errors import InputError, VerificationError
from onnxmerge.evaluation.output_metrics import OutputMoments
from onnxmerge.execution.sessions import Feeds, Session, batch_size
from onnxmerge.results import Fidelity, OutputFidelity


def compare(reference: Session, candidate: Session, batches: Iterable[Feeds], source: str) -> Fidelity:
    """Run both on the same batches (batch on axis 0 of the inputs) and measure every output.

    An output whose axis 0 is not the batch counts as one sample a batch. Sequences and maps of numbers are compared as one
    array; strings by equality, where fidelity and cosine are the share of inputs that are equal.
    Raises VerificationError where an output's name, place, shape or type changed, InputError without any batch.
    """
    _check_names(reference, candidate)
    runs = ((batch_size(feeds), reference.run(feeds), candidate.run(feeds)) for feeds in batches)
    outputs, inputs = compare_outputs(runs, reference.output_names)
    return Fidelity(outputs, inputs, source, candidate.provider.name)


def compare_outputs(
    runs: Iterable[tuple[int, Mapping[str, Any], Mapping[str, Any]]], names: Sequence[str]
) -> tuple[tuple[OutputFidelity, ...], int]:
    """The same for outputs at hand: runs of (inputs, what the reference gives, what the candidate gives). And how many inputs."""
    moments = {name: OutputMoments(name) for name in names}
    inputs = 0
    for size, expected, found in runs:
        for name, accumulated in moments.items():
            _add(accumulated, as_array(expected[name]), as_array(found[name]), size, inputs)
        inputs += size
    if not inputs:
        raise InputError("there are no check inputs: at least one batch is needed")
    return tuple(accumulated.result() for accumulated in moments.values()), inputs


def check_thresholds(
    fidelity: Fidelity,
    min_fidelity: float | None = None,
    min_cosine: float | None = None,
    min_top1: float | None = None,
    max_relative_l2: float | None = None,
) -> list[str]:
    """A readable line for every threshold missed, none where all hold. Means over the inputs; the worst output counts.

    NaN or infinity in the candidate fails whatever the thresholds are.
    """
    failures = [f"output {output.name!r} holds NaN or infinity" for output in fidelity.outputs if not output.finite]
    rows = (
        ("fidelity", min_fidelity, min, "below", [(o.fidelity, o.name) for o in fidelity.outputs]),
        ("mean cosine", min_cosine, min, "below", [(o.cosine_mean, o.name) for o in fidelity.outputs]),
        ("top-1 agreement", min_top1, min, "below", list(_top1(fidelity))),
        ("mean relative L2", max_relative_l2, max, "above", [(o.relative_l2_mean, o.name) for o in fidelity.outputs]),
    )
    for what, limit, worst_of, side, values in rows:
        if limit is None:
            continue
        if not values:
            failures.append(f"{what} cannot be checked: no output looks like class scores")
            continue
        value, name = worst_of(values)
        holds = value >= limit if worst_of is min else value <= limit
        if not holds:
            failures.append(f"output {name!r}: {what} {value:.6g} is {side} {limit:g}")
    return failures


def accuracy(session: Session, batches: Iterable[Feeds], labels: np.ndarray) -> float:
    """Share of the inputs whose best class is the label, by the first output that looks like class scores or holds classes.

    Raises InputError where no output fits, or the number of labels differs from the number of inputs.
    """
    labels = np.asarray(labels).ravel()
    correct = seen = 0
    for feeds in batches:
        size = batch_size(feeds)
        classes = _classes(session.run(feeds), size, session.label)
        correct += int(np.sum(classes == labels[seen : seen + size])) if seen + size <= len(labels) else 0
        seen += size
    if seen != len(labels) or not seen:
        raise InputError(f"{len(labels)} labels do not fit {seen} inputs: one label for each input is needed")
    return correct / seen


def as_array(value: Any) -> np.ndarray:
    """A runtime value as one array: a list of maps as rows of their sorted keys' values, a list of tensors joined flat."""
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


def _add(accumulated: OutputMoments, expected: np.ndarray, found: np.ndarray, size: int, first: int) -> None:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        was, became = f"{expected.dtype} {expected.shape}", f"{found.dtype} {found.shape}"
        raise VerificationError(f"output {accumulated.name!r} changed: the reference gives {was}, the candidate {became}")
    whole = expected.ndim > 0 and len(expected) == size
    if not whole:
        expected, found = expected[np.newaxis], found[np.newaxis]
    accumulated.add(expected, found, first, scores=whole and looks_like_scores(expected))


def _top1(fidelity: Fidelity) -> Iterator[tuple[float, str]]:
    for output in fidelity.outputs:
        if output.top1_agreement is not None and not math.isnan(output.top1_agreement):
            yield output.top1_agreement, output.name


def _classes(outputs: dict[str, Any], size: int, label: str) -> np.ndarray:
    arrays = [as_array(value) for value in outputs.values()]
    rows = [array for array in arrays if array.ndim and len(array) == size]
    for array in rows:
        if looks_like_scores(array):
            return np.asarray(array.reshape(size, -1).argmax(axis=1))
    for array in rows:
        if array.dtype.kind in "iu" and array.size == size:
            return array.ravel()
    raise InputError(f"{label} has no output of class scores (N, K) or class numbers (N), so labels cannot be checked")
