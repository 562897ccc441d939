"""What happens to a group's channels between their producers and their consumers, as far as merging must know.

Merging replaces channel i by S times channel j. That crosses an operator f only if f(S x) = S f(x), so between producer and
consumer there may be: per-channel scales and offsets directly after the producer (BatchNormalization), then operators that
are positively homogeneous and alike for every channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxmerge.errors import Reason, Refusal, refusal
from onnxmerge.graph.channel_groups import ChannelGroup, Channels, channel_positions
from onnxmerge.graph.channel_ids import Flow
from onnxmerge.graph.layers import Producer, label
from onnxmerge.graph.operators import Path, operator_of
from onnxmerge.onnxio import surgeon as gs

Moments = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Affine:
    """y = scale * (row . x) + offset for one producer, (n, r) each; r values a unit; `normalised`: more than a bias was seen.

    moments: mean and standard deviation of y, (n, r) each, where a BatchNormalization told them.
    """

    producer: int
    scale: np.ndarray
    offset: np.ndarray
    normalised: bool = False
    moments: Moments | None = None


@dataclass(frozen=True)
class Neurons:
    """What merging compares: y = scale (n,) * (rows (n, d) . x) + offset (n,).

    Of several producers, or several values a unit, the scaled rows and offsets stand side by side in `rows`. moments: mean and
    standard deviation (n,) of y, where a BatchNormalization tells them.
    """

    rows: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    normalised: bool
    moments: Moments | None = None


class _Refused(Exception):
    """Leaves the walk early; never leaves this module."""

    def __init__(self, reason: Reason, node: gs.Node | None = None) -> None:
        super().__init__(reason, node)
        self.reason, self.node = reason, node


def neurons(channels: Channels, group: ChannelGroup) -> Neurons | Refusal:
    """The group's neurons, or why merging is not valid for it."""
    try:
        return _Walk(channels.flow, group).result()
    except _Refused as refused:
        obstacle, operator = ("", "") if refused.node is None else (label(refused.node), refused.node.op)
        return refusal(group.name, refused.reason, obstacle, operator=operator)


