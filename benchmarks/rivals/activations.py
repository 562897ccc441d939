"""What the consumers of a group read on calibration inputs, by a run of the whole model: means and second moments of channels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from onnx import helper

from onnxmerge.execution.sessions import open_session
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
    consumers = {group.name: group.consumers[0] for group in case.groups}
    model = export(case.analysed.model)
    known = {value.name for value in model.graph.output}
    for source in dict.fromkeys(consumer.layer.source for consumer in consumers.values()):
        if source not in known:
            model.graph.output.append(helper.make_empty_tensor_value_info(source))
    session = open_session(model.SerializeToString(), optimise=False, threads=1)
    images, sums = case.inputs(count), dict[str, list[np.ndarray]]()
    samples = dict.fromkeys(consumers, 0)
    for at in range(0, len(images), CALL):
        tensors = session.run({session.inputs[0].name: images[at : at + CALL]})
        for name, consumer in consumers.items():
            rows = _rows(tensors[consumer.layer.source], consumer)
            own = sums.setdefault(name, [np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)])
            own[0] += rows.sum(0, dtype=np.float64)
            own[1] += rows.T @ rows
            samples[name] += len(rows)
    return {name: Moments(*(each / samples[name] for each in own)) for name, own in sums.items()}


def _rows(tensor: np.ndarray, consumer: Consumer) -> np.ndarray:
    """(samples, n) values of each channel of a group."""
    flat = np.moveaxis(tensor, consumer.layer.input_axis, -1).reshape(-1, tensor.shape[consumer.layer.input_axis])
    picked = flat[:, consumer.positions]
    return picked.transpose(0, 2, 1).reshape(-1, picked.shape[1])
