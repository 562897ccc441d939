"""Model Folding: Wang, Sikic, Thiele, Saukh, "Forget the Data and Fine-Tuning! Just Fold the Network to Compress", ICLR 2025.

Channels are clustered by k-means; a cluster's producer rows become their mean, its consumer columns their sum. Means of rows
that are not alike vary less than the rows did: the data-free repair scales them back by what their correlation explains.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.layers import Producer
from onnxmerge.graph.merge_validity import PreActivations
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.onnxio.edits import in_range
from rivals.cases import Case, NotRun, mixed
from rivals.restoration import affine_rows

STARTS, ROUNDS = 3, 30  # of k-means


def clusters(points: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """(n,) labels 0..count-1 by k-means with k-means++ starts, none empty; points (n, d)."""
    generator, squares = np.random.default_rng(seed), np.einsum("nd,nd->n", points, points)
    best, labels = np.inf, np.arange(len(points))
    for _ in range(STARTS):
        centres = points[_spread(points, count, generator)]
        for _ in range(ROUNDS):
            distances = squares[:, None] - 2.0 * points @ centres.T + np.einsum("kd,kd->k", centres, centres)
            own = distances.argmin(1)
            for empty in np.setdiff1d(np.arange(count), own):
                alone = np.bincount(own, minlength=count)[own] == 1
                farthest = np.where(alone, -np.inf, distances[np.arange(len(own)), own]).argmax()
                own[farthest] = empty
            member = np.eye(count)[own]
            moved = (member.T @ points) / member.sum(0)[:, None]
            if np.allclose(moved, centres):
                break
            centres = moved
        loss = float(np.square(points - centres[own]).sum())
        if loss < best:
            best, labels = loss, own
    return labels


def _spread(points: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """(count,) different points, each drawn by its squared distance to those before it."""
    chosen = [int(generator.integers(len(points)))]
    nearest = np.square(points - points[chosen[0]]).sum(1)
    while len(chosen) < count:
        weights = np.where(np.isin(np.arange(len(points)), chosen), 0.0, nearest + 1e-30)
        chosen.append(int(generator.choice(len(points), p=weights / weights.sum())))
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(1))
    return np.array(chosen)


def repair(rows: np.ndarray) -> float:
    """By what the mean of a cluster's rows (m, d) is scaled: sqrt(m / (1 + (m - 1) c)), c their mean cosine.

    m channels of equal variance and mean correlation c have a mean with (1 + (m - 1) c) / m of it; the paper's approximation
    takes the correlation from the weights.
    """
    count = len(rows)
    units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    total = float(np.square(units.sum(0)).sum())  # count + sum of the cosines of all pairs
    return float(np.sqrt(count**2 / max(total, 1.0)))


def folded(compared: PreActivations, labels: np.ndarray, repaired: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A producer with one channel for each cluster.

    Returns
    -------
    kept : ndarray of shape (k,), int, ascending
        The channel of each cluster with the largest scale, in whose place the cluster stands.
    scaling : ndarray of shape (n, k)
        1 where a channel is of the cluster: what the consumers absorb.
    mixing, shift : ndarray of shape (k, n) and (k,)
        New weights are `mixing` times the old ones, and `shift` is added to the producer's output: with the scale and the offset
        of the kept channel, which stay, they give the mean of the cluster.
    """
    affine = compared.rows * compared.scale[:, None]
    mean = compared.offset if compared.mean_std is None else compared.mean_std[0]
    order = np.argsort(-np.abs(compared.scale), kind="stable")
    kept = np.sort([order[labels[order] == label][0] for label in range(labels.max() + 1)])
    scaling = (labels[:, None] == labels[kept]).astype(np.float64)
    share = scaling.T / scaling.sum(0)[:, None]
    factor = np.ones(len(kept))
    if repaired and compared.mean_std is not None:
        factor = np.array([repair(affine[own > 0]) for own in scaling.T])
    offset = share @ mean + factor * (share @ (compared.offset - mean))
    scale = compared.scale[kept]
    return kept, scaling, (factor / scale)[:, None] * share * compared.scale, (offset - compared.offset[kept]) / scale


def write_folded(case: Case, settings: dict[str, Any], target: Path) -> None:
    """Fold every group of a case."""
    removals, replaced = [], dict[str, Replacement]()
    for group in case.groups:
        if len(group.producers) > 1 or not group.removable.all():
            raise NotRun("folding of channels that several layers write is not written here")
        compared, producer = affine_rows(case, group), group.producers[0]
        features = _features(group, compared, settings["features"])
        labels = clusters(features, case.counts[group.name], settings.get("seed", 0))
        kept, scaling, mixing, shift = folded(compared, labels, settings["repair"])
        weight, bias = _current(producer.key, producer.layer.stored_weight, replaced)
        added = np.zeros(producer.layer.out_ids.size)
        added[producer.positions[kept, 0]] = producer.layer.alpha * shift
        replaced[producer.key] = Replacement(_with_rows(producer, weight, kept, mixing), added if bias is None else bias + added)
        for consumer in group.consumers:
            weight, bias = _current(consumer.key, consumer.layer.stored_weight, replaced)
            change = partial(mixed, kept=kept, scaling=scaling)
            replaced[consumer.key] = Replacement(consumer.with_columns(weight, change), bias)
        removals.append(Removal(group, kept, "folding", scaling=scaling))
    case.write(removals, replaced, target)


def _features(group: ChannelGroup, compared: PreActivations, which: str) -> np.ndarray:
    """(n, d) what is clustered: rows with the BatchNormalization in them; "both": the weights that read the channels, too."""
    parts = [compared.rows * compared.scale[:, None], compared.offset[:, None]]
    if which == "both":
        parts += [each.columns().swapaxes(0, 1).reshape(group.size, -1) for each in group.consumers]
    points = np.concatenate(parts, axis=1)
    if points.shape[1] <= len(points):
        return points
    left, values, _ = np.linalg.svd(points, full_matrices=False)  # distances stay
    return np.asarray(left * values)


def _current(key: str, stored: np.ndarray, replaced: dict[str, Replacement]) -> tuple[np.ndarray, np.ndarray | None]:
    before = replaced.get(key)
    return (stored, None) if before is None else (before.weight, before.bias)


def _with_rows(producer: Producer, stored_weight: np.ndarray, kept: np.ndarray, mixing: np.ndarray) -> np.ndarray:
    """A weight in the layout of the file, with the rows of the kept channels replaced by mixtures of all rows."""
    weight = producer.layer.canonical(stored_weight).astype(np.float64)
    rows = weight.reshape(weight.shape[0] * weight.shape[1], -1)
    rows[producer.positions[kept, 0]] = mixing @ rows[producer.positions[:, 0]]
    return np.asarray(producer.layer.stored(in_range(weight, stored_weight.dtype)))
