"""Synthetic inputs chosen so that the reference sees all of its classes in them."""

from __future__ import annotations

import numpy as np

from onnxmerge.data.inputs import Inputs
from onnxmerge.execution.sessions import Session


def balanced(pool: Inputs, session: Session, wanted: int, batch: int) -> Inputs:
    """`wanted` inputs out of a larger pool, as evenly over the predicted classes as the pool allows, earlier ones first.

    Classes are those of the first output that looks like class scores. The first ones are taken where there is none, or where
    the model takes only whole batches of several.
    """
    if pool.count <= wanted:
        return pool
    if pool.batch_size not in (None, 1):
        return pool.chosen(np.arange(-(-wanted // pool.batch_size) * pool.batch_size), "first")
    classes = []
    for feeds in pool.batches(batch):
        outputs = session.run(feeds)
        scores = next((value for value in outputs.values() if isinstance(value, np.ndarray) and looks_like_scores(value)), None)
        if scores is None:
            return pool.chosen(np.arange(wanted), "first")
        classes.append(scores.reshape(len(scores), -1).argmax(1))
    return pool.chosen(pick_evenly(np.concatenate(classes), wanted), "balanced over predicted classes")


def pick_evenly(classes: np.ndarray, wanted: int) -> np.ndarray:
    """Ascending positions (wanted,): of classes (n,), one of each class in turn until there are enough."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    turn = np.empty(len(order), np.int64)
    turn[order] = rank
    return np.sort(np.lexsort((np.arange(len(classes)), turn))[:wanted])


def looks_like_scores(array: np.ndarray) -> bool:
    """Floats of shape (N, K) or (N, K, 1, 1) with at least three classes."""
    flat = array.ndim == 2 or (array.ndim == 4 and array.shape[2:] == (1, 1))
    return flat and array.shape[1] >= 3 and np.issubdtype(array.dtype, np.floating)
