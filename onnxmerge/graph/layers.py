"""Layers (nodes with a constant weight) and how channel groups meet them: as producers and as consumers.

Weights come in one axis order, whatever operator holds them: (groups, outputs per group, inputs per group, kernel size). groups
is 1 but for grouped convolutions; the kernel of a convolution is flattened, and its size is 1 for Gemm and MatMul.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxmerge.graph.channel_ids import Ids
from onnxmerge.graph.nodes import node_key, node_name
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.edits import in_range, is_uniform

BLOCK_BYTES = 1 << 25
"""Of the columns of a weight that are changed at a time."""
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Recurrent layers, and how many rows of their weights each unit of the state has."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A node with a constant weight, such as Conv, Gemm, MatMul or LSTM: the channels that enter it end, new ones start.

    Attributes
    ----------
    node : Node
        The node.
    weight_input : int
        Which of the node's inputs is the weight.
    layout : str
        "conv" (out, in / groups, *kernel), "conv_transpose" (in, out / groups, *kernel), "rows" (..., out, in) or
        "columns" (..., in, out) with leading axes of extent 1; a vector is one column. "gates" (directions, out /
        directions, in): what a recurrent layer multiplies its inputs with, each unit of the state once for each gate.
    in_ids : ndarray of shape (groups, inputs per group)
        Channel ids that it reads, 0 where no channel can go.
    out_ids : ndarray of shape (groups, outputs per group)
        Channel ids that it writes.
    stored_weight : ndarray
        The weight in the layout and the dtype of the file.
    input_axis : int
        The axis that it sums over, of the tensor that it reads.
    output_axis : int
        The channel axis of the tensor that it writes; with a weight that is a vector, one behind its last axis.
    output_rank : int
        Number of axes of the tensor that it writes.
    """

    node: gs.Node
    weight_input: int
    layout: str
    in_ids: Ids
    out_ids: Ids
    stored_weight: np.ndarray
    input_axis: int
    output_axis: int
    output_rank: int

    @cached_property
    def key(self) -> str:
        """The first tensor that the node writes."""
        return node_key(self.node)

    @property
    def name(self) -> str:
        """The node's name, as `node_name` gives it."""
        return node_name(self.node)

    @property
    def groups(self) -> int:
        """Groups of a grouped convolution, 1 elsewhere."""
        return len(self.in_ids)

    @property
    def data(self) -> gs.Tensor:
        """The tensor that it reads beside its weight and bias."""
        return self.node.inputs[1 - self.weight_input]

    @property
    def source(self) -> str:
        """Name of the tensor that it reads."""
        return str(self.data.name)

    @property
    def takes_bias(self) -> bool:
        """Whether its operator has a bias, input 2; to others an Add behind them adds it, or to recurrent ones their input 3."""
        return self.node.op not in ("MatMul", "Einsum") and self.is_linear

    @property
    def is_linear(self) -> bool:
        """Whether it writes what its weight gives, and no function of that: all but recurrent layers."""
        return self.layout != "gates"

    @property
    def is_filled(self) -> bool:
        """Whether the weight is computed and the same everywhere (ConstantOfShape): others would take their room in the file."""
        return bool(self.node.inputs[self.weight_input].inputs) and is_uniform(self.stored_weight)

    @property
    def units(self) -> Ids:
        """(units,) ids of the state of a recurrent layer, of which `out_ids` has each once for each gate and direction."""
        return self.out_ids[0, : self.stored_weight.shape[1] // GATES[self.node.op]]

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """The shape for `reshape` in which a bias (out,) broadcasts to the output."""
        return (-1, *(1,) * (self.output_rank - 1 - self.output_axis))

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Spatial extents of a convolution's kernel, () elsewhere."""
        return tuple(self.stored_weight.shape[2:]) if self.layout.startswith("conv") else ()

    @property
    def kernel_size(self) -> int:
        """Number of kernel positions."""
        return math.prod(self.kernel_shape)

    @property
    def inputs_per_group(self) -> int:
        """Channels that one output reads."""
        return int(self.in_ids.shape[1])

    @property
    def alpha(self) -> float:
        """What the node multiplies its weight with: Gemm's alpha."""
        return float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0

    @property
    def has_patches(self) -> bool:
        """Whether an output is a fixed linear map of a patch of the input: all but ConvTranspose."""
        return self.layout != "conv_transpose"

    @property
    def weight(self) -> np.ndarray:
        """The weight, (groups, outputs per group, inputs per group, kernel size) float64; made anew, as large as two models."""
        return self.canonical(self.stored_weight).astype(np.float64)

    @cached_property
    def channel_positions(self) -> np.ndarray:
        """(channels, t) positions of each input channel on the flattened input axis.

        t > 1 where Flatten put the pixels of a channel side by side: the greatest common divisor of how often ids occur, so that
        a channel with more positions counts as several. In grouped convolutions every position counts for itself, since an id
        may stand in several groups.
        """
        ids = self.in_ids.reshape(-1)
        repeats = 1 if self.groups > 1 else int(np.gcd.reduce(np.unique(ids, return_counts=True)[1]))
        order = np.argsort(ids, kind="stable") if repeats > 1 else np.arange(len(ids))
        order = order.reshape(-1, repeats)
        return order[np.argsort(order[:, 0])]

    @property
    def channel_of(self) -> np.ndarray:
        """(in,) for each position of the flattened input axis its row in `channel_positions`."""
        owner = np.zeros(self.channel_positions.size, np.int64)
        owner[self.channel_positions.reshape(-1)] = np.repeat(
            np.arange(len(self.channel_positions)), self.channel_positions.shape[1]
        )
        return owner

    def canonical(self, weight: np.ndarray) -> np.ndarray:
        """A weight in the layout of the file, as (groups, outputs per group, inputs per group, kernel size)."""
        if self.layout == "conv":
            return weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        if self.layout == "conv_transpose":
            return weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1).swapaxes(1, 2)
        if self.layout == "gates":
            return weight.reshape(1, -1, weight.shape[2], 1)
        matrix = weight.reshape(weight.shape[-2:] if weight.ndim > 1 else (-1, 1))
        return (matrix if self.layout == "rows" else matrix.T)[None, :, :, None]

    def stored(self, array: np.ndarray) -> np.ndarray:
        """A weight (groups, outputs per group, inputs per group, kernel size), in the layout of the file."""
        groups, outputs, inputs, _ = array.shape
        if self.layout == "conv":
            return array.reshape(groups * outputs, inputs, *self.kernel_shape)
        if self.layout == "conv_transpose":
            return array.swapaxes(1, 2).reshape(groups * inputs, outputs, *self.kernel_shape)
        if self.layout == "gates":
            return array.reshape(len(self.stored_weight), -1, inputs)
        matrix = array[0, :, :, 0]
        matrix = np.ascontiguousarray(matrix if self.layout == "rows" else matrix.T)
        leading = self.stored_weight.shape[:-2]
        return matrix.reshape(-1) if self.stored_weight.ndim == 1 else matrix.reshape(leading + matrix.shape)


