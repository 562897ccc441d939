"""Kept rows of producers: the Gauss-Newton step against dense algebra, its linear maps against networks, what it brings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from running import analysed, solve_consumers_alone, weights_of, written
from topologies.net import Net

from onnxmerge import compress
from onnxmerge.execution.sessions import open_session
from onnxmerge.graph.channel_paths import DIFFERENTIABLE, channel_path
from onnxmerge.graph.operators import elementwise
from onnxmerge.graph.operators.table import OPERATORS
from onnxmerge.graph.rewrite import Replacement
from onnxmerge.pruning import layer_update, producer_update
from onnxmerge.statistics import path_derivatives
from onnxmerge.statistics.producer_samples import ProducerSamples


def convolutions(between: Callable[[Net, str], str], first: Callable[..., str] | None = None, **attributes) -> onnx.ModelProto:  # type: ignore[no-untyped-def]
    """What is first, conv_a, what is between, conv_b and a layer more."""
    net = Net(np.random.default_rng(0))
    x = net.input("x", 3, 12, 12)
    x = net.conv(x if first is None else first(net, x), "conv_a", 3, 8)
    y = net.conv(between(net, x), "conv_b", 8, 10, **attributes)
    net.output(net.conv(net.relu(y), "out", 10, 4, kernel=1), 4, "h", "w")
    return net.model()


def dense(between: Callable[[Net, str], str]) -> onnx.ModelProto:
    """The same of matrix products, fc_a and fc_b."""
    net = Net(np.random.default_rng(0))
    y = net.gemm(between(net, net.gemm(net.input("x", 12), "fc_a", 12, 8)), "fc_b", 8, 10)
    net.output(net.gemm(net.relu(y), "out", 10, 4), 4)
    return net.model()


def pooled(net: Net, x: str, **more: object) -> str:
    return net.op("MaxPool", net.relu(x), **{"kernel_shape": [2, 2], "strides": [2, 2], **more})


def silu(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x))


def depthwise(net: Net, x: str, **attributes: object) -> str:
    """As between the expansion and the projection of an inverted residual."""
    x = net.op("Clip", x, net.const("low", 0.0), net.const("high", 6.0))
    return net.relu(net.conv(x, "depthwise", 8, 8, group=8, **attributes))


def gated(net: Net, x: str, source: str) -> str:
    """Each channel times a number that all of `source` tells, of 3 or 8 channels."""
    squeezed = net.conv(net.op("GlobalAveragePool", source), "gate", 3 if source == "x" else 8, 8, kernel=1)
    return net.op("Mul", x, net.op("Sigmoid", squeezed, name="sigmoid"))


def average(net: Net, x: str, **attributes: object) -> str:
    return net.op("AveragePool", net.relu(x), **{"kernel_shape": [2, 2], "strides": [2, 2], **attributes})


def shown(net: Net, x: str) -> str:
    """The same, of which the gate is an output too."""
    x = excited(net, x)
    net.output("sigmoid_y", 8, 1, 1)
    return x


def excited(net: Net, x: str) -> str:
    """Squeeze and excite behind a depthwise convolution."""
    x = depthwise(net, x)
    return gated(net, x, x)


def negated(net: Net, x: str) -> str:
    return net.op("Neg", x)


def excited_by_both(net: Net, x: str) -> str:
    """Squeeze and excite with what the input adds to it."""
    x = net.relu(x)
    squeezed = [net.conv(net.op("GlobalAveragePool", y), f"gate_{y}", c, 8, kernel=1) for y, c in ((x, 8), ("x", 3))]
    return net.op("Mul", x, net.op("Sigmoid", net.op("Add", *squeezed)))


def scaled_rows() -> onnx.ModelProto:
    """Matrix products of (5, 12) with a computed number for each row between them."""
    net = Net(np.random.default_rng(0))
    x = net.matmul(net.input("x", 5, 12), "fc_a", 12, 8)
    x = net.op("Mul", net.relu(x), net.op("ReduceMax", "x", axes=[2], keepdims=1))
    net.output(net.matmul(net.relu(net.matmul(x, "fc_b", 8, 10)), "out", 10, 4), 5, 4)
    return net.model()


PATHS: dict[str, tuple[Callable[[], onnx.ModelProto], bool]] = {
    "relu": (lambda: convolutions(Net.relu), True),
    "nothing": (lambda: convolutions(lambda net, x: x), True),
    "bn, relu": (lambda: convolutions(lambda net, x: net.relu(net.batch_norm(x, "bn", 8))), True),
    "silu": (lambda: convolutions(silu), True),
    "max pooling": (lambda: convolutions(pooled), True),
    "strides": (lambda: convolutions(Net.relu, strides=[2, 2]), True),
    "dense": (lambda: dense(Net.relu), True),
    "scale of each channel": (lambda: convolutions(lambda net, x: net.op("Mul", x, net.const("s", net.small(8, 1, 1)))), True),
    "scale of each position": (lambda: convolutions(lambda net, x: net.op("Mul", x, net.const("s", net.small(12, 12)))), False),
    "overlapping pooling": (lambda: convolutions(partial(pooled, kernel_shape=[3, 3])), False),
    "padding that some outputs read alone": (lambda: convolutions(Net.relu, kernel=1, pads=[0, 10, 0, 10]), False),
    "average pooling": (lambda: convolutions(average), True),
    "overlapping average pooling": (lambda: convolutions(partial(average, kernel_shape=[3, 3])), True),
    "padded average pooling": (lambda: convolutions(partial(average, pads=[1, 1, 1, 1])), False),
    "depthwise": (lambda: convolutions(depthwise, kernel=1), True),
    "depthwise without a bias": (lambda: convolutions(partial(depthwise, bias=False), kernel=1), True),
    "depthwise with strides": (lambda: convolutions(partial(depthwise, strides=[2, 2])), True),
    "depthwise with dilations": (lambda: convolutions(partial(depthwise, dilations=[2, 2], pads=[2, 2, 2, 2])), True),
    "pooled and depthwise": (lambda: convolutions(lambda net, x: depthwise(net, pooled(net, x)), kernel=1), True),
    "two depthwise": (
        lambda: convolutions(lambda net, x: net.relu(net.conv(depthwise(net, x), "next", 8, 8, group=8)), kernel=1),
        True,
    ),
    "grouped": (lambda: convolutions(lambda net, x: net.relu(net.conv(net.relu(x), "grouped", 8, 8, group=4))), False),
    "a gate of the input": (lambda: convolutions(lambda net, x: gated(net, depthwise(net, x), "x"), kernel=1), True),
    "a gate of what the producer does not read": (
        lambda: convolutions(lambda net, x: gated(net, depthwise(net, x), "x"), negated, kernel=1),
        True,
    ),
    "a gate of both": (lambda: convolutions(excited_by_both, negated, kernel=1), True),
    "squeeze and excite": (lambda: convolutions(excited, kernel=1), True),
    "an output beside the gate": (lambda: convolutions(shown, kernel=1), False),
    "a number for each row": (scaled_rows, False),
    "softmax": (lambda: convolutions(lambda net, x: net.op("Softmax", x, axis=1)), False),
    "another computed value": (
        lambda: convolutions(lambda net, x: net.op("Add", x, net.op("ReduceMean", x, axes=[1], keepdims=1))),
        False,
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_what_is_a_channel_path(name: str, tmp_path: Path) -> None:
    make, is_one = PATHS[name]
    channels = analysed(make(), tmp_path).channels
    layers = {layer.name: layer for layer in channels.layers}
    kind = "fc" if "fc_a" in layers else "conv"
    assert (channel_path(channels, layers[f"{kind}_a"], layers[f"{kind}_b"]) is not None) == is_one


def test_another_reader_bars_a_path(tmp_path: Path) -> None:
    def read_twice(net: Net, x: str) -> str:
        net.output(net.op("GlobalAveragePool", x), 8, 1, 1)
        return net.relu(x)

    channels = analysed(convolutions(read_twice), tmp_path).channels
    assert channel_path(channels, *channels.layers[:2]) is None


def test_outputs_that_read_padding_alone_are_no_obstacle(tmp_path: Path) -> None:
    model = convolutions(Net.relu, kernel=1, pads=[10, 10, 10, 10])
    result = compress(written(model, tmp_path), tmp_path / "out.onnx", ratio=0.5, **FAST)
    assert len(result.groups) == 2


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ProducerSamples, tuple]]:
    """The samples of all producers that were updated, with what they were made of, residuals all one."""
    found: list[tuple[ProducerSamples, tuple]] = []

    class Seen(ProducerSamples):
        def __init__(self, run, path, weights, residual, system):  # type: ignore[no-untyped-def]
            self.reached: list[np.ndarray] = []

            def recorded(batch, view, current):  # type: ignore[no-untyped-def]
                self.reached.append(np.moveaxis(current[:, weights.outputs], 1, -1).reshape(-1, len(weights.outputs)))
                return np.ones_like(current)

            super().__init__(run, path, weights, recorded, system)
            found.append((self, (run, path, weights, residual, system)))

    monkeypatch.setattr(producer_update, "ProducerSamples", Seen)
    return found


MOVED = [name for name, (_, is_one) in PATHS.items() if is_one]
LINEAR = [name for name in MOVED if name not in ("squeeze and excite", "a gate of both")]
"""Where nothing that depends on the producer is held."""


@pytest.mark.parametrize("name", LINEAR)
def test_outputs_change_as_the_network_does(name: str, seen: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """J d against the network with V + t d for a small t; J^T is the adjoint of J."""
    monkeypatch.setattr(path_derivatives, "DIFFERENCE", 1e-4)
    monkeypatch.setattr(producer_update, "producer_step", partial(check_moves, seen, producer_update.producer_step))
    monkeypatch.setattr(layer_update, "producer_step", producer_update.producer_step)
    include = ("fc_a",) if name == "dense" else ("conv_a",)
    compress(written(PATHS[name][0](), tmp_path), tmp_path / "out.onnx", include=include, ratio=0.5, **FAST)
    assert seen


FAST = {"method": "reconstruct", "samples": 64, "verify": False, "threads": 1, "round_to": 1}


def check_moves(seen: list, original: Callable, context, run, path, before, *others):  # type: ignore[no-untyped-def]
    """Stands in the place of `producer_step`."""
    result = original(context, run, path, before, *others)
    samples, (_, _, weights, *_) = seen[0]
    rng = np.random.default_rng(0)
    k, inputs = weights.producer.weight.shape
    step = rng.normal(size=(k, inputs + 1))
    moved = [samples._forward(block, step.T.astype(np.float32)) for block in samples._blocks]
    outputs = [rng.normal(size=each.shape).astype(np.float32) for each in moved]
    there = sum(float(np.vdot(*pair)) for pair in zip(outputs, samples._beyond_consumer(list(moved)), strict=True))
    back = float(np.vdot(samples.gradient(samples._beyond_consumer(list(outputs))), step))
    assert there == pytest.approx(back, rel=1e-3)
    small = 1e-4
    changed = Replacement(*moved_producer(path, before, weights, small * step))
    own_bias = producer_update.bias_of(context.channels, path.producer)
    producer_update.revise_producer(run, path, changed, own_bias)
    after = producer_update.ProducerSamples(*seen[0][1])
    producer_update.revise_producer(run, path, before or Replacement(path.producer.stored_weight), own_bias)
    found = (np.concatenate(after.reached) - np.concatenate(samples.reached)) / small
    expected = np.concatenate(moved) / weights.output_scale
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
    return result


def moved_producer(path, before, weights, step):  # type: ignore[no-untyped-def]
    """Weight and bias of a producer with a step (kept rows, kept inputs and 1)."""
    layer, current = path.producer, before or Replacement(path.producer.stored_weight)
    new = layer.canonical(current.weight).astype(np.float64)
    parts = step[:, :-1].reshape(len(step), layer.kernel_size, -1).transpose(0, 2, 1)
    new[0][np.ix_(weights.rows, weights.inputs)] += parts
    added = np.zeros(layer.out_ids.size) if current.bias is None else current.bias + np.zeros(layer.out_ids.size)
    added[weights.rows] += step[:, -1]
    return layer.stored(new).astype(np.float32), added


def fidelity_of(source: Path, target: Path, rng: np.random.Generator) -> float:
    sessions = [open_session(path, optimise=False, threads=1) for path in (source, target)]
    shape = [256, *(extent for extent in sessions[0].inputs[0].dims[1:])]
    feeds = {"x": rng.normal(size=shape).astype(np.float32)}
    reference, found = (next(iter(session.run(feeds).values())) for session in sessions)
    return 1 - float(np.square(reference - found).sum() / np.square(reference - reference.mean(0)).sum())


@pytest.mark.parametrize("name", MOVED)
def test_unseen_inputs_lose_less(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, calibration = written(PATHS[name][0](), tmp_path), tmp_path / "given.npy"
    shape = (12,) if name == "dense" else (3, 12, 12)
    np.save(calibration, np.random.default_rng(5).normal(size=(512, *shape)).astype(np.float32))
    found = []
    for is_alone in (False, True):
        if is_alone:
            solve_consumers_alone(monkeypatch)
        options = {**FAST, "samples": 512, "calibration": calibration}
        compress(source, tmp_path / "out.onnx", ratio=0.5, **options)
        found.append(fidelity_of(source, tmp_path / "out.onnx", np.random.default_rng(6)))
    assert 1 - found[0] < 0.97 * (1 - found[1])


def test_a_step_that_measures_worse_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is the one of consumers alone, to the byte."""
    source, written_files, tried = written(PATHS["bn, relu"][0](), tmp_path), [], []

    def spoilt(context, run, path, before, *others):  # type: ignore[no-untyped-def]
        tried.append(path)
        return Replacement(0.1 * np.random.default_rng(0).normal(size=path.producer.stored_weight.shape).astype(np.float32))

    monkeypatch.setattr(layer_update, "producer_step", spoilt)
    for is_alone in (False, True):
        if is_alone:
            solve_consumers_alone(monkeypatch)
        compress(source, tmp_path / "out.onnx", ratio=0.5, provenance=False, **FAST)
        written_files.append((tmp_path / "out.onnx").read_bytes())
    assert tried
    assert written_files[0] == written_files[1]


