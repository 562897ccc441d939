"""Whether merging is valid for a channel group, and what it compares there.

Merging replaces channel i by s times channel j, s > 0. That crosses an operator f only if f(s x) = s f(x), so between producer
and consumer there may be: scales and offsets of each channel directly behind the producer (BatchNormalization), then operators
that are positively homogeneous and alike for every channel (`Homogeneity` in `operators/table.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.channel_groups import ChannelGroup, Channels, channel_positions
from onnxmerge.graph.cost import FLOATING_TYPES
from onnxmerge.graph.layers import Producer
from onnxmerge.graph.nodes import has_input, node_name
from onnxmerge.graph.operators.table import Homogeneity, operator_of
from onnxmerge.onnxio import surgeon as gs

MeanStd = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation of each channel."""


@dataclass(frozen=True, eq=False)
class PreActivations:
    """What the first activation behind a group's producers reads: scale * (rows . x) + offset for each of n channels.

    Of several producers, or several values for each channel, the scaled rows and the offsets stand side by side in `rows`.

    Attributes
    ----------
    rows : ndarray of shape (n, d), float64
        The weights that compute each channel.
    scale, offset : ndarray of shape (n,), float64
        What the steps between the producer and the first activation do to each channel.
    is_scaled : bool
        Whether a BatchNormalization or another scale stands behind the producer.
    mean_std : tuple of two ndarray of shape (n,), or None
        Mean and standard deviation of the values, where a BatchNormalization states them.
    """

    rows: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    is_scaled: bool
    mean_std: MeanStd | None = None


def pre_activations(channels: Channels, group: ChannelGroup) -> PreActivations | Refusal:
    """What merging compares for a group, or why merging is not valid for it."""
    try:
        return _PathChecker(channels, group).result()
    except _NotValid as error:
        obstacle, operator = ("", "") if error.node is None else (node_name(error.node), error.node.op)
        return refusal(group.name, error.reason, obstacle, operator=operator)


class _NotValid(Exception):
    """Ends the check early; never leaves this module."""

    def __init__(self, reason: Reason, node: gs.Node | None = None) -> None:
        super().__init__(reason, node)
        self.reason, self.node = reason, node


@dataclass(frozen=True, eq=False)
class _Affine:
    """scale * (row . x) + offset of one producer, (n, t) each for t values of each of n channels; mean_std likewise."""

    producer: int
    scale: np.ndarray
    offset: np.ndarray
    is_scaled: bool = False
    mean_std: MeanStd | None = None


