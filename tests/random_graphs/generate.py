"""From a seed to a model: inputs, steps, outputs, and what exporters leave lying about."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count

import numpy as np
import onnx
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as state
from running import run

from . import (  # noqa: F401  # they register their steps
    attention,
    blocks,
    elementwise,
    layers,
    layout,
    limited_sizes,
    mixing,
    recurrent,
    shapes,
)
from .graph import Dim, Graph, Skip, Value, declared
from .layers import conv_of, dense, gemm_of, width
from .layout import pooled
from .steps import any_step

OPSETS = range(7, 26)
SIZES = ({"N": 2, "H": 8, "W": 16, "L": 8}, {"N": 3, "H": 16, "W": 8, "L": 24})
"""Extents of dynamic axes in the two runs that are compared; multiples of 8, so that they can be halved three times."""
SMALL = {"N": 1, "H": 32, "W": 32, "L": 32}
"""Those that a model is analysed at."""
# IR versions that ONNX wrote with an opset: onnx/docs/Versioning.md. Older files are valid too, from 3 on.
OLDEST_IR = {**dict.fromkeys(range(7, 9), 3), **dict.fromkeys(range(9, 26), 4)}


REJECTED = (state.Fail, state.NotImplemented, state.RuntimeException, state.InvalidGraph, state.InvalidArgument)
"""What ONNX Runtime says of a model that it does not run."""
LARGE = 1e4
"""Outputs above are thrown away: their rounding errors are as large as others' values."""


