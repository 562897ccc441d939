"""What a row of the table says, and the decorator that adds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx

from .net import Net

IMAGE = {"x": (2, 3, 8, 8)}


@dataclass(frozen=True)
class Topology:
    """One small model and what is true of its channels, worked out by hand and not by the program under test.

    `removable` names a producer node and counts those of its output channels that are not pinned (0: all are pinned).
    Producers are Conv, ConvTranspose, Gemm and MatMul with a constant, but no depthwise convolutions, which pass channels on.
    A divisibility rule (grouped convolution, channel shuffle) does not lower the count.
    `at_most` names producers for which any count from 0 to the given one is right: a pin is honest, the number is ideal.
    `tied` lists producers that share channels, so that a channel leaves all of them at once.
    `merge`: every removable group has a positively homogeneous path, with per-channel affine steps only directly after
    a single producer; None: some groups have, others have not (or only `at_most` groups are there).
    """

    id: str
    build: Callable[[np.random.Generator], onnx.ModelProto]
    feeds: dict[str, tuple[int, ...]]
    removable: dict[str, int]
    tied: tuple[tuple[str, ...], ...] = ()
    merge: bool | None = True
    at_most: dict[str, int] = field(default_factory=dict)
    runnable: bool = True
    dtype: str = "float32"


TABLE: dict[str, Topology] = {}


def row(
    id: str,
    removable: dict[str, int],
    merge: bool | None,
    *,
    tied: tuple[tuple[str, ...], ...] = (),
    at_most: dict[str, int] | None = None,
    feeds: dict[str, tuple[int, ...]] = IMAGE,
    runnable: bool = True,
    opset: int = 17,
    ir: int = 8,
    dtype: str = "float32",
    batch: str | int = "N",
    symbolic: bool = False,
    initializers_as_inputs: bool = False,
    **arguments,
) -> Callable:
    """Register `fill(net, *inputs, **arguments)` as the topology `id`.

    The last producer of every model is called `out` and feeds a graph output: it is pinned, unless the row says otherwise.
    """
    if id in TABLE:
        raise ValueError(f"topology {id!r} is there twice")

    def register(fill: Callable[..., None]) -> Callable[..., None]:
        def build(rng: np.random.Generator) -> onnx.ModelProto:
            net = Net(rng, opset, ir, dtype, batch)
            dims = {name: symbolic_of(shape) if symbolic else shape[1:] for name, shape in feeds.items()}
            fill(net, *[net.input(name, *rest) for name, rest in dims.items()], **arguments)
            model = net.model()
            if initializers_as_inputs:
                add_initializers_to_inputs(model)
            if symbolic and len(next(iter(feeds.values()))) == 4:
                onnx.helper.set_model_props(model, {"imgsz": "[64, 64]"})  # as some exporters write; or 224 x 224
            return model

        facts = {"out": 0, **removable}
        TABLE[id] = Topology(id, build, dict(feeds), facts, tied, merge, at_most or {}, runnable, dtype)
        return fill

    return register


def symbolic_of(shape: tuple[int, ...]) -> tuple[int | str, ...]:
    """Extents behind the batch, with dynamic positions: of an image (N, C, H, W) or of tokens (N, T, C)."""
    return (shape[1], "H", "W") if len(shape) == 4 else ("T", shape[2])


def add_initializers_to_inputs(model: onnx.ModelProto) -> None:
    """What IR versions below 4 ask for."""
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def feeds_of(topology: Topology, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded standard normal values for every graph input, batch 2."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(topology.dtype) for name, shape in topology.feeds.items()}
