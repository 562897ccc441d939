"""Which axes of a model's inputs count inputs, and how many of these a model takes in one call."""

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxmerge.errors import InputError
from onnxmerge.execution.tensor_specs import TensorSpec

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Batching:
    """How a model takes several inputs at once.

    Attributes
    ----------
    batched : names of the model inputs whose axis 0 is the batch; the others are given whole
    size : the only batch size that the model takes, None for any
    """

    batched: frozenset[str]
    size: int | None


def batching(specs: Sequence[TensorSpec], shapes: Shapes) -> Batching:
    """Which axes of a model's inputs are the batch, and its size.

    A dynamic axis 0 is the batch, of any size; inputs whose axis 0 is fixed or has another name are given whole. Where the
    batch's name is part of other axes too, or neither has a name (states of a recurrent layer, [2, ?, 128]), it keeps its size of
    the run. Where all axes 0 are fixed, their common size is the
    batch size; without a common size every call is one input.

    Parameters
    ----------
    specs : the model's inputs
    shapes : shape of every input in one run
    """
    leading = [spec for spec in specs if spec.dims]
    dynamic = [spec for spec in leading if not isinstance(spec.dims[0], int)]
    if not dynamic:
        sizes = {shapes[spec.name][0] for spec in leading}
        return Batching(frozenset(spec.name for spec in leading), sizes.pop()) if len(sizes) == 1 else Batching(frozenset(), 1)
    name = next((spec.dims[0] for spec in dynamic if spec.dims[0]), None)
    batched = [spec for spec in dynamic if spec.dims[0] in (None, name)]
    names = [spec.dims[0] for spec in dynamic if spec not in batched] + [dim for spec in specs for dim in spec.dims[1:]]
    tied = any(isinstance(dim, str) and name in re.findall(r"\w+", dim) for dim in names)
    tied |= name is None and any(None in spec.dims[1:] for spec in leading if spec not in dynamic)
    return Batching(frozenset(spec.name for spec in batched), shapes[batched[0].name][0] if tied else None)


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