@dataclass(frozen=True)
class Generated:
    """A random model.

    Attributes
    ----------
    seed : int
        What it was made from.
    model : ModelProto
        Valid, and ONNX Runtime runs it.
    inputs : dict[str, tuple]
        Shape of each input, with dynamic extents as in `graph.Dim`.
    """

    seed: int
    model: onnx.ModelProto
    inputs: dict[str, tuple[Dim, ...]] = field(default_factory=dict)

    def feeds(self, number: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
        """Standard normal inputs of the sizes `SIZES[number]`."""
        rng = np.random.default_rng([seed, number])
        return {
            name: rng.normal(size=[concrete(extent, SIZES[number]) for extent in shape]).astype(np.float32)
            for name, shape in self.inputs.items()
        }

    @property
    def input_shape(self) -> dict[str, tuple[int, ...]]:
        """Sizes that are cheap to analyse, for the option of this name."""
        return {name: tuple(concrete(extent, SMALL) for extent in shape) for name, shape in self.inputs.items()}

    @property
    def is_dynamic(self) -> bool:
        """Whether its inputs can have other sizes."""
        return any(not isinstance(extent, int) for shape in self.inputs.values() for extent in shape)


def concrete(extent: Dim, sizes: dict[str, int]) -> int:
    """The number that an extent is."""
    return extent if isinstance(extent, int) else int(sizes[extent[0]] * extent[1])


def generate(seed: int, most_steps: int = 9) -> Generated:
    """The model of a seed; with fewer steps, the same one cut short.

    What ONNX Runtime does not run (it lacks operators of some opsets), or what overflows, is thrown away and drawn anew.
    """
    return next(found for found in (attempt(seed, number, most_steps) for number in count()) if found is not None)


def attempt(seed: int, number: int, most_steps: int = 9) -> Generated | None:
    """The model of a seed and of how often it was drawn; None where it does not run."""
    try:
        found = drawn(seed, number, most_steps)
        runs = [run(found.model, found.feeds(each)) for each in range(1 + found.is_dynamic)]
    except (Skip, *REJECTED):
        return None
    return found if all(np.isfinite(y).all() and np.abs(y).max() < LARGE for outputs in runs for y in outputs) else None


def drawn(seed: int, number: int, most_steps: int = 9) -> Generated:
    """Built, and not yet run."""
    rng = np.random.default_rng([seed, number])
    opset = int(rng.choice(OPSETS))
    g = Graph(rng, opset, int(rng.integers(OLDEST_IR[opset], 11)), seed)
    step_count = int(rng.integers(3, 10))
    inputs = input_values(g)
    x = stem(g, inputs)
    for _ in range(min(step_count, most_steps)):
        x = any_step(g, x)
        g.earlier.append(x)
    finish(g, x)
    model = g.model()
    decorate(g, model)
    return Generated(seed, model, {value.name: value.shape for value in inputs})


def input_values(g: Graph) -> list[Value]:
    """One to three graph inputs."""
    batch: Dim = ("N", Fraction(1)) if g.chance(0.6) else 2
    kind = g.pick(
        ["image"] * 6 + ["sequence", "volume", "tokens", "tokens", "vector"] + ["tokens"] * (9 * (g.seed >= attention.SINCE))
    )
    dynamic = g.chance(0.35)
    extents: dict[str, list[Dim]] = {
        "image": [("H", Fraction(1)), ("W", Fraction(1))] if dynamic else [8, g.pick([8, 4])],
        "sequence": [("L", Fraction(1))] if dynamic else [8],
        "volume": [4, 4, 4],
        "tokens": [("L", Fraction(1))] if dynamic else [g.pick([4, 8])],
        "vector": [],
    }
    values = []
    for number in range(g.pick([1, 1, 1, 2, 3])):
        channels = g.pick([3, 3, 1, 6])
        if kind == "tokens":
            shape, axis = (batch, *extents[kind], 4 * channels), 2
        elif kind == "vector":
            shape, axis = (batch, 4 * channels), 1
        else:
            shape, axis = (batch, channels, *extents[kind]), 1
        values.append(Value(f"input_{number}", shape, axis))
        g.inputs.append(helper.make_tensor_value_info(values[-1].name, g.element_type, declared(shape)))
    return values


def stem(g: Graph, inputs: list[Value]) -> Value:
    """A layer behind every input, and all of them joined."""
    out = width(g)
    firsts = [first_layer(g, value, out) for value in inputs]
    g.earlier.extend(firsts)
    x = firsts[0]
    for other in firsts[1:]:
        if g.chance(0.5):
            x = g.apply("Add", x, other, shape=x.shape) if x.shape == other.shape else x
        else:
            x = Value(g.node("Concat", x, other, axis=x.axis), x.with_channels(x.channels + other.channels), x.axis)
    return x


def first_layer(g: Graph, x: Value, out: int) -> Value:
    if x.kind == "image":
        return conv_of(g, x, out)
    return dense(g, x, out) if x.kind == "tokens" or g.chance(0.3) else gemm_of(g, x, out)


def finish(g: Graph, x: Value) -> None:
    """One to three outputs: mostly behind a layer, so that what comes before can shrink."""
    heads = [x, *(g.pick(g.earlier) for _ in range(g.pick([0, 0, 0, 1, 2])))]
    for value in heads:
        if g.chance(0.5):
            value = pooled(g, value)
        if g.chance(0.85) and (value.kind != "image" or value.rank < 6):
            value = first_layer(g, value, int(g.rng.integers(2, 6)))
        if g.chance(0.15):
            value = g.apply("Softmax", value, axis=1)
        if value.name in {output.name for output in g.outputs}:
            continue
        g.outputs.append(helper.make_tensor_value_info(value.name, g.element_type, declared(value.shape)))
    if g.second_outputs and g.chance(0.2):
        g.outputs.append(g.second_outputs[0])


def decorate(g: Graph, model: onnx.ModelProto) -> None:
    """What exporters leave: Constant nodes, Identities, dead nodes, initializers as inputs, odd names."""
    graph = model.graph
    if g.chance(0.3):  # Constant has whole numbers from opset 9 on; ONNX Runtime wants all bounds of a Slice of one kind
        whole = g.opset >= 9 and g.chance(0.5)
        for tensor in [each for each in graph.initializer if (whole if each.data_type != 1 else g.chance(0.5))]:
            graph.initializer.remove(tensor)
            node = helper.make_node("Constant", [], [tensor.name], value=tensor)
            graph.node.insert(0, node)
    if g.chance(0.2):
        dead = helper.make_node("Relu", [g.pick(g.earlier).name], ["never_read"], name="dead")
        graph.node.append(dead)
    if g.chance(0.25):
        behind_identity(g, graph)
    if g.ir < 4 or g.chance(0.1):
        for tensor in graph.initializer:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    if g.chance(0.3):
        model.graph.value_info.extend(onnx.shape_inference.infer_shapes(model).graph.value_info)
    if g.chance(0.25):
        odd_names(g, model)


def behind_identity(g: Graph, graph: onnx.GraphProto) -> None:
    """Some inputs of nodes read an Identity of what they read."""
    for position in sorted(g.rng.choice(len(graph.node), min(3, len(graph.node)), replace=False).tolist(), reverse=True):
        node = graph.node[position]
        if not node.input or not node.input[0] or node.op_type in ("SequenceAt", "ConcatFromSequence", "Constant"):
            continue
        name = f"same_{position}"
        graph.node.insert(position, helper.make_node("Identity", [node.input[0]], [name]))
        graph.node[position + 1].input[0] = name


def odd_names(g: Graph, model: onnx.ModelProto) -> None:
    """Nodes without names or with odd ones; tensors with names that are hard to write."""
    for number, node in enumerate(model.graph.node):
        node.name = g.pick(["", node.name, f"/a b/{number}", f"{node.name}:{number}", f"größe ✓ {number}", str(number)])
    bodies = any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute)
    if bodies:
        return
    kept = {value.name for value in (*model.graph.input, *model.graph.output)} - {t.name for t in model.graph.initializer}
    forms = ("{}", "/layer.{}/w", "{} with space", "{}:0", "ä{}", "onnx::{}", "%{}", "{}_y")
    names: dict[str, str] = {}

    def renamed(name: str) -> str:
        if not name or name in kept:
            return name
        return names.setdefault(name, forms[len(names) % len(forms)].format(f"{name}_{len(names)}"))

    for node in model.graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for each in (*model.graph.initializer, *model.graph.value_info, *model.graph.input):
        each.name = renamed(each.name)
