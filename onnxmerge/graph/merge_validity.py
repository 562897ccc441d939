"""Whether merging is valid for a channel group, and what it compares there.

Merging replaces channel i by s times channel j, s > 0. That crosses an operator f only if f(s x) = s f(x), so between producer
and consumer there may be: scales and offsets of each channel directly behind the producer (BatchNormalization), then operators
that are positively homogeneous and alike for every channel (`operators/scale_crossing.py`).
"""

from dataclasses import dataclass

import numpy as np

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.channel_groups import ChannelGroup, Channels, channel_positions
from onnxmerge.graph.layers import Producer
from onnxmerge.graph.nodes import has_input, node_name
from onnxmerge.graph.operators.scale_crossing import ChannelAffine, MeanStd
from onnxmerge.graph.operators.table import operator_of
from onnxmerge.onnxio import surgeon as gs


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
        if self.group.products:
            raise _NotValid(Reason.MULTIPLIES_CHANNELS, self.group.products[0].node)
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
        if not producer.layer.is_linear:
            raise _NotValid(Reason.NOT_HOMOGENEOUS, producer.node)
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
        elif any(self._carries(tensor) for tensor in node.outputs):
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
        """The affine form behind a node; None once the channels are activated or joined.

        Channels that come out of a node and did not enter it (an embedding) are in no producer's rows: not valid.
        """
        carrying = [index for index, tensor in enumerate(node.inputs) if self._carries(tensor)]
        if not carrying:
            raise _NotValid(Reason.DOES_NOT_SCALE, node)
        data = node.inputs[carrying[0]]
        crossing = operator_of(node).crossing(self.channels, node, carrying)
        if isinstance(crossing, Reason):
            raise _NotValid(crossing, node)
        entering = self.affine.get(data.name)
        if crossing is None or (entering is None and crossing.is_uniform):
            return None
        if entering is None:
            raise _NotValid(Reason.AFFINE_AFTER_ACTIVATION, node)
        return self._transformed(entering, node, data, crossing)

    def _transformed(self, entering: _Affine, node: gs.Node, data: gs.Tensor, crossed: ChannelAffine) -> _Affine:
        """The affine form behind a node that transforms each channel of `data`."""
        ids = self.channels.tensor_ids[data.name].reshape(-1)
        positions = channel_positions(self.channels, self.group, ids)
        if positions.shape != entering.scale.shape:
            raise _NotValid(Reason.PART_OF_CHANNEL, node)
        own_scale = np.append(np.broadcast_to(crossed.scale, ids.shape), 1.0)[positions]  # the last entry: position -1, none
        own_offset = np.append(np.broadcast_to(crossed.offset, ids.shape), 0.0)[positions]
        after: MeanStd | None = None
        if crossed.mean_std is not None and (positions >= 0).all():
            after = crossed.mean_std[0][positions], crossed.mean_std[1][positions]
        elif entering.mean_std is not None:
            after = own_scale * entering.mean_std[0] + own_offset, np.abs(own_scale) * entering.mean_std[1]
        return _Affine(
            entering.producer,
            own_scale * entering.scale,
            own_scale * entering.offset + own_offset,
            entering.is_scaled or bool((own_scale != 1).any()),
            after,
        )


def _producer_bias(channels: Channels, producer: Producer) -> np.ndarray | None:
    """(n, t) float64: the bias inside the producing node, zeros where it has none; None when it is not per channel."""
    node = producer.node
    if not producer.layer.takes_bias or not has_input(node, 2):
        return np.zeros(producer.positions.shape)
    bias = channels.constant(node.inputs[2])
    if bias is None or bias.size not in (1, producer.layer.out_ids.size):
        return None
    scale = float(node.attrs.get("beta", 1.0)) / producer.layer.alpha if node.op == "Gemm" else 1.0
    values = np.broadcast_to(bias.reshape(-1).astype(np.float64) * scale, producer.layer.out_ids.size)
    return np.asarray(np.append(values, 0.0)[producer.positions])


def _are_proportional(one: _Affine, other: _Affine) -> bool:
    """Whether the two differ by one positive factor for all channels, which merging does not see."""
    if one.scale.shape != other.scale.shape:
        return False
    left, right = (np.concatenate([each.scale, each.offset], axis=1) for each in (one, other))
    return bool(np.allclose(left * np.linalg.norm(right), right * np.linalg.norm(left), rtol=1e-9, atol=0.0))