class _PathChecker:
    """One pass over the nodes between the producers and the consumers of a group.

    Attributes
    ----------
    affine : dict[str, _Affine or None]
        Affine form of each tensor that carries channels of the group, by name; None behind an activation or a join.
    final : dict[int, _Affine]
        What the first activation reads, by number of the producer.
    """

    def __init__(self, channels: Channels, group: ChannelGroup) -> None:
        self.channels, self.group = channels, group
        self.affine: dict[str, _Affine | None] = {}
        self.final: dict[int, _Affine] = {}
        self._is_member = np.zeros(channels.id_count, bool)
        self._is_member[group.channel_ids] = True
        self._producers = {id(producer.node): number for number, producer in enumerate(group.producers)}
        self._consumers = {id(consumer.node) for consumer in group.consumers}

    def result(self) -> PreActivations:
        """The affine forms of all producers, side by side. Raises _NotValid."""
        for node in self.channels.model.graph.nodes:
            self._visit(node)
        parts = [
            (producer.rows(), self.final.get(number) or self._start(number))
            for number, producer in enumerate(self.group.producers)
        ]
        rows, affine = parts[0]
        if len(parts) == 1 and affine.scale.shape[1] == 1:
            mean_std = None if affine.mean_std is None else (affine.mean_std[0][:, 0], affine.mean_std[1][:, 0])
            return PreActivations(rows, affine.scale[:, 0], affine.offset[:, 0], affine.is_scaled, mean_std)
        count = self.group.size
        columns = []
        for rows, affine in parts:
            scaled = affine.scale[:, :, None] * rows.reshape(*affine.scale.shape, -1)
            columns += [scaled.reshape(count, -1), affine.offset]
        return PreActivations(np.concatenate(columns, axis=1), np.ones(count), np.zeros(count), False)

    def _start(self, number: int) -> _Affine:
        """What a producer writes, before anything that follows."""
        producer = self.group.producers[number]
        bias = _producer_bias(self.channels, producer)
        if bias is None:
            raise _NotValid(Reason.BIAS_NOT_PER_CHANNEL, producer.node)
        return _Affine(number, np.ones(bias.shape), bias)

    def _carries(self, tensor: gs.Tensor) -> bool:
        """Whether channels of the group stand in a tensor."""
        ids = self.channels.tensor_ids.get(tensor.name)
        return ids is not None and bool(self._is_member[ids].any())

    def _carrying(self, node: gs.Node) -> list[gs.Tensor]:
        return [tensor for tensor in node.inputs if self._carries(tensor)]

    def _visit(self, node: gs.Node) -> None:
        if id(node) in self._producers:
            self._finish(node)
            self.affine[node.outputs[0].name] = self._start(self._producers[id(node)])
        elif id(node) in self._consumers:
            self._finish(node)
        elif self._carrying(node) and any(self._carries(tensor) for tensor in node.outputs):
            after = self._affine_after(node)
            if after is None:
                self._finish(node)
            for output in node.outputs:
                if output.name:
                    self.affine[output.name] = after

    def _finish(self, node: gs.Node) -> None:
        """The affine form of what enters is final; two different ones of one producer cannot both be kept."""
        for tensor in self._carrying(node):
            affine = self.affine.get(tensor.name)
            if affine is not None and not _are_proportional(self.final.setdefault(affine.producer, affine), affine):
                raise _NotValid(Reason.SCALED_DIFFERENTLY, node)

    def _affine_after(self, node: gs.Node) -> _Affine | None:
        """The affine form behind a node; None once the channels are activated or joined."""
        homogeneity = operator_of(node).homogeneity
        carrying = self._carrying(node)
        entering = self.affine.get(carrying[0].name)
        if homogeneity is Homogeneity.CAST and node.attrs.get("to") not in FLOATING_TYPES:
            raise _NotValid(Reason.NOT_HOMOGENEOUS, node)
        if node.op in ("Identity", "Dropout", "Cast"):
            return entering
        if homogeneity in (Homogeneity.HOMOGENEOUS, Homogeneity.SLOPE, Homogeneity.PAD):
            self._check_alike(node, homogeneity)
            return None
        if homogeneity is Homogeneity.AFFINE:
            return self._transformed(entering, node, *_batch_normalization(self.channels, node))
        if homogeneity is Homogeneity.PRODUCT:
            return self._product(node, carrying, entering)
        if homogeneity is Homogeneity.JOIN:
            return self._join(node, carrying, entering)
        is_depthwise = node.op in ("Conv", "ConvTranspose")
        raise _NotValid(Reason.FILTER_PER_CHANNEL if is_depthwise else Reason.NOT_HOMOGENEOUS, node)

    def _check_alike(self, node: gs.Node, homogeneity: Homogeneity) -> None:
        """The slopes of PRelu must be one number, and Pad must pad with zeros."""
        if homogeneity is Homogeneity.SLOPE:
            slope = self.channels.constant(node.inputs[1])
            if slope is None or (slope != slope.reshape(-1)[0]).any():
                raise _NotValid(Reason.SLOPE_PER_CHANNEL, node)
        if homogeneity is Homogeneity.PAD:
            value = self.channels.constant(node.inputs[2]) if has_input(node, 2) else None
            if float(node.attrs.get("value", 0.0)) or (value is not None and value.any()):
                raise _NotValid(Reason.PADS_WITH_VALUE, node)

    def _transformed(
        self, entering: _Affine | None, node: gs.Node, scale: np.ndarray, offset: np.ndarray, mean_std: MeanStd | None = None
    ) -> _Affine:
        """y -> scale y + offset on every channel.

        scale, offset : (extent of the channel axis,) or (1,); mean_std : of the result, where it is known, on the channel axis.
        """
        if entering is None:
            raise _NotValid(Reason.AFFINE_AFTER_ACTIVATION, node)
        ids = self.channels.tensor_ids[self._carrying(node)[0].name].reshape(-1)
        positions = channel_positions(self.channels, self.group, ids)
        if positions.shape != entering.scale.shape:
            raise _NotValid(Reason.PART_OF_CHANNEL, node)
        own_scale = np.append(np.broadcast_to(scale, ids.shape), 1.0)[positions]  # the last entry: position -1, none
        own_offset = np.append(np.broadcast_to(offset, ids.shape), 0.0)[positions]
        after: MeanStd | None = None
        if mean_std is not None and (positions >= 0).all():
            after = mean_std[0][positions], mean_std[1][positions]
        elif entering.mean_std is not None:
            after = own_scale * entering.mean_std[0] + own_offset, np.abs(own_scale) * entering.mean_std[1]
        return _Affine(
            entering.producer,
            own_scale * entering.scale,
            own_scale * entering.offset + own_offset,
            entering.is_scaled or bool((own_scale != 1).any()),
            after,
        )

    def _per_channel(self, node: gs.Node, value: np.ndarray) -> np.ndarray:
        """(1,) or (channels,) float64: a constant of a join that varies along the channel axis only."""
        ids = self.channels.tensor_ids[self._carrying(node)[0].name]
        extents = (1,) * (ids.ndim - value.ndim) + value.shape
        if value.ndim > ids.ndim or any(extent > 1 and ids.shape[axis] == 1 for axis, extent in enumerate(extents)):
            raise _NotValid(Reason.CONSTANT_NOT_PER_CHANNEL, node)
        return value.astype(np.float64).reshape(-1)

    def _constants(self, node: gs.Node) -> tuple[list[np.ndarray], int]:
        """The constants among a node's inputs, and how many inputs carry no channels of the group."""
        others = [tensor for tensor in node.inputs if tensor.name and not self._carries(tensor)]
        values = [self.channels.constant(tensor) for tensor in others]
        return [value for value in values if value is not None], len(others)

    def _product(self, node: gs.Node, carrying: list[gs.Tensor], entering: _Affine | None) -> _Affine | None:
        """Mul, Div: by a constant it scales; by a computed tensor without channels it is homogeneous."""
        if len(carrying) > 1 or (node.op == "Div" and node.inputs[0] is not carrying[0]):
            raise _NotValid(Reason.MULTIPLIES_CHANNELS, node)
        constants, _ = self._constants(node)
        if not constants or (constants[0].size == 1 and entering is None):
            return None
        factor = self._per_channel(node, constants[0])
        return self._transformed(entering, node, 1.0 / factor if node.op == "Div" else factor, np.zeros(1))

    def _join(self, node: gs.Node, carrying: list[gs.Tensor], entering: _Affine | None) -> _Affine | None:
        """Add, Sub, Max and the like: homogeneous if all inputs carry channels; a constant summand is an offset."""
        constants, other_count = self._constants(node)
        all_zero = len(constants) == other_count and not any(value.any() for value in constants)
        if other_count == 0 or (node.op in ("Max", "Min") and all_zero):
            return None
        if node.op not in ("Add", "Sub") or len(constants) != 1:
            raise _NotValid(Reason.DOES_NOT_SCALE, node)
        if node.op == "Sub" and node.inputs[0] is not carrying[0]:
            raise _NotValid(Reason.SUBTRACTED_FROM_CONSTANT, node)
        offset = self._per_channel(node, constants[0])
        return self._transformed(entering, node, np.ones(1), -offset if node.op == "Sub" else offset)


