"""How a weighted node reads its input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxmerge.graph.channel_ids import Flow, Weighted
from onnxmerge.graph.weights import canonical, kernel_of, weight_of


@dataclass(frozen=True)
class Reader:
    """A consumer: what it reads and how.

    at: its position among the nodes; source: its input tensor; axis: the axis it contracts; weight (g, out/g, in/g, positions)
    float64; columns (channels, t): places of each channel on the flattened contracted axis, several where Flatten put the
    positions of a channel side by side; kernel: spatial extents of a convolution.
    """

    weighted: Weighted
    at: int
    source: str
    axis: int
    weight: np.ndarray
    columns: np.ndarray
    kernel: tuple[int, ...]

    @property
    def key(self) -> str:
        """The key of the weighted node."""
        return self.weighted.key

    @property
    def groups(self) -> int:
        """Groups of a grouped convolution, 1 elsewhere."""
        return len(self.weight)

    @property
    def channel_of(self) -> np.ndarray:
        """(in,) the channel that each place belongs to."""
        owner = np.zeros(self.columns.size, np.int64)
        owner[self.columns.reshape(-1)] = np.repeat(np.arange(len(self.columns)), self.columns.shape[1])
        return owner

    @property
    def written_axis(self) -> int:
        """The channel axis of the output."""
        return 1 if self.weighted.node.op == "Gemm" else self.axis

    @property
    def solvable(self) -> bool:
        """False for ConvTranspose, where what an output position reads depends on where it is: channel mixing only."""
        return self.weighted.layout != "conv_transpose"


def reader_of(flow: Flow, weighted: Weighted, at: int) -> Reader:
    """The reader of a weighted node at a position of the node list."""
    node = weighted.node
    source = node.inputs[1 - weighted.weight] if node.op == "MatMul" else node.inputs[0]
    rank = len(flow.shape(source) or ())
    stored_weight = weight_of(flow, weighted)
    return Reader(
        weighted,
        at,
        source.name,
        _contracted(weighted, rank),
        canonical(weighted, stored_weight).astype(np.float64),
        _columns(weighted.in_ids),
        kernel_of(weighted, stored_weight),
    )


def _contracted(weighted: Weighted, rank: int) -> int:
    node = weighted.node
    if node.op == "Gemm":
        return 0 if node.attrs.get("transA", 0) else 1
    if node.op == "MatMul":
        return rank - 1 if weighted.weight == 1 else rank - 2
    return 1


def _columns(ids: np.ndarray) -> np.ndarray:
    """(channels, t) places with the same id; t: what the numbers of places that ids have are all divisible by.

    A channel that has more than t places counts as several. In grouped convolutions each place counts for itself, since an id
    may stand in several groups.
    """
    grouped, ids = len(ids) > 1, ids.reshape(-1)
    places = 1 if grouped else int(np.gcd.reduce(np.unique(ids, return_counts=True)[1]))
    order = np.argsort(ids, kind="stable") if places > 1 else np.arange(len(ids))
    order = order.reshape(-1, places)
    return order[np.argsort(order[:, 0])]