class _Walk:
    """One pass over the nodes that touch the group; `state` holds the affine part of tensors not yet activated."""

    def __init__(self, flow: Flow, group: ChannelGroup) -> None:
        self.flow, self.group = flow, group
        self.member = np.zeros(len(flow.parents), bool)
        self.member[group.channel_ids] = True
        self.state: dict[str, Affine | None] = {}
        self.final: dict[int, Affine] = {}
        self.producers = {id(link.node): number for number, link in enumerate(group.producers)}
        self.consumers = {id(link.node) for link in group.consumers}

    def result(self) -> Neurons:
        for node in self.flow.model.graph.nodes:
            self._visit(node)
        parts = []
        for number, link in enumerate(self.group.producers):
            affine = self.final.get(number) or self._start(number)
            parts.append((link.rows(), affine))
        rows, affine = parts[0]
        if len(parts) == 1 and affine.scale.shape[1] == 1:
            moments = None if affine.moments is None else (affine.moments[0][:, 0], affine.moments[1][:, 0])
            return Neurons(rows, affine.scale[:, 0], affine.offset[:, 0], affine.normalised, moments)
        count = self.group.size
        columns = []
        for rows, affine in parts:
            scaled = affine.scale[:, :, None] * rows.reshape(*affine.scale.shape, -1)
            columns += [scaled.reshape(count, -1), affine.offset]
        return Neurons(np.concatenate(columns, axis=1), np.ones(count), np.zeros(count), False)

    def _start(self, number: int) -> Affine:
        link = self.group.producers[number]
        bias = _producer_bias(self.flow, link)
        if bias is None:
            raise _Refused(Reason.BIAS_NOT_PER_CHANNEL, link.node)
        return Affine(number, np.ones(bias.shape), bias)

    def _carries(self, tensor: gs.Tensor) -> bool:
        return bool(tensor.name in self.flow.tensors and self.member[self.flow.tensors[tensor.name]].any())

    def _visit(self, node: gs.Node) -> None:
        if id(node) in self.producers:
            self._consume(node)
            number = self.producers[id(node)]
            self.state[node.outputs[0].name] = self._start(number)
            return
        carried = [tensor for tensor in node.inputs if self._carries(tensor)]
        if id(node) in self.consumers:
            self._consume(node)
            return
        if not carried or not any(self._carries(tensor) for tensor in node.outputs):
            return
        after = self._through(node, carried)
        if after is None:
            self._consume(node)
        for output in node.outputs:
            if output.name:
                self.state[output.name] = after

    def _consume(self, node: gs.Node) -> None:
        """The affine part of what enters is final; two different ones cannot both be kept."""
        for tensor in node.inputs:
            affine = self.state.get(tensor.name) if self._carries(tensor) else None
            if affine is None:
                continue
            known = self.final.setdefault(affine.producer, affine)
            if not _proportional(known, affine):
                raise _Refused(Reason.SCALED_DIFFERENTLY, node)

    def _through(self, node: gs.Node, carried: list[gs.Tensor]) -> Affine | None:
        """The affine part behind a node; None once the channels are activated or joined."""
        path = operator_of(node).path
        entering = self.state.get(carried[0].name)
        if node.op in ("Identity", "Dropout", "Cast"):
            return entering
        if path in (Path.HOMOGENEOUS, Path.SLOPE, Path.PAD):
            self._check_alike(node, path)
            return None
        if path is Path.AFFINE:
            return self._affine(entering, node, *_batch_normalization(self.flow, node))
        if path in (Path.JOIN, Path.PRODUCT):
            return self._join(node, path, carried, entering)
        depthwise = node.op in ("Conv", "ConvTranspose")
        raise _Refused(Reason.FILTER_PER_CHANNEL if depthwise else Reason.NOT_HOMOGENEOUS, node)

    def _check_alike(self, node: gs.Node, path: Path) -> None:
        if path is Path.SLOPE:
            slope = self.flow.constant(node.inputs[1])
            if slope is None or (slope != slope.reshape(-1)[0]).any():
                raise _Refused(Reason.SLOPE_PER_CHANNEL, node)
        if path is Path.PAD:
            fill = self.flow.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else None
            if float(node.attrs.get("value", 0.0)) or (fill is not None and fill.any()):
                raise _Refused(Reason.PADS_WITH_VALUE, node)

    def _affine(
        self, entering: Affine | None, node: gs.Node, scale: np.ndarray, offset: np.ndarray, moments: Moments | None = None
    ) -> Affine:
        """y -> scale y + offset on every unit; scale, offset and moments of the outcome, if known, lie on the channel axis."""
        if entering is None:
            raise _Refused(Reason.AFFINE_AFTER_ACTIVATION, node)
        ids = self._channel_ids(node)
        scale, offset = np.broadcast_to(scale, ids.shape), np.broadcast_to(offset, ids.shape)
        places = channel_positions(self.flow, self.group, ids)
        if places.shape != entering.scale.shape:
            raise _Refused(Reason.PART_OF_CHANNEL, node)
        a, t = np.append(scale, 1.0)[places], np.append(offset, 0.0)[places]
        normalised = entering.normalised or bool((a != 1).any())
        after: Moments | None = None
        if moments is not None and (places >= 0).all():
            after = np.append(moments[0], 0.0)[places], np.append(moments[1], 0.0)[places]
        elif entering.moments is not None:
            after = a * entering.moments[0] + t, np.abs(a) * entering.moments[1]
        return Affine(entering.producer, a * entering.scale, a * entering.offset + t, normalised, after)

    def _channel_ids(self, node: gs.Node) -> np.ndarray:
        tensor = next(tensor for tensor in node.inputs if self._carries(tensor))
        return self.flow.tensors[tensor.name].reshape(-1)

    def _per_channel(self, node: gs.Node, value: np.ndarray) -> np.ndarray:
        """(1,) or (channels,) float64: a constant of a join that varies along the channel axis only."""
        ids = self.flow.tensors[next(tensor for tensor in node.inputs if self._carries(tensor)).name]
        extents = (1,) * (ids.ndim - value.ndim) + value.shape
        if any(extent > 1 and ids.shape[axis] == 1 for axis, extent in enumerate(extents[-ids.ndim :])) or value.ndim > ids.ndim:
            raise _Refused(Reason.CONSTANT_NOT_PER_CHANNEL, node)
        return value.astype(np.float64).reshape(-1)

    def _join(self, node: gs.Node, path: Path, carried: list[gs.Tensor], entering: Affine | None) -> Affine | None:
        others = [tensor for tensor in node.inputs if tensor.name and not self._carries(tensor)]
        constants = [value for tensor in others if (value := self.flow.constant(tensor)) is not None]
        if path is Path.PRODUCT:
            if len(carried) > 1 or (node.op == "Div" and node.inputs[0] is not carried[0]):
                raise _Refused(Reason.MULTIPLIES_CHANNELS, node)
            if not constants or constants[0].size == 1:
                return None if not constants or entering is None else self._scaled(node, constants[0], entering)
            return self._scaled(node, constants[0], entering)
        if not constants and len(others) == 0:
            return None
        if node.op in ("Max", "Min") and not any(value.any() for value in constants):
            return None
        if node.op in ("Add", "Sub") and len(constants) == 1:
            sign = -1.0 if node.op == "Sub" else 1.0
            if node.op == "Sub" and node.inputs[0] is not carried[0]:
                raise _Refused(Reason.SUBTRACTED_FROM_CONSTANT, node)
            return self._affine(entering, node, np.ones(1), sign * self._per_channel(node, constants[0]))
        raise _Refused(Reason.DOES_NOT_SCALE, node)

    def _scaled(self, node: gs.Node, factor: np.ndarray, entering: Affine | None) -> Affine:
        factor = self._per_channel(node, factor)
        return self._affine(entering, node, 1.0 / factor if node.op == "Div" else factor, np.zeros(1))


