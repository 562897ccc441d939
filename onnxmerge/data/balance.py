"""Synthetic inputs chosen so that the reference sees all of its classes in them, and made once."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from onnxmerge.data.feed_sources import Indices
from onnxmerge.data.inputs import Inputs
from onnxmerge.execution.batch_axes import batch_first
from onnxmerge.execution.sessions import Session
from onnxmerge.execution.tensor_specs import batch_size

HELD_BYTES = 1 << 28
"""Memory for synthetic inputs that are held, 256 MiB: three times what `selection.INPUT_ELEMENTS` float32 numbers take."""


def held(inputs: Inputs) -> Inputs:
    """The same inputs, each of them made once as far as they fit into `HELD_BYTES`; making one costs a seventh of its pass.

    Inputs that are not `by_row` are made anew each time.
    """
    if not inputs.by_row:
        return inputs
    rows: dict[int, dict[str, np.ndarray]] = {}
    whole: dict[str, np.ndarray] = {}

    def take(indices: Indices) -> dict[str, np.ndarray]:
        missing = np.array([index for index in indices.tolist() if index not in rows], np.int64)
        if not len(missing):
            found = [rows[index] for index in indices.tolist()]
            return whole | {name: np.stack([each[name] for each in found], inputs.axes.get(name, 0)) for name in found[0]}
        feeds = inputs.take(indices)
        if (len(rows) + len(missing)) * sum(value.nbytes for value in feeds.values()) <= HELD_BYTES * len(indices):
            whole.update((name, value) for name, value in feeds.items() if inputs.axes and name not in inputs.axes)
            split = {name: np.moveaxis(value, inputs.axes.get(name, 0), 0) for name, value in feeds.items() if name not in whole}
            for at, index in enumerate(indices.tolist()):
                rows[index] = {name: value[at].copy() for name, value in split.items()}
        return feeds

    return replace(inputs, take=take)


def balanced(inputs: Inputs, session: Session, count: int, batch: int, tell: Callable[[float], None] | None = None) -> Inputs:
    """Choose inputs as evenly as possible over the classes that a model predicts for them.

    Parameters
    ----------
    inputs : inputs to choose from
    session : the model; its first output that looks like class scores tells the classes
    count : number of inputs to choose
    batch : inputs in one call
    tell : told the share of the inputs that have been run

    Returns
    -------
    Inputs
        `count` of them. The first ones where the model has no class scores, where these put it into one class, and where it
        takes only whole batches of several, whose number is then rounded up.
    """
    if inputs.count <= count:
        return inputs
    if inputs.batch_size not in (None, 1):
        return inputs.subset(np.arange(-(-count // inputs.batch_size) * inputs.batch_size), "the first ones")
    classes = list[np.ndarray]()
    for feeds in inputs.batches(batch):
        outputs, size = batch_first(session.run(feeds), inputs.output_axes).values(), batch_size(feeds, inputs.axes)
        arrays = (value for value in outputs if isinstance(value, np.ndarray) and value.shape[:1] == (size,))
        scores = next(filter(looks_like_scores, arrays), None)
        if scores is None:
            return inputs.subset(np.arange(count), "the first ones")
        classes.append(scores.reshape(len(scores), -1).argmax(1))
        seen = sum(map(len, classes))
        if tell is not None:
            tell(seen / inputs.count)
        if seen >= count and all((each == classes[0][0]).all() for each in classes):
            return inputs.subset(np.arange(count), "the first ones")  # as many again would hardly hold another class
    return inputs.subset(_even_positions(np.concatenate(classes), count), "balanced over predicted classes")


def _even_positions(classes: np.ndarray, count: int) -> np.ndarray:
    """Ascending positions (count,) in classes (n,): the first of every class, then the second of every class, and so on."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    rank_in_class = np.empty(len(order), np.int64)
    rank_in_class[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return np.sort(np.argsort(rank_in_class, kind="stable")[:count])


def looks_like_scores(array: np.ndarray) -> bool:
    """Whether an output may hold class scores: floats of shape (N, K) or (N, K, 1, 1) with at least three classes."""
    flat = array.ndim == 2 or (array.ndim == 4 and array.shape[2:] == (1, 1))
    return flat and array.shape[1] >= 3 and np.issubdtype(array.dtype, np.floating)
