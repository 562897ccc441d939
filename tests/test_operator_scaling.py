"""What every row of the operator table says of scaled channels holds in ONNX Runtime, whatever the other operands are.

One node at a time behind a convolution half of whose channels are a multiple of the others. Attributes are drawn from the
operator's schema, the other operands are absent, constant or fed. What the rule calls homogeneous must keep the multiples, what
it calls affine must be that map; what it refuses is not looked at. A draw that ONNX Runtime does not take is drawn again.
"""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from running import run
from topologies.net import Net

from onnxmerge.errors import ModelError, Reason
from onnxmerge.execution.shapes import observe
from onnxmerge.graph.analysed_model import shapes_of, values_of
from onnxmerge.graph.channel_analysis import analyse_channels
from onnxmerge.graph.operators import scale_crossing
from onnxmerge.graph.operators.scale_crossing import ChannelAffine
from onnxmerge.graph.operators.table import OPERATORS
from onnxmerge.graph.tensor_facts import TensorFacts
from onnxmerge.onnxio.model import from_proto

CHANNELS, FACTOR = 8, 0.375
TAKEN, TRIES = 25, 1000
OPSETS = {"Upsample": 9}
OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional

# Operators that claim something, but for attentions, which `test_merge_exactness.py` merges values in.
UNDRAWN = (scale_crossing.not_homogeneous, scale_crossing.filters, scale_crossing.values)
CLAIMING = sorted(name for name, row in OPERATORS.items() if row.crossing not in UNDRAWN)
Draw = Callable[[np.random.Generator], object]


def one_of(*values: object) -> Draw:
    return lambda rng: values[rng.integers(len(values))]


def integers(low: int, high: int, size: int) -> Draw:
    return lambda rng: rng.integers(low, high, size).tolist()


ATTRIBUTES: dict[str, Draw] = {
    "allowzero": one_of(0, 1),
    "alpha": lambda rng: float(rng.normal()),
    "antialias": one_of(0, 1),
    "auto_pad": one_of("NOTSET", "VALID", "SAME_UPPER"),
    "axes": one_of([2, 3], [3, 2], [-1], [2]),
    "axis": one_of(0, 1, 2, 3, -1),
    "batch_dims": one_of(0, 0, 1),
    "blocksize": one_of(1, 2),
    "ceil_mode": one_of(0, 1),
    "coordinate_transformation_mode": one_of("half_pixel", "asymmetric", *["tf_crop_and_resize"] * 3),
    "count_include_pad": one_of(0, 1),
    "cubic_coeff_a": lambda rng: float(rng.uniform(-1, 0)),
    "dilations": integers(1, 3, 2),
    "equation": one_of("nchw,wv->nchv", "nchw,vw->nchv"),
    "epsilon": one_of(1e-5, 1e-2),
    "exclude_outside": one_of(0, 1),
    "extrapolation_value": one_of(0.0, 3.0, 3.0),
    "keep_aspect_ratio_policy": one_of("stretch", "not_larger", "not_smaller"),
    "keepdims": one_of(0, 1),
    "kernel_shape": integers(1, 4, 2),
    "momentum": one_of(0.9, 0.5),
    "nearest_mode": one_of("round_prefer_floor", "floor", "ceil"),
    "noop_with_empty_axes": one_of(0, 1),
    "num_outputs": one_of(2),
    "p": one_of(1, 2, 3),
    "pads": integers(0, 2, 4),
    "perm": lambda rng: rng.permutation(4).tolist(),
    "seed": one_of(0, 1),
    "storage_order": one_of(0, 1),
    "strides": integers(1, 3, 2),
    "to": one_of(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.BOOL),
    "training_mode": one_of(0, 1),
}
MODES = {
    "Resize": one_of("nearest", "linear", "cubic"),
    "Upsample": one_of("nearest", "linear"),
    "Pad": one_of("constant", "reflect", "edge"),
    "DepthToSpace": one_of("DCR", "CRD"),
}


