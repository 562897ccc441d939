"""Samples of a consumer, laid out by ONNX Runtime: rows of a matrix product, or the patches that a convolution reads.

A consumer is looked at as a linear map of samples: y (samples, outputs) = x (samples, inputs) W^T + b. For a convolution a sample
is one output position and x its patch, laid out (position in the kernel, channel); elsewhere it is one row. Padding is part of a
patch, as zeros.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxmerge.algorithms.sample_counts import AMPLE, AMPLE_AT_LEAST
from onnxmerge.execution.sessions import Session, open_session

OPSET = 17
"""Operator set of the graphs built here: the newest one that needs no newer ONNX Runtime than the package asks for."""


@dataclass
class GraphBuilder:
    """A small ONNX graph under construction.

    Attributes
    ----------
    nodes : list of NodeProto
        The nodes so far, in the order in which they run.
    constants : dict of str to ndarray of int64
        Initializers by name.
    """

    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        name = f"_{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Sequence[int] | np.ndarray) -> str:
        """Add an int64 constant; returns its name."""
        name = f"_constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value, np.int64)
        return name

    def session(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, str], threads: int | None) -> Session:
        """Open the graph.

        Parameters
        ----------
        inputs : mapping of str to ndarray
            An example of each graph input: its type and number of axes count.
        outputs : mapping of str to str
            Name of each graph output -> the tensor that it gives.
        threads : int, optional
            Threads of ONNX Runtime; its own choice where None.

        Returns
        -------
        Session
        """
        nodes = [*self.nodes, *(helper.make_node("Identity", [inner], [name]) for name, inner in outputs.items())]
        types = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in inputs.items()}
        infos = [helper.make_tensor_value_info(name, types[name], [None] * value.ndim) for name, value in inputs.items()]
        graph = onnx.GraphProto(name="samples", node=nodes, input=infos)
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in self.constants.items())
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        return open_session(model.SerializeToString(), optimise=True, threads=threads, label="the samples of a layer")


@dataclass(frozen=True)
class Window:
    """The positions that a convolution reads.

    Attributes
    ----------
    kernel, strides, dilations : tuple of int
        One value for each spatial axis.
    before, after : tuple of int
        Padding in front of and behind each spatial axis.
    extents : tuple of int
        Output positions along each spatial axis.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    extents: tuple[int, ...]


def rows_of(builder: GraphBuilder, tensor: str, axis: int, rank: int) -> str:
    """Add nodes that put one axis of a tensor last and flatten all others.

    Parameters
    ----------
    builder : GraphBuilder
        The graph to add to.
    tensor : str
        Name of a tensor with `rank` axes.
    axis : int
        The axis of inputs or outputs; `rank` for a tensor that has none, of which every number is a sample.

    Returns
    -------
    str
        Name of a float32 tensor of shape (1, samples, size of the axis).
    """
    if axis == rank:
        tensor, rank = builder.op("Unsqueeze", tensor, builder.constant([axis])), rank + 1
    order = [a for a in range(rank) if a != axis] + [axis]
    moved = tensor if order == list(range(rank)) else builder.op("Transpose", tensor, perm=order)
    flat = builder.op("Flatten", builder.op("Cast", moved, to=onnx.TensorProto.FLOAT), axis=rank - 1)
    return builder.op("Unsqueeze", flat, builder.constant([0]))


def patches_of(builder: GraphBuilder, tensor: str, window: Window, groups: int, channels: int, steps: Sequence[int]) -> str:
    """Add nodes that unfold the input of a convolution into patches (im2col).

    Parameters
    ----------
    builder : GraphBuilder
        The graph to add to.
    tensor : str
        Name of a tensor of shape (N, groups * channels, *spatial).
    window : Window
        What the convolution reads.
    groups, channels : int
        Groups of the convolution, and channels in each of them.
    steps : sequence of int
        Take every so many-th output along each spatial axis; see `thinning`.

    Returns
    -------
    str
        Name of a float32 tensor of shape (groups, samples, kernel positions * channels).
    """
    axes = len(window.kernel)
    tensor = builder.op("Cast", tensor, to=onnx.TensorProto.FLOAT)
    if any(window.before) or any(window.after):
        tensor = builder.op("Pad", tensor, builder.constant([0, 0, *window.before, 0, 0, *window.after]))
    spatial = builder.constant(range(2, 2 + axes))
    pieces = []
    for offset in np.ndindex(*window.kernel):
        starts = [offset[a] * window.dilations[a] for a in range(axes)]
        ends = [starts[a] + (window.extents[a] - 1) * window.strides[a] + 1 for a in range(axes)]
        strides = [stride * step for stride, step in zip(window.strides, steps, strict=True)]
        bounds = builder.constant(starts), builder.constant(ends), spatial, builder.constant(strides)
        pieces.append(builder.op("Unsqueeze", builder.op("Slice", tensor, *bounds), builder.constant([1])))
    stacked = builder.op("Concat", *pieces, axis=1) if len(pieces) > 1 else pieces[0]
    return _by_group(builder, stacked, len(pieces), groups, channels)


