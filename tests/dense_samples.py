"""What layers read and write as dense matrices, one row a sample, made by loops in numpy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from onnxmerge.graph.layers import Layer


@dataclass(frozen=True)
class Case:
    """A convolution: input (N, channels, *extents), out channels, kernel, groups, attributes, every how many-th output."""

    extents: tuple[int, ...]
    kernel: tuple[int, ...]
    attributes: dict[str, object] = field(default_factory=dict)
    groups: int = 1
    thin: tuple[int, ...] = ()
    dtype: str = "float32"


def pads_of(case: Case, output: tuple[int, ...]) -> list[tuple[int, int]]:
    """(before, after) an axis, from the definition in the operator's documentation."""
    strides, dilations = (case.attributes.get(name, [1] * len(case.kernel)) for name in ("strides", "dilations"))
    mode, given = case.attributes.get("auto_pad"), case.attributes.get("pads", [0] * 2 * len(case.kernel))
    pairs = []
    for axis, (size, kernel) in enumerate(zip(case.extents, case.kernel, strict=True)):
        needed = max(0, (output[axis] - 1) * strides[axis] + (kernel - 1) * dilations[axis] + 1 - size)
        small, large = needed // 2, needed - needed // 2
        explicit = (given[axis], given[axis + len(case.kernel)])
        pairs.append({"SAME_UPPER": (small, large), "SAME_LOWER": (large, small), "VALID": (0, 0)}.get(mode, explicit))
    return pairs


def im2col(x: np.ndarray, case: Case, output: tuple[int, ...], groups: int) -> np.ndarray:
    """(groups, N * pixels, positions * channels) by loops over every number."""
    strides, dilations = (case.attributes.get(name, [1] * len(case.kernel)) for name in ("strides", "dilations"))
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads_of(case, output)])
    inside, thin = x.shape[1] // groups, case.thin or (1,) * len(output)
    result = []
    for group in range(groups):
        rows = []
        for n, *place in itertools.product(range(len(x)), *(range(0, o, t) for o, t in zip(output, thin, strict=True))):
            row = []
            for offset in itertools.product(*map(range, case.kernel)):
                at = tuple(p * s + o * d for p, s, o, d in zip(place, strides, offset, dilations, strict=True))
                row += [padded[(n, group * inside + channel, *at)] for channel in range(inside)]
            rows.append(row)
        result.append(rows)
    return np.array(result)


# Topology and consumer -> the samples that it reads and writes: x (N, ...) -> (samples, in), y -> (samples, out).
Rows = Callable[[np.ndarray], np.ndarray]
LAST, FIRST = (lambda t: t.reshape(-1, t.shape[-1])), (lambda t: t.T)
MIDDLE: Rows = lambda t: np.concatenate([one.T for one in t])  # noqa: E731
DENSE: dict[tuple[str, str], tuple[Rows, Rows]] = {
    ("gemm-relu-gemm-transb0", "fc_b"): (LAST, LAST),
    ("gemm-relu-gemm-transb0", "out"): (LAST, LAST),
    ("gemm-relu-gemm-transb1", "fc_b"): (LAST, LAST),
    ("gemm-relu-gemm-alpha-beta", "fc_b"): (LAST, LAST),
    ("gemm-relu-gemm-alpha-beta", "out"): (LAST, LAST),
    ("gemm-transa", "out"): (FIRST, LAST),
    ("matmul-add-2d", "out"): (LAST, LAST),
    ("matmul-add-3d", "out"): (LAST, LAST),
    ("matmul-weight-left", "out"): (MIDDLE, MIDDLE),
    ("flatten-spatial", "out"): (LAST, LAST),
    ("flatten-channel-minor", "out"): (LAST, LAST),
    ("concat-flatten", "out"): (LAST, LAST),
    ("weight-behind-transpose", "out"): (LAST, LAST),
}
CONVOLUTIONS = {
    ("conv-relu-conv", "out"): ((3, 3), {"pads": [1] * 4}),
    ("resize-scales", "out"): ((3, 3), {"pads": [1] * 4}),
    ("silu", "out"): ((3, 3), {"pads": [1] * 4}),
    ("grouped-conv-output", "out"): ((3, 3), {"pads": [1] * 4}),
    ("residual-projection", "projection"): ((1, 1), {"strides": [2, 2]}),
    ("residual-projection", "block_conv1"): ((3, 3), {"strides": [2, 2], "pads": [1] * 4}),
    ("conv1d", "out"): ((3,), {"pads": [1] * 2}),
    ("conv3d", "out"): ((3, 3, 3), {"pads": [1] * 6}),
    ("grouped-conv", "grouped"): ((3, 3), {"pads": [1] * 4}),
    ("concat-two-producers", "out"): ((3, 3), {"pads": [1] * 4}),
    ("concat-same-twice", "out"): ((3, 3), {"pads": [1] * 4}),
    ("channel-shuffle-uneven", "grouped_b"): ((3, 3), {"pads": [1] * 4}),
    ("float16", "conv_b"): ((3, 3), {"pads": [1] * 4}),
}


def dense(
    name: str, consumer: str, layer: Layer, thin: tuple[int, ...], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All samples of a batch, by the tables above."""
    if (name, consumer) in DENSE:
        return tuple(take(value)[None].astype(np.float64) for take, value in zip(DENSE[name, consumer], (x, y), strict=True))
    kernel, attributes = CONVOLUTIONS[name, consumer]
    case = Case(x.shape[2:], kernel, attributes, layer.groups, thin)
    one = Case(y.shape[2:], (1,) * len(kernel), {}, layer.groups, case.thin)
    return im2col(x, case, y.shape[2:], layer.groups), im2col(y, one, y.shape[2:], layer.groups)