@dataclass(frozen=True, eq=False)
class _LayerOfGroup:
    """A layer seen from a channel group.

    Attributes
    ----------
    layer : Layer
        The layer.
    positions : ndarray of shape (n, t)
        For each channel of the group its positions on the layer's flattened output axis (producer) or input axis (consumer),
        ascending, padded with -1 where it has fewer than t.
    """

    layer: Layer
    positions: np.ndarray

    @property
    def node(self) -> gs.Node:
        """The layer's node."""
        return self.layer.node

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    @property
    def key(self) -> str:
        """The layer's key."""
        return self.layer.key


class Producer(_LayerOfGroup):
    """A layer that writes channels of a group."""

    def rows(self, part: slice = slice(None)) -> np.ndarray:
        """(n, d) float64: the weights that compute each channel of the group, zeros where this layer does not. part: of them."""
        weight = self.layer.canonical(self.layer.stored_weight)
        rows = weight.reshape(weight.shape[0] * weight.shape[1], -1)
        positions = self.positions[part]
        found = np.asarray(rows[positions], np.float64)
        found[positions < 0] = 0.0
        return found.reshape(len(positions), -1)


class Consumer(_LayerOfGroup):
    """A layer that reads channels of a group."""

    def columns(self, stored_weight: np.ndarray | None = None) -> np.ndarray:
        """The weights that read each channel of the group, zeros where it is not read.

        A channel that stands at t positions of the input axis (Flatten) has t blocks of weights. Grouped convolutions come as
        if dense, with zeros between the groups.

        Parameters
        ----------
        stored_weight : ndarray or None
            A weight in the layout of the file, in place of the layer's own.

        Returns
        -------
        ndarray of shape (out, n, t * kernel size), float64
        """
        return self._columns(self.layer.canonical(self.layer.stored_weight if stored_weight is None else stored_weight))

    def _columns(self, weight: np.ndarray) -> np.ndarray:
        weight = weight.astype(np.float64)
        groups, outputs, inputs, kernel_size = weight.shape
        blocks = np.zeros((groups, outputs, groups, inputs, kernel_size))
        blocks[np.arange(groups), :, np.arange(groups)] = weight
        dense = blocks.reshape(groups * outputs, groups * inputs, kernel_size)
        padded = np.concatenate([dense, np.zeros((groups * outputs, 1, kernel_size))], axis=1)
        return padded[:, self.positions].reshape(groups * outputs, len(self.positions), -1)

    def with_columns(self, stored_weight: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """A weight in the layout of the file, with the columns that read the group replaced, for some outputs after others.

        Parameters
        ----------
        stored_weight : ndarray
            The weight in the layout of the file, all channels in it.
        change : callable
            New columns (out, n, t * kernel size) from those that `columns` gives; of each output from its own.
        """
        array = self.layer.canonical(stored_weight).copy()
        step = array.shape[1] if len(array) > 1 else max(1, int(BLOCK_BYTES / 8 / array[0, 0].size))
        for start in range(0, array.shape[1], step):
            part = array[:, start : start + step]
            part[...] = self._with_columns(part, change(self._columns(part)))
        return self.layer.stored(array)

    def _with_columns(self, array: np.ndarray, columns: np.ndarray) -> np.ndarray:
        groups, outputs, inputs, kernel_size = array.shape
        dense = np.zeros((groups * outputs, groups * inputs + 1, kernel_size), columns.dtype)
        dense[:, self.positions] = columns.reshape(groups * outputs, *self.positions.shape, kernel_size)
        blocks = dense[:, :-1].reshape(groups, outputs, groups, inputs, kernel_size)[np.arange(groups), :, np.arange(groups)]
        is_read = np.zeros(groups * inputs + 1, bool)
        is_read[self.positions.reshape(-1)] = True
        is_read = is_read[:-1].reshape(groups, 1, inputs, 1)
        return in_range(np.where(is_read, blocks, array), array.dtype)
