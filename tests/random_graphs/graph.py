"""A graph under construction whose every tensor has a known shape, so that any step can follow any other.

The helpers write what each opset asks for: axes as attributes or as inputs, sizes of a Split, bounds of a Slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx
from topologies.net import Net

Dim = int | tuple[str, Fraction]
"""An extent: a number, or a dynamic one as (name of the input's extent, factor): ("H", 1/2) is half of H."""


class Skip(Exception):
    """A step that does not fit the value, or the opset; another one is tried."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: its name, its shape, and the axis that the channels are on."""

    name: str
    shape: tuple[Dim, ...]
    axis: int = 1

    @property
    def channels(self) -> int:
        """Extent of the channel axis."""
        extent = self.shape[self.axis]
        assert isinstance(extent, int)
        return extent

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def kind(self) -> str:
        """vector (N, C), image (N, C, positions...) or tokens (N, positions..., C)."""
        return "vector" if self.rank == 2 else "image" if self.axis == 1 else "tokens"

    @property
    def positions(self) -> tuple[Dim, ...]:
        """Extents of the axes between batch and channels, or behind the channels."""
        return tuple(extent for axis, extent in enumerate(self.shape) if axis not in (0, self.axis))

    @property
    def is_static(self) -> bool:
        """Whether every extent but the batch is a number."""
        return all(isinstance(extent, int) for extent in self.shape[1:])

    def with_channels(self, count: int) -> tuple[Dim, ...]:
        """Its shape with another number of channels."""
        return tuple(count if axis == self.axis else extent for axis, extent in enumerate(self.shape))


def scaled(extent: Dim, factor: Fraction) -> Dim:
    """factor times an extent; Skip where that is no whole number, or a dynamic one gets below an eighth."""
    if isinstance(extent, int):
        if (extent * factor).denominator != 1 or extent * factor < 1:
            raise Skip
        return int(extent * factor)
    if not Fraction(1, 8) <= extent[1] * factor <= 4:
        raise Skip
    return extent[0], extent[1] * factor


def declared(shape: Sequence[Dim]) -> list[int | str]:
    """The shape as a model states it."""
    return [each if isinstance(each, int) else each[0] if each[1] == 1 else f"{each[0]}_times_{each[1]}" for each in shape]


class Graph(Net):
    """A `Net` with values in place of names."""

    def __init__(self, rng: np.random.Generator, opset: int, ir: int, seed: int) -> None:
        super().__init__(rng, opset, ir)
        self.seed = seed
        self.earlier: list[Value] = []
        """What steps wrote, for joins and skip connections."""
        self.second_outputs: list[onnx.ValueInfoProto] = []
        """Outputs of nodes that no step reads, and that may become graph outputs."""

    def has(self, op_type: str) -> bool:
        """Whether the opset has the operator."""
        try:
            schema = onnx.defs.get_schema(op_type, self.opset)
        except onnx.defs.SchemaError:
            return False
        return not schema.deprecated

    def need(self, op_type: str, since: int = 1) -> None:
        """Skip where the opset does not have the operator, or is older than `since`."""
        if self.opset < since or not self.has(op_type):
            raise Skip

    def chance(self, probability: float) -> bool:
        """A biased coin."""
        return bool(self.rng.random() < probability)

    def pick(self, choices: Sequence):
        """One of them."""
        return choices[int(self.rng.integers(len(choices)))]

    def node(self, op_type: str, *inputs: Value | str, outs: int = 1, **attributes):
        """The names of a new node's outputs (one name where it has one)."""
        self.need(op_type)
        return self.op(op_type, *(each.name if isinstance(each, Value) else each for each in inputs), outs=outs, **attributes)

    def apply(
        self, op_type: str, *inputs: Value | str, like: Value | None = None, shape=None, channel_axis=None, **attributes
    ) -> Value:
        """A node with one output, of the shape of `like` or of its first input, unless `shape` says otherwise."""
        like = like or inputs[0]
        name = self.node(op_type, *inputs, **attributes)
        return Value(name, like.shape if shape is None else tuple(shape), like.axis if channel_axis is None else channel_axis)

    def array(self, values, dtype: object = None) -> str:
        """A new constant."""
        return self.const(f"c{len(self.initializers)}", values, dtype)

    def ints(self, *values: int) -> str:
        """(n,) int64."""
        return self.const(f"c{len(self.initializers)}", np.array(values, np.int64))

    def number(self, value: float, dtype: object = None) -> str:
        """A scalar."""
        return self.array(np.array(value), dtype)

    def weight(self, *shape: int, fan_in: int) -> str:
        """Random weights that keep activations of order one, no two alike, so that those that stay can be recognised."""
        values = self.he(shape, max(1, fan_in)).astype(np.float32)
        while len(np.unique(values)) < values.size:
            values = self.he(shape, max(1, fan_in)).astype(np.float32)
        return self.array(values)

    def per_channel(self, x: Value, values: np.ndarray, full_rank: bool | None = None) -> str:
        """(channels,) values, shaped so that they broadcast along the channel axis."""
        behind = x.rank - 1 - x.axis
        full_rank = self.chance(0.3) if full_rank is None else full_rank
        front = (1,) * x.axis if full_rank else ()
        return self.array(values.reshape(*front, -1, *(1,) * behind))

    def with_axes(self, op_type: str, x: Value | str, axes: Sequence[int], since: int, **attributes) -> str:
        """A node with axes, which are an input from opset `since` on."""
        if self.opset >= since:
            return self.node(op_type, x, self.ints(*axes), **attributes)
        return self.node(op_type, x, axes=list(axes), **attributes)

    def reduce(self, op_type: str, x: Value, axes: Sequence[int], keepdims: bool) -> Value:
        """A reduction over axes other than those of batch and channels."""
        name = self.with_axes(op_type, x, axes, 13 if op_type == "ReduceSum" else 18, keepdims=int(keepdims))
        shape = [1 if axis in axes else extent for axis, extent in enumerate(x.shape) if keepdims or axis not in axes]
        axis = x.axis if keepdims else x.axis - sum(each < x.axis for each in axes)
        return Value(name, tuple(shape), axis)

    def split(self, x: Value, sizes: Sequence[int], axis: int | None = None) -> list[Value]:
        """Pieces along the channel axis."""
        axis = x.axis if axis is None else axis
        attribute = axis - x.rank if self.chance(0.2) and self.opset >= 11 else axis
        equal = len(set(sizes)) == 1 and self.chance(0.5)
        if self.opset >= 18 and equal:
            names = self.node("Split", x, outs=len(sizes), axis=attribute, num_outputs=len(sizes))
        elif equal:
            names = self.node("Split", x, outs=len(sizes), axis=attribute)
        elif self.opset >= 13:
            names = self.node("Split", x, self.ints(*sizes), outs=len(sizes), axis=attribute)
        else:
            names = self.node("Split", x, outs=len(sizes), axis=attribute, split=list(sizes))
        return [
            Value(name, tuple(size if each == axis else extent for each, extent in enumerate(x.shape)), x.axis)
            for name, size in zip(names, sizes, strict=True)
        ]

    def slice(self, x: Value | str, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps=None) -> str:
        """A Slice with constant bounds; only its name, since its shape is the caller's affair."""
        if self.opset < 10:
            if steps is not None:
                raise Skip
            return self.node("Slice", x, starts=list(starts), ends=list(ends), axes=list(axes))
        last = () if steps is None else (self.ints(*steps),)
        return self.node("Slice", x, self.ints(*starts), self.ints(*ends), self.ints(*axes), *last)

    def reshape(self, x: Value | str, target: Sequence[int], shape: Sequence[Dim], axis: int) -> Value:
        """A Reshape with a constant target."""
        return Value(self.node("Reshape", x, self.ints(*target)), tuple(shape), axis)

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        """A Transpose."""
        return Value(
            self.node("Transpose", x, perm=list(order)), tuple(x.shape[each] for each in order), list(order).index(x.axis)
        )

    def clip(self, x: Value, low: float | None, high: float | None) -> Value:
        """A Clip; from opset 11 on, a missing bound is an input left empty."""
        if self.opset < 11:
            bounds = {"min": low, "max": high}
            return self.apply("Clip", x, **{key: value for key, value in bounds.items() if value is not None})
        bounds = ["" if bound is None else self.number(bound) for bound in (low, high)]
        return self.apply("Clip", x, *(bounds if bounds[1] else bounds[:1]))

    def cast(self, x: Value | str, to: int) -> str:
        """A Cast."""
        return self.node("Cast", x, to=to)
