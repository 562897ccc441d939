"""Steps of elementwise operators, normalisation and what works on one tensor alone."""

from __future__ import annotations

import numpy as np
import onnx

from .graph import Graph, Skip, Value, declared
from .steps import step

ACTIVATIONS = ("Relu", "Relu", "Relu", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Tanh", "Softplus")
ACTIVATIONS += (
    "Softsign",
    "Elu",
    "Selu",
    "Celu",
    "Gelu",
    "Mish",
    "Clip",
    "Clip",
    "ThresholdedRelu",
    "Shrink",
    "SiLU",
    "GeluByErf",
)
CURVES = ("Abs", "Neg", "Erf", "Sin", "Cos", "Atan", "Asinh", "Identity", "Dropout", "Cast")
SAFE = ("Exp", "Sinh", "Cosh", "Tan", "Asin", "Acos", "Atanh")  # behind a Tanh and a factor of 0.9
POSITIVE = ("Log", "Sqrt", "Reciprocal", "Acosh")  # behind Abs and an offset
STEEP = ("Floor", "Ceil", "Round", "Sign")  # added to the value itself
ALIKE = {"Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"}


def activation(g: Graph, x: Value, name: str = "") -> Value:
    """An activation function, by its operator or as exports spell it out."""
    name = name or g.pick(ACTIVATIONS)
    if name == "PRelu":
        slopes = np.full(x.channels, 0.25) if g.chance(0.3) else g.rng.uniform(0.1, 0.4, x.channels)
        if g.chance(0.2):
            return g.apply("PRelu", x, g.array(slopes[:1]))
        return g.apply("PRelu", x, g.per_channel(x, slopes))
    if name == "Clip":
        return g.clip(x, g.pick([0.0, -1.0, None]), g.pick([6.0, 1.0, None]))
    if name == "SiLU":
        return g.apply("Mul", x, g.apply("Sigmoid", x))
    if name == "GeluByErf":
        inner = g.apply("Add", g.apply("Erf", g.apply("Div", x, g.number(np.sqrt(2)))), g.number(1.0))
        return g.apply("Mul", g.apply("Mul", x, inner), g.number(0.5))
    attributes = {"Shrink": {"lambd": 0.2, "bias": 0.1}, "ThresholdedRelu": {"alpha": 0.3}, "LeakyRelu": {"alpha": 0.1}}
    return g.apply(name, x, **attributes.get(name, {}))


@step(14)
def activate(g: Graph, x: Value) -> Value:
    return activation(g, x)


@step(4)
def curve(g: Graph, x: Value) -> Value:
    name = g.pick(CURVES + SAFE + POSITIVE + STEEP)
    if name in SAFE:
        return g.apply(name, g.apply("Mul", g.apply("Tanh", x), g.number(0.9)))
    if name in POSITIVE:
        return g.apply(name, g.apply("Add", g.apply("Abs", x), g.number(1.5)))
    if name in STEEP:
        return g.apply("Add", x, g.apply(name, x))
    if name == "Cast":
        to = g.pick([1, 1, 11, 7])
        return g.apply("Cast", g.apply("Cast", x, to=to), to=1)
    if name == "Dropout":
        return dropout(g, x)
    return g.apply(name, x)


def dropout(g: Graph, x: Value) -> Value:
    """Dropout at inference, with or without ratio, mask and training mode."""
    if g.opset < 12:
        return g.apply("Dropout", x, **({"ratio": 0.3} if g.chance(0.5) else {}))
    inputs = g.pick([(), (g.number(0.3),), (g.number(0.3), g.number(0, bool)), ("", g.number(0, bool))])
    name, mask = g.node("Dropout", x, *inputs, outs=2)
    g.second_outputs.append(onnx.helper.make_tensor_value_info(mask, onnx.TensorProto.BOOL, declared(x.shape)))
    return Value(name, x.shape, x.axis)


@step(6)
def with_constant(g: Graph, x: Value) -> Value:
    """An arithmetic operator with a constant: a number, one for each channel, or one for each position."""
    name = g.pick(["Add", "Add", "Sub", "Mul", "Mul", "Div", "Max", "Min", "Pow"])
    if name in ("Max", "Min") and g.opset < 8:
        raise Skip
    shape = g.pick(["number", "channels", "channels", "full"])
    if shape == "full" and not x.is_static:
        shape = "channels"
    positive = name in ("Mul", "Div", "Pow")
    if shape == "number":
        constant = g.number(float(g.rng.uniform(0.5, 1.5)))
    elif shape == "channels":
        constant = g.per_channel(x, g.positive(x.channels) if positive else g.small(x.channels))
    else:
        constant = g.array(g.positive(*x.shape[1:]) if positive else g.small(*x.shape[1:]))
    if name == "Pow":
        return g.apply("Pow", g.apply("Add", g.apply("Abs", x), g.number(0.1)), constant)
    if name == "Div" and g.chance(0.3):
        return g.apply("Div", constant, g.apply("Add", g.apply("Abs", x), g.number(1.0)), like=x)
    return g.apply(name, *((constant, x) if g.chance(0.3) and name != "Div" else (x, constant)), like=x)


def batch_norm_of(g: Graph, x: Value) -> Value:
    """BatchNormalization at inference."""
    if x.axis != 1:
        raise Skip
    values = [
        g.array(part) for part in (g.positive(x.channels), g.small(x.channels), g.small(x.channels), g.positive(x.channels))
    ]
    return g.apply("BatchNormalization", x, *values, **({"epsilon": 1e-3} if g.chance(0.5) else {}))


@step(6, "image", "vector")
def batch_norm(g: Graph, x: Value) -> Value:
    return batch_norm_of(g, x)


@step(1, "image", "tokens", "vector")
def batch_norm_as_arithmetic(g: Graph, x: Value) -> Value:
    """Folded to Mul and Add, or to Sub, Div."""
    first, second = ("Mul", "Add") if g.chance(0.5) else ("Sub", "Div")
    values = {
        "Mul": g.positive(x.channels),
        "Add": g.small(x.channels),
        "Sub": g.small(x.channels),
        "Div": g.positive(x.channels),
    }
    return g.apply(second, g.apply(first, x, g.per_channel(x, values[first])), g.per_channel(x, values[second]))


@step(1, "image", "vector")
def batch_norm_in_training_mode(g: Graph, x: Value) -> Value:
    """Normalised by the statistics of the batch."""
    if g.opset < 14 or x.rank == 2:
        raise Skip
    parts = (g.positive(x.channels), g.small(x.channels), g.small(x.channels), g.positive(x.channels))
    values = [g.array(part) for part in parts]
    return Value(g.node("BatchNormalization", x, *values, outs=3, training_mode=1)[0], x.shape, 1)


@step(3, "image", "tokens", "vector")
def norm(g: Graph, x: Value) -> Value:
    """Another normalisation."""
    names = ["InstanceNormalization", "LayerNormalization", "RMSNormalization", "GroupNormalization", "LpNormalization", "LRN"]
    name = g.pick([*names, "MeanVarianceNormalization", "layer norm by hand", "group norm by instance norm"])
    image, count = x.kind == "image", x.channels
    if name == "InstanceNormalization" and image:
        return g.apply(name, x, g.array(g.positive(count)), g.array(g.small(count)))
    if name in ("LayerNormalization", "RMSNormalization") and not image:
        parameters = [g.array(g.positive(count)), *([g.array(g.small(count))] if name[0] == "L" and g.chance(0.7) else [])]
        return g.apply(name, x, *parameters, axis=x.axis)
    if name == "GroupNormalization" and image and count % 2 == 0:
        size = count if g.opset >= 21 else 2
        return g.apply(name, x, g.array(g.positive(size)), g.array(g.small(size)), num_groups=2)
    if name == "LpNormalization":
        return g.apply(name, x, **({"axis": g.pick([1, -1, x.rank - 1])} if g.chance(0.8) else {}), p=g.pick([1, 2]))
    if name == "LRN" and x.rank == 4 and image:
        return g.apply(name, x, size=3)
    if name == "MeanVarianceNormalization" and x.rank == 4:
        g.need(name)
        return g.apply(name, x, axes=g.pick([[0, 2, 3], [2, 3], [1, 2, 3]]))
    if name == "layer norm by hand" and not image:
        return layer_norm_by_hand(g, x)
    if name == "group norm by instance norm" and image and count % 2 == 0:
        return group_norm_by_instance_norm(g, x)
    raise Skip


def layer_norm_by_hand(g: Graph, x: Value) -> Value:
    """As exporters below opset 17 write it."""
    centred = g.apply("Sub", x, g.reduce("ReduceMean", x, [x.axis], True))
    variance = g.reduce("ReduceMean", g.apply("Pow", centred, g.number(2.0)), [x.axis], True)
    scaled = g.apply("Div", centred, g.apply("Sqrt", g.apply("Add", variance, g.number(1e-5))))
    return g.apply("Add", g.apply("Mul", scaled, g.array(g.positive(x.channels))), g.array(g.small(x.channels)))


def group_norm_by_instance_norm(g: Graph, x: Value) -> Value:
    """As torch.nn.GroupNorm is exported: Reshape to (N, groups, -1) and back around InstanceNormalization."""
    groups = 2
    rows = g.node("Reshape", x, g.ints(0, groups, -1))
    rows = g.node("InstanceNormalization", rows, g.array(np.ones(groups)), g.array(np.zeros(groups)))
    y = Value(g.node("Reshape", rows, g.node("Shape", x)), x.shape, 1)
    return g.apply("Add", g.apply("Mul", y, g.per_channel(x, g.positive(x.channels))), g.per_channel(x, g.small(x.channels)))


@step(2)
def softmax(g: Graph, x: Value) -> Value:
    """Softmax and the like along some axis."""
    name = g.pick(["Softmax", "Softmax", "LogSoftmax", "Hardmax"])
    attributes = {"axis": g.pick([x.axis, x.rank - 1, 1, *([-1] if g.opset >= 11 else [])])} if g.chance(0.8) else {}
    y = g.apply(name, x, **attributes)
    return y if name != "Hardmax" else g.apply("Add", x, y)


@step(2)
def masked(g: Graph, x: Value) -> Value:
    """Comparisons, logic and Where."""
    low, high = g.number(-0.3), g.number(0.7)
    way = g.pick(["Where", "And", "Or", "Xor", "Not", "Equal", "Mod", "IsNaN", "IsInf", "BitShift"])
    names = ["Greater", "Less"] if g.opset < 12 else ["Greater", "Less", "GreaterOrEqual", "LessOrEqual"]
    if g.opset < 9:
        raise Skip
    one, other = g.apply(g.pick(names), x, low), g.apply(g.pick(names), x, high)
    if way in ("And", "Or", "Xor"):
        one = g.apply(way, one, other)
    elif way == "Not":
        one = g.apply("Not", one)
    elif way in ("IsNaN", "IsInf"):
        one = g.apply("Not", g.apply(way, x))
    elif way == "Equal" and g.opset >= 11:
        one = g.apply("Equal", g.apply("Sign", x), g.number(1.0))
    elif way == "Mod":
        g.need("Mod")
        return g.apply("Mod", x, g.number(1.3), fmod=1)
    elif way == "BitShift":
        return bit_shift(g, x)
    inputs = g.pick([(one, x, g.number(0.0)), (one, x, g.per_channel(x, g.small(x.channels))), (one, g.apply("Tanh", x), x)])
    return g.apply("Where", *inputs, like=x)


def bit_shift(g: Graph, x: Value) -> Value:
    """Through unsigned integers."""
    g.need("BitShift")
    whole = g.cast(g.apply("Abs", x), 12)
    shifted = g.node("BitShift", whole, g.array(np.array(1), np.uint32), direction="LEFT")
    return g.apply("Add", x, g.cast(shifted, 1))


@step(0.7)
def random_values(g: Graph, x: Value) -> Value:
    """Noise that is multiplied by zero, and coins that cannot fall otherwise."""
    name = g.pick(
        [
            "RandomNormalLike",
            "RandomUniformLike",
            "Bernoulli",
            "RandomNormal",
            "RandomUniform",
            *["EyeLike"] * (5 if x.rank == 2 else 0),
        ]
    )
    if name == "Bernoulli":
        g.need(name)
        return g.apply("Mul", x, g.apply(name, g.apply("Cast", g.apply("Greater", x, g.number(0.0)), to=1)))
    if name == "EyeLike":
        return g.apply("Add", x, g.apply(name, x))
    noise = g.apply(name, x) if name.endswith("Like") else g.node(name, shape=[1] * x.rank)
    return g.apply("Add", x, g.node("Mul", noise, g.number(0.0)))