def outputs_of(builder: GraphBuilder, tensor: str, window: Window, groups: int, channels: int, steps: Sequence[int]) -> str:
    """Add nodes that lay out the output of a convolution as `patches_of` lays out its input.

    Parameters
    ----------
    builder, window, groups, steps
        As for `patches_of`.
    tensor : str
        Name of a tensor of shape (N, groups * channels, *window.extents).
    channels : int
        Output channels in each group.

    Returns
    -------
    str
        Name of a float32 tensor of shape (groups, samples, channels).
    """
    axes = len(window.kernel)
    tensor = builder.op("Cast", tensor, to=onnx.TensorProto.FLOAT)
    if max(steps, default=1) > 1:
        bounds = [builder.constant([0] * axes), builder.constant(window.extents), builder.constant(range(2, 2 + axes))]
        tensor = builder.op("Slice", tensor, *bounds, builder.constant(steps))
    return _by_group(builder, builder.op("Unsqueeze", tensor, builder.constant([1])), 1, groups, channels)


def _by_group(builder: GraphBuilder, tensor: str, positions: int, groups: int, channels: int) -> str:
    """(N, positions, groups * channels, *spatial) -> (groups, samples, positions * channels)."""
    split = builder.op("Reshape", tensor, builder.constant([0, positions, groups, channels, -1]))
    moved = builder.op("Transpose", split, perm=[2, 0, 4, 1, 3])
    return builder.op("Reshape", moved, builder.constant([groups, -1, positions * channels]))


def window_of(
    attributes: Mapping[str, Any], input_shape: Sequence[int], kernel: Sequence[int], output_shape: Sequence[int]
) -> Window:
    """The window of a Conv for concrete shapes, with `auto_pad` worked out as the operator's documentation defines it.

    Parameters
    ----------
    attributes : mapping
        Attributes of the Conv node; defaults where they are absent.
    input_shape, output_shape : sequence of int
        Shapes (N, channels, *spatial) of what the Conv reads and writes.
    kernel : sequence of int
        Size of the kernel along each spatial axis.

    Returns
    -------
    Window

    Examples
    --------
    >>> window_of({"auto_pad": "SAME_UPPER"}, (1, 8, 5), (2,), (1, 16, 5)).after
    (1,)
    """
    axes = len(kernel)
    strides = tuple(attributes.get("strides", [1] * axes))
    dilations = tuple(attributes.get("dilations", [1] * axes))
    pads = list(attributes.get("pads", [0] * 2 * axes))
    extents = tuple(output_shape[2:])
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        reach = [(extents[a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 for a in range(axes)]
        total = [max(0, reach[a] - input_shape[2 + a]) for a in range(axes)]
        less, more = [n // 2 for n in total], [n - n // 2 for n in total]
        pads = less + more if mode == "SAME_UPPER" else more + less
    elif mode == "VALID":
        pads = [0] * 2 * axes
    return Window(tuple(kernel), strides, dilations, tuple(pads[:axes]), tuple(pads[axes:]), extents)


def thinning(samples: int, unknowns: int, extents: Sequence[int]) -> tuple[int, ...]:
    """Every how many-th output position of a convolution is enough; see `sample_counts.AMPLE`.

    Steps are odd: behind an upsampling by two, every second position would be of one kind.

    Parameters
    ----------
    samples : int
        Output positions of all inputs together.
    unknowns : int
        Inputs of one patch.
    extents : sequence of int
        Output positions along each spatial axis; at least four of them stay.

    Returns
    -------
    tuple of int
        A step for each spatial axis.

    Examples
    --------
    >>> thinning(500_000, 144, (32, 32))
    (5, 3)
    """
    enough = max(AMPLE_AT_LEAST, AMPLE * unknowns)
    steps = [1] * len(extents)
    while extents:
        axis = min(range(len(extents)), key=lambda a: (steps[a], a))
        remaining = samples / (np.prod(steps) // steps[axis] * (steps[axis] + 2))
        if remaining < enough or steps[axis] + 2 > extents[axis] // 4:
            break
        steps[axis] += 2
    return tuple(steps)
