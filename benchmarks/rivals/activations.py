"""What consumers read on calibration inputs, and products multiply, by runs of the whole model: means and second moments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from onnx import helper

from onnxmerge.execution.sessions import open_session
from onnxmerge.graph.channel_propagation import Product
from onnxmerge.graph.layers import Consumer
from onnxmerge.onnxio.export import export
from rivals.cases import Case

CALL = 50  # inputs


@dataclass(frozen=True, eq=False)
class Moments:
    """Of n channels: mean (n,) and second moment E[x x^T] (n, n), not centred."""

    mean: np.ndarray
    second: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """(n, n), centred."""
        return self.second - np.outer(self.mean, self.mean)


@cache
def moments(case: Case, count: int) -> dict[str, Moments]:
    """By name of each group of a case what its first consumer reads of it; all read the same channels.

    Positions of an image and tokens count as samples, as in the papers.
    """
    consumers = {group.name: group.consumers[0] for group in case.groups if group.consumers}
    sums, samples = dict[str, list[np.ndarray]](), dict.fromkeys(consumers, 0)
    for tensors in _tensors(case, count, [consumer.layer.source for consumer in consumers.values()]):
        for name, consumer in consumers.items():
            rows = _rows(tensors[consumer.layer.source], consumer)
            own = sums.setdefault(name, [np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)])
            own[0] += rows.sum(0, dtype=np.float64)
            own[1] += rows.T @ rows
            samples[name] += len(rows)
    return {name: Moments(*(each / samples[name] for each in own)) for name, own in sums.items()}


@cache
def factor_moments(case: Case, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By key of each product of the groups: second moments (heads, k, k) of queries and of keys, summed over positions."""
    products = {product.key: product for group in case.groups for product in group.products}
    sources = {key: [tensor.name for tensor in product.node.inputs[:2]] for key, product in products.items()}
    sums: dict[str, list[np.ndarray]] = {}
    for tensors in _tensors(case, count, [name for names in sources.values() for name in names]):
        for key, product in products.items():
            parts = [_second(tensors[name], product, side) for side, name in enumerate(sources[key])]
            sums[key] = [before + part for before, part in zip(sums.get(key, [np.zeros(1)] * 2), parts, strict=True)]
    return {key: (query, keys) for key, (query, keys) in sums.items()}


def _second(values: np.ndarray, product: Product, side: int) -> np.ndarray:
    terms, other = product.terms[side], "Z"
    shared = [letter for letter in product.terms[2] if all(letter in each for each in product.terms[:2])]
    extents = zip(shared, product.factors[0].shape[:-1], strict=True)
    heads = "".join(letter for letter, extent in extents if extent > 1)
    found = np.einsum(f"{terms},{terms.replace(product.letter, other)}->{heads}{product.letter}{other}", values, values)
    return np.asarray(found.reshape(-1, *found.shape[-2:]), np.float64)


def _tensors(case: Case, count: int, names: Iterable[str]) -> Iterator[dict[str, np.ndarray]]:
    """These tensors of the model, for every call of calibration inputs."""
    model = export(case.analysed.model)
    known = {value.name for value in model.graph.output}
    for name in dict.fromkeys(names):
        if name not in known:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = open_session(model.SerializeToString(), optimise=False, threads=1)
    images = case.inputs(count)
    for at in range(0, len(images), CALL):
        yield session.run({session.inputs[0].name: images[at : at + CALL]})


def _rows(tensor: np.ndarray, consumer: Consumer) -> np.ndarray:
    """(samples, n) values of each channel of a group; zeros of those that the consumer does not read."""
    flat = np.moveaxis(tensor, consumer.layer.input_axis, -1).reshape(-1, tensor.shape[consumer.layer.input_axis])
    picked = np.where(consumer.positions < 0, 0.0, flat[:, consumer.positions]).astype(np.float32)
    return picked.transpose(0, 2, 1).reshape(-1, picked.shape[1])