def test_dear_steps_must_be_worth_more() -> None:
    bounds = [producer_update.least_missed(unknowns) for unknowns in (90, 400, 1000, 3000, 4000, 6000)]
    assert bounds == sorted(bounds)
    assert bounds[0] < 1e-4
    assert bounds[-1] == producer_update.LEAST_MISSED
    few, many = (producer_update.least_missed(unknowns) for unknowns in (2100, 2100 * 1.1))
    assert many / few == pytest.approx(1.1**2, rel=1e-9)


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_nothing_is_tried_where_less_is_missed(bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(layer_update, "least_missed", lambda unknowns: bound)
    monkeypatch.setattr(layer_update, "producer_step", lambda *others: tried.append(others))
    compress(written(PATHS["relu"][0](), tmp_path), tmp_path / "out.onnx", ratio=0.5, **FAST)
    assert bool(tried) == (bound < 1.0)


EXPONENTS = {"relu": (False, 0.25), "bn, relu": (False, 0.5), "overlapping pooling": (False, 0.5), "dense": (True, 0.0)}


@pytest.mark.parametrize("name", EXPONENTS)
def test_variances_are_corrected_less_where_producers_change(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of conv_b or fc_b, which reads what lost channels."""
    has_data, expected = EXPONENTS[name]
    found, original = dict[str, float](), layer_update.LayerUpdate.solve

    def solve(update, *others):  # type: ignore[no-untyped-def]
        result = original(update, *others)
        found.setdefault(update.layer.key, update.exponent)
        return result

    monkeypatch.setattr(layer_update.LayerUpdate, "solve", solve)
    if has_data:
        np.save(tmp_path / "given.npy", np.random.default_rng(0).normal(size=(64, 12)).astype(np.float32))
    given = {"calibration": tmp_path / "given.npy"} if has_data else {}
    options = {**FAST, **given, "include": ("fc_a",) if name == "dense" else ("conv_a",)}
    compress(written(PATHS[name][0](), tmp_path), tmp_path / "out.onnx", ratio=0.5, **options)
    assert next(iter(found.values())) == expected


@pytest.mark.parametrize("method", ["prune", "merge"])
def test_other_methods_leave_producers_alone(method: str, tmp_path: Path) -> None:
    """Rows of what stays are those of the file, one by one."""
    model = PATHS["relu"][0]()
    compress(written(model, tmp_path), tmp_path / "out.onnx", include=("conv_a",), ratio=0.5, **{**FAST, "method": method})
    before, after = (weights_of(each) for each in (model, onnx.load(tmp_path / "out.onnx")))
    rows = {row.tobytes() for row in before["conv_a_w"]}
    small = next(value for value in after.values() if value.shape == (4, 3, 3, 3))
    assert all(row.tobytes() in rows for row in small)


def test_operators_of_a_path_keep_every_channel_where_it_is() -> None:
    """As the operator table says; what BatchNormalization may hold is looked at."""
    kinds = {elementwise.unary, elementwise.join}
    assert [name for name in DIFFERENTIABLE if OPERATORS[name].propagate not in kinds] == ["BatchNormalization"]