def numbers(*shapes: tuple[int, ...]) -> Draw:
    """Float32 of one of these shapes: all zero, all equal, or all different."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        values = rng.normal(size=shapes[rng.integers(len(shapes))])
        kind = rng.integers(3)
        return (values if kind else np.zeros_like(values) if rng.integers(2) else np.full_like(values, 0.7)).astype(np.float32)

    return draw


def ints(*values: object) -> Draw:
    return lambda rng: np.array(values[rng.integers(len(values))], np.int64)


def floats(*values: object) -> Draw:
    return lambda rng: np.array(values[rng.integers(len(values))], np.float32)


PER_CHANNEL = ((CHANNELS,),)
BROADCAST = ((), (1,), (CHANNELS, 1, 1), (1, CHANNELS, 1, 1), (2, CHANNELS, 4, 6), (2, 1, 4, 6), (4, 6), (4, 1), (6,))
# The operands beside the data, which is input 0; for elementwise operators and Concat, what the others may be.
OPERANDS: dict[str, tuple[Draw, ...]] = {
    "MatMul": (numbers((6, 5), (6, 6), (4, 4)),),
    "Einsum": (numbers((6, 6)),),
    "Dropout": (floats(0.5), one_of(np.array(True), np.array(False))),
    "PRelu": (numbers((1,), (1, 1, 1), (CHANNELS, 1, 1), (4, 6), (2, CHANNELS, 4, 6)),),
    "BatchNormalization": (*[numbers(*PER_CHANNEL)] * 3, lambda rng: rng.uniform(0.5, 2, CHANNELS).astype(np.float32)),
    "Resize": (
        floats(*[[0, 0, -0.2, -0.2, 1, 1, 1.2, 1.2]] * 2, [-0.2, 1.1]),
        floats([1, 1, 2, 0.5], [1, 1, 1.5, 1.5], [2], [2, 2]),
        ints([2, CHANNELS, 8, 6], [2, CHANNELS, 3, 4], [8], [5, 5]),
    ),
    "Upsample": (floats([1, 1, 2, 3]),),
    "Reshape": (ints([2, CHANNELS, -1], [0, -1], [2, -1, 4, 6], [2, 2, 4, 4, 6], [2, 4, 2, 24], [-1, 6]),),
    "Squeeze": (ints([2], [-2]),),
    "Unsqueeze": (ints([0], [2], [-1]),),
    "Split": (ints([2, 6], [1, 7], [3, 3], [2, 2]),),
    "Slice": (
        ints([0], [1], [-3]),
        ints([3], [6], [2**31], [-1]),
        ints([1], [2], [3], [-1]),
        ints([1], [2], [-1]),
    ),
    "Gather": (ints([0, 2, 1], [[0, 1], [2, 3]], 1, [3, 3, 0]),),
    "GatherND": (ints([[0], [1]], [[1], [0]]),),
    "Expand": (ints([2, CHANNELS, 4, 6], [3, 1, 1, 1, 1], [1, 1, 1, 1], [4, 6]),),
    "Tile": (ints([1, 1, 2, 3], [1, 2, 1, 1]),),
    "Pad": (
        ints([0, 0, 1, 1, 0, 0, 1, 2], [0, 2, 0, 0, 0, 1, 0, 0], [1, 2]),
        floats(0, 0.7),
        ints([2], [3], [1]),
    ),
}
OPERANDS |= {name: (ints([2], [2, 3], [-1], [1], []),) for name in CLAIMING if name.startswith("Reduce")}
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min", "Concat"}


class Trial:
    """One drawn node as a model, with what was drawn: names of attributes, and (input, how it was given)."""

    def __init__(self, name: str, rng: np.random.Generator) -> None:
        self.opset = OPSETS.get(name, 18)
        self.schema, self.rng = onnx.defs.get_schema(name, self.opset), rng
        self.net, self.feeds, self.drawn = Net(rng, self.opset, 8, batch=2), {}, set()
        height = 1 if name == "Squeeze" or rng.integers(8) == 0 else 4
        self.net.input("x", 3, height, 6)
        self.feeds["x"] = rng.normal(size=(2, 3, height, 6)).astype(np.float32)
        order = np.arange(CHANNELS).reshape(2, -1) if rng.integers(2) else np.arange(CHANNELS).reshape(-1, 2).T
        self.bases, self.copies = order
        self.producer("c")
        inputs = self.elementwise_inputs() if name in ELEMENTWISE else ["c", *self.operands(OPERANDS.get(name, ()))]
        if name in ("MatMul",) and rng.integers(2):
            inputs.reverse()
        most = self.schema.max_output if self.schema.max_output < 10 else 2
        outputs = [f"y{i}" for i in range(most if name == "Split" or rng.integers(2) else self.schema.min_output)]
        node = helper.make_node(name, inputs, outputs, name="node", **self.attributes(name))
        self.net.nodes.append(node)
        for output in outputs[1:]:
            if rng.integers(2):
                self.net.nodes.append(helper.make_node("Shape", [output], [f"{output}_shape"]))  # so that it is read
        self.net.outputs = [onnx.ValueInfoProto(name=output) for output in outputs]
        self.model = self.net.model()

    def producer(self, name: str) -> None:
        weight, bias = self.rng.normal(size=(CHANNELS, 3, 1, 1)), self.rng.normal(size=CHANNELS)
        for values in (weight, bias):
            values[self.copies] = FACTOR * values[self.bases]
        tensors = self.net.const(f"{name}_w", weight), self.net.const(f"{name}_b", bias)
        self.net.nodes.append(helper.make_node("Conv", ["x", *tensors], [name], name=name))

    def elementwise_inputs(self) -> list[str]:
        others = []
        for index in range(1 if self.schema.max_input == 2 else int(self.rng.integers(0, 3))):
            kind = self.rng.integers(4)
            if kind == 0:
                self.producer("k") if "k" not in others else None
                others.append("k")
            else:
                others.append(self.given(index + 1, numbers(*BROADCAST)(self.rng), kind == 1))
        inputs = ["c", *others]
        return [inputs[i] for i in self.rng.permutation(len(inputs))]

    def operands(self, draws: tuple[Draw, ...]) -> list[str]:
        inputs = []
        for index, draw in enumerate(draws, 1):
            is_optional = index < len(self.schema.inputs) and self.schema.inputs[index].option == OPTIONAL
            if is_optional and self.rng.integers(2):
                self.drawn.add((index, "absent"))
                inputs.append("")
            else:
                inputs.append(self.given(index, np.asarray(draw(self.rng)), bool(self.rng.integers(3))))
        while inputs and not inputs[-1]:
            inputs.pop()
        return inputs

    def given(self, index: int, value: np.ndarray, is_constant: bool) -> str:
        name = f"operand_{index}"
        self.drawn.add((index, "constant" if is_constant else "fed"))
        if is_constant:
            return self.net.const(name, value, value.dtype)
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.net.inputs.append(helper.make_tensor_value_info(name, kind, value.shape))
        self.feeds[name] = value
        return name

    def attributes(self, name: str) -> dict[str, object]:
        chosen = {}
        for attribute, facts in self.schema.attributes.items():
            if facts.required or self.rng.integers(2):
                chosen[attribute] = (MODES[name] if attribute == "mode" else ATTRIBUTES[attribute])(self.rng)
                self.drawn.add(attribute)
        return chosen

    def check(self) -> str:
        """What the rule says: "refused", or "homogeneous" or "affine" after a check of that; "" where nothing may go."""
        seen = observe(self.model.SerializeToString(), self.feeds)
        model = from_proto(self.model)
        model.graph.outputs.clear()  # they would pin the channels
        channels = analyse_channels(TensorFacts(model, shapes_of(seen), values_of(seen)))
        node = next(node for node in model.graph.nodes if node.name == "node")
        carrying = [index for index, tensor in enumerate(node.inputs) if tensor.name in channels.tensor_ids]
        names = [output.name for output in node.outputs if output.name in channels.tensor_ids]
        group = next((group for group in channels.groups if group.name == "c"), None)
        if group is None or not names or not carrying:
            return ""
        crossing = OPERATORS[node.op].crossing(channels, node, carrying)
        if isinstance(crossing, Reason):
            return "refused"
        c, *values = (array.astype(np.float64) for array in run(self.model, self.feeds, ("c", *names))[len(node.outputs) :])
        if isinstance(crossing, ChannelAffine):
            self.assert_affine(c, values[0], channels.tensor_ids["c"], crossing)
            return "affine"
        label = np.full(channels.id_count, -1)
        label[group.channel_ids[group.removable]] = group.merge_classes[group.removable]
        ids_of_c, checked = channels.tensor_ids["c"].reshape(-1), "refused"
        for base, copy in zip(ids_of_c[self.bases], ids_of_c[self.copies], strict=True):
            for name, y in zip(names, values, strict=True):
                ids = np.broadcast_to(channels.tensor_ids[name], y.shape)
                if base != copy and label[base] == label[copy] >= 0:
                    np.testing.assert_allclose(y[ids == copy], FACTOR * y[ids == base], rtol=1e-5, atol=1e-5)
                    checked = "homogeneous"
        return checked

    @staticmethod
    def assert_affine(c: np.ndarray, y: np.ndarray, ids: np.ndarray, crossing: ChannelAffine) -> None:
        scale, offset = (np.broadcast_to(each, ids.shape[1])[:, None, None] for each in (crossing.scale, crossing.offset))
        np.testing.assert_allclose(y, scale * c + offset, rtol=5e-3, atol=5e-3)
        if crossing.mean_std is not None:
            assert all(each.shape == (ids.shape[1],) for each in crossing.mean_std)


@pytest.mark.parametrize("name", CLAIMING)
def test_the_rule_holds_whatever_the_other_operands_are(name: str) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    outcomes, drawn, schema = [], set(), onnx.defs.get_schema(name, OPSETS.get(name, 18))
    for _ in range(TRIES):
        if len(outcomes) == TAKEN and schema.attributes.keys() <= drawn:
            break
        trial = Trial(name, rng)
        try:
            outcome = trial.check()
        except ModelError:
            continue
        outcomes += [outcome] if outcome and len(outcomes) < TAKEN else []
        drawn |= trial.drawn if outcome else set()
    assert {"homogeneous", "affine"} & set(outcomes), "no draw was checked"
    assert schema.attributes.keys() <= drawn
    for index, entry in enumerate(schema.inputs[1:], 1):
        assert entry.option != OPTIONAL or {(index, "absent")} <= drawn
        assert {(index, "constant"), (index, "fed")} & drawn


def test_channel_rules_have_draws() -> None:
    """An operator that has operands is drawn with them."""
    with_operands = {name for name in CLAIMING if len(onnx.defs.get_schema(name, OPSETS.get(name, 18)).inputs) > 1}
    assert with_operands <= OPERANDS.keys() | ELEMENTWISE
