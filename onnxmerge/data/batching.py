"""Which axes of a model's inputs count inputs, and how many of these a model takes in one call."""

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxmerge.errors import InputError
from onnxmerge.execution.batch_axes import Axes, batch_axes
from onnxmerge.execution.tensor_specs import TensorSpec

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Batching:
    """How a model takes several inputs at once.

    Attributes
    ----------
    axes : the batch's axis of the model inputs that have one; the others are given whole
    size : the only batch size that the model takes, None for any
    """

    axes: Axes
    size: int | None


def batching(specs: Sequence[TensorSpec], shapes: Shapes) -> Batching:
    """Which axes of a model's inputs are the batch, and its size.

    The batch is dynamic, of any size, where `batch_axes` finds it; inputs without it are given whole. Where its name is part of
    other axes too, it keeps its size of the run. Where all axes 0 are fixed, their common size is the batch size. Without one
    every call is one input, on the axis of size 1 where each input has one, as [1, 512] and [2, 1, 128].

    Parameters
    ----------
    specs : the model's inputs, as `Call.described` gives them where the model has been run
    shapes : shape of every input in one run
    """
    axes = batch_axes(specs)
    if not axes:
        return _fixed([spec for spec in specs if spec.dims], shapes)
    name, axis = next(iter(axes.items()))
    others = [dim for spec in specs for number, dim in enumerate(spec.dims) if number != axes.get(spec.name)]
    symbol = next((spec.dims[axes[spec.name]] for spec in specs if spec.name in axes and spec.dims[axes[spec.name]]), None)
    tied = any(isinstance(dim, str) and symbol in re.findall(r"\w+", dim) for dim in others)
    return Batching(axes, shapes[name][axis] if tied else None)


def _fixed(leading: Sequence[TensorSpec], shapes: Shapes) -> Batching:
    sizes = {shapes[spec.name][0] for spec in leading}
    if len(sizes) == 1:
        return Batching(dict.fromkeys((spec.name for spec in leading), 0), sizes.pop())
    is_told = all(1 in spec.dims for spec in leading)
    return Batching({spec.name: spec.dims.index(1) for spec in leading} if is_told else {}, 1)


def check_batch(model: Path, batch_size: int | None, batch: int | None, shapes: Shapes) -> None:
    """Refuse a batch that cannot be timed.

    Parameters
    ----------
    model : the model's file, for messages
    batch_size : the only number of inputs that the model takes in one call, None for any
    batch : number of inputs in one call that is asked for, None for one that fits
    shapes : shape of every tensor in one run

    Raises
    ------
    InputError
        Where the model takes another number, or where one tensor of so many inputs has not its place in memory.
    """
    if batch is None:
        return
    if batch_size not in (None, batch):
        raise InputError(f"{model} takes exactly {batch_size} inputs a call: `batch` {batch} cannot be timed")
    needed = 4 * batch * max((math.prod(shape[1:]) for shape in shapes.values()), default=1)  # 4 bytes a number
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize
    if needed > memory:
        gigabytes = f"{needed / 1e9:.3g} GB, and this machine has {memory / 1e9:.3g} GB"
        raise InputError(f"`batch` {batch} is too large for {model}: one of its tensors would take {gigabytes}")