def _producer_bias(flow: Flow, producer: Producer) -> np.ndarray | None:
    """(n, r) float64: the bias inside the producing node, zeros where it has none; None when it is not per channel."""
    node = producer.node
    if node.op == "MatMul" or len(node.inputs) < 3 or not node.inputs[2].name:
        return np.zeros(producer.positions.shape)
    bias = flow.constant(node.inputs[2])
    if bias is None or bias.size not in (1, producer.layer.out_ids.size):
        return None
    scale = float(node.attrs.get("beta", 1.0)) / producer.layer.alpha if node.op == "Gemm" else 1.0
    values = np.broadcast_to(bias.reshape(-1).astype(np.float64) * scale, producer.layer.out_ids.size)
    return np.asarray(np.append(values, 0.0)[producer.positions])


def _batch_normalization(flow: Flow, node: gs.Node) -> tuple[np.ndarray, np.ndarray, Moments]:
    """BatchNormalization as scale and offset, gamma / std and beta - gamma mean / std, and the moments of what comes out."""
    values = [flow.constant(tensor) for tensor in node.inputs[1:5]]
    gamma, beta, mean, variance = (value.astype(np.float64) for value in values if value is not None)
    scale = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return scale, beta - scale * mean, (beta, np.abs(scale) * np.sqrt(variance))


def _proportional(known: Affine, other: Affine) -> bool:
    """True when the two differ by one positive factor for all channels, which merging does not see."""
    if known.scale.shape != other.scale.shape:
        return False
    stacked = np.concatenate([known.scale, known.offset], axis=1), np.concatenate([other.scale, other.offset], axis=1)
    norms = [np.linalg.norm(values) for values in stacked]
    return bool(np.allclose(stacked[0] * norms[1], stacked[1] * norms[0], rtol=1e-9, atol=0.0))