def _producer_bias(channels: Channels, producer: Producer) -> np.ndarray | None:
    """(n, t) float64: the bias inside the producing node, zeros where it has none; None when it is not per channel."""
    node = producer.node
    if node.op == "MatMul" or not has_input(node, 2):
        return np.zeros(producer.positions.shape)
    bias = channels.constant(node.inputs[2])
    if bias is None or bias.size not in (1, producer.layer.out_ids.size):
        return None
    scale = float(node.attrs.get("beta", 1.0)) / producer.layer.alpha if node.op == "Gemm" else 1.0
    values = np.broadcast_to(bias.reshape(-1).astype(np.float64) * scale, producer.layer.out_ids.size)
    return np.asarray(np.append(values, 0.0)[producer.positions])


def _batch_normalization(channels: Channels, node: gs.Node) -> tuple[np.ndarray, np.ndarray, MeanStd]:
    """BatchNormalization as scale gamma / std and offset beta - gamma mean / std, and mean and deviation of what comes out."""
    values = [channels.constant(tensor) for tensor in node.inputs[1:5]]
    gamma, beta, mean, variance = (value.astype(np.float64) for value in values if value is not None)
    scale = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return scale, beta - scale * mean, (beta, np.abs(scale) * np.sqrt(variance))


def _are_proportional(one: _Affine, other: _Affine) -> bool:
    """Whether the two differ by one positive factor for all channels, which merging does not see."""
    if one.scale.shape != other.scale.shape:
        return False
    left, right = (np.concatenate([each.scale, each.offset], axis=1) for each in (one, other))
    return bool(np.allclose(left * np.linalg.norm(right), right * np.linalg.norm(left), rtol=1e-9, atol=0.0))
