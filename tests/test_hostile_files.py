"""Files made to do harm: exit code 2 and one line, within limits of time and memory, and the process stays as it was."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from mutated_files import COMMANDS, Worker, mutated, seeds, tried
from onnx import TensorProto, helper, numpy_helper, parser
from running import built
from topologies import TOPOLOGIES

from onnxmerge.data.selection import inputs_for
from onnxmerge.errors import ModelError, OptionError
from onnxmerge.execution import first_run, limited_process, static_cost
from onnxmerge.execution.first_run import batch_that_fits, first_observations
from onnxmerge.execution.input_sizes import NOTHING_GIVEN, first_trials
from onnxmerge.execution.limited_process import ProcessFailure, answer_of
from onnxmerge.execution.sessions import open_session
from onnxmerge.execution.size_hints import size_hints
from onnxmerge.execution.static_cost import StaticCost
from onnxmerge.execution.tensor_specs import input_specs
from onnxmerge.execution.trial_runs import observe_twice
from onnxmerge.onnxio.validation import read_checked
from onnxmerge.options import InputOptions, RuntimeOptions


def network(text: str = "y = Neg(z)", inputs: str = "float[N,3,8,8] x", **constants: object) -> onnx.ModelProto:
    """Two convolutions, x to z, and what the text makes of z; numbers become int64 constants, tensors are taken as they are."""
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (float[A,B,C,D] y) {{
        [a] c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu(c)  [b] z = Conv(r, v)  {text} }}"""
    )
    generator = np.random.default_rng(0)
    for name, shape in {"w": (8, 3, 3, 3), "v": (4, 8, 1, 1)}.items():
        model.graph.initializer.append(numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name))
    for name, value in constants.items():
        given = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        model.graph.initializer.append(given)
    return model


def edited(model: onnx.ModelProto, **attributes: object) -> onnx.ModelProto:
    """With other attributes of the first convolution."""
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return model


def stored(**fields: object) -> onnx.ModelProto:
    """With an initializer of these fields."""
    return network("y = Add(z, k)", k=TensorProto(name="k", **{"dims": [1], "data_type": TensorProto.FLOAT, **fields}))


def external(location: str) -> onnx.ModelProto:
    model = stored(data_location=TensorProto.EXTERNAL)
    model.graph.initializer[2].external_data.add(key="location", value=location)
    return model


def with_reference() -> onnx.ModelProto:
    model = network()
    model.graph.node[0].attribute[0].ref_attr_name = "pads"
    return model


def without_outputs() -> onnx.ModelProto:
    model = network()
    del model.graph.output[:]
    return model


AVERAGE = "m = ReduceMean <keepdims = 0> (k)  y = Add(z, m)"
BODY = "(int64 i, bool go, float[N,4,8,8] s) => (bool on, float[N,4,8,8] t) { on = Identity(go)  t = Neg(s) }"

# What a file holds that is refused before anything runs, and words of the line.
REFUSED_AS_READ = {
    "no outputs": (without_outputs(), "its graph has no outputs"),
    "NUL in a path": (external("w\0.bin"), "not a relative path inside"),
    "path that is too long": (external("w" * 5000), "too long"),
    "path outside": (external("../w.bin"), "not a relative path inside"),
    "unknown data type": (stored(data_type=99, raw_data=b"1234"), "the data type 99"),
    "negative size": (stored(dims=[-1], raw_data=b"1234"), "negative size"),
    "no bytes": (stored(), "does not hold what its shape needs"),
    "too many bytes": (stored(raw_data=b"12345678"), "holds 8 bytes"),
    "huge shape and no bytes": (stored(dims=[2**40, 2**20], raw_data=b""), "holds 0 bytes"),
    "reference to an attribute": (with_reference(), "refers to one of a function"),
    "cycle": (network("p = Add(z, q)  q = Relu(p)  y = Neg(q)"), "topologically sorted"),
    "written twice": (network("y = Neg(z)  y = Relu(z)"), "SSA"),
    "read from nowhere": (network("y = Add(z, nowhere)"), "nowhere"),
    "no values": (network(inputs="float[N,3,0,8] x"), "input 'x' holds no values"),
    "no first axis": (network(inputs="float[0,3,8,8] x"), "input 'x' holds no values"),
}
# The same for files whose first run is tried in another process.
REFUSED_WHEN_RUN = {
    "size of 2 ** 40": (network(inputs=f"float[1,3,{2**40},8] x"), "its inputs take 211,106.2 GB, and 2 GB are allowed"),
    "ConstantOfShape": (network(f"k = ConstantOfShape(s)  {AVERAGE}", s=np.array([40000, 40000])), "allocate memory"),
    "Expand": (network(f"k = Expand(z, s)  {AVERAGE}", s=np.array([60000, 1, 1, 500, 1, 1, 1])), "allocate memory"),
    "Range": (network(f"p = Range(o, n, i)  k = Cast <to = 1> (p)  {AVERAGE}", o=0, n=3 * 10**9, i=1), "Range"),
    "computed size": (
        network(f"p = Shape(z)  q = Mul(p, p)  s = Mul(q, q)  k = ConstantOfShape(s)  {AVERAGE}"),
        "allocate memory",
    ),
    "Pad": (edited(network(), pads=[60000] * 4), "memory"),
    "zero steps": (edited(network(), strides=[0, 0]), "strides"),
    "least integer by -1": (network("k = Div(n, m)  f = Cast <to = 1> (k)  y = Add(z, f)", n=-(2**63), m=-1), "SIGFPE"),
}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    process = Worker()
    yield process
    process.close()


@pytest.mark.parametrize("name", [*REFUSED_AS_READ, *REFUSED_WHEN_RUN])
def test_a_hostile_file_is_refused_in_one_line(name, run, tmp_path):
    model, words = {**REFUSED_AS_READ, **REFUSED_WHEN_RUN}[name]
    path = tmp_path / "in.onnx"
    path.write_bytes(model.SerializeToString())
    code, out, err = run("compress", path, tmp_path / "out.onnx", "--ratio", "0.3", "--json")
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert words in err
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("name", [b"x", b"N", b"a"], ids=["tensor", "dimension", "node"])
def test_a_name_that_is_no_text(name, run, tmp_path):
    path = tmp_path / "in.onnx"
    path.write_bytes(network().SerializeToString().replace(b"\x01" + name, b"\x01\xff"))
    code, _, err = run("inspect", path)
    assert (code, "not UTF-8" in err, len(err.splitlines())) == (2, True, 1), err


def test_a_loop_without_end_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(first_run, "SECONDS", 1.0)
    path = tmp_path / "in.onnx"
    path.write_bytes(network(f"k = Loop(n, , z) <body = b {BODY}>  y = Add(z, k)", n=10**9).SerializeToString())
    with pytest.raises(ModelError, match=r"in\.onnx does not run: .* does not end within 1 s"):
        first_observations(path, label=path.name)


def test_memory_of_the_first_run_is_an_option(run, monkeypatch, tmp_path):
    monkeypatch.setattr(static_cost, "CHEAP_BYTES", 1 << 20)
    path = tmp_path / "in.onnx"
    path.write_bytes(network(f"k = ConstantOfShape(s)  {AVERAGE}", s=np.array([6000, 6000])).SerializeToString())
    assert run("inspect", path)[0] == 0
    code, _, err = run("inspect", path, "--max-memory", "100MB")
    assert (code, "memory" in err) == (2, True)
    assert RuntimeOptions(max_memory="1.5 GB").max_memory == 1_500_000_000
    for bad in ("much", "10", "-4GB"):
        with pytest.raises(OptionError, match="max_memory"):
            RuntimeOptions(max_memory=bad)


def test_the_other_process_sees_what_this_one_would(tmp_path):
    """An If is always tried in another process, and observations come back as they are."""
    path = tmp_path / "in.onnx"
    path.write_bytes(built(TOPOLOGIES["if-body-capture"]).SerializeToString())
    found, expected = first_observations(path, label=""), observe_twice(path)
    for apart, here in zip(found[:2], expected[:2], strict=True):
        assert (apart is None) == (here is None)
        for name, seen in (here or {}).items():
            assert (apart[name].shape, apart[name].dtype) == (seen.shape, seen.dtype)
            assert np.array_equal(apart[name].value, seen.value)
    assert found.origins == expected.origins


def known_cheap(model: onnx.ModelProto) -> bool:
    inputs = input_specs(model)
    return StaticCost(model).is_small(first_trials(inputs, size_hints(model), NOTHING_GIVEN)[0].shapes)


@pytest.mark.parametrize("name", REFUSED_WHEN_RUN)
def test_what_does_harm_is_never_known_to_be_cheap(name):
    assert not known_cheap(REFUSED_WHEN_RUN[name][0])


def test_ordinary_models_are_known_to_be_cheap(models_folder):
    """Or every run of the program would pay for another process."""
    assert all(known_cheap(onnx.load(path)) for path in models_folder.glob("*.onnx"))
    others = {name for name, topology in TOPOLOGIES.items() if not known_cheap(built(topology))}
    # Bodies, custom operators, sums whose length the equation hides, a slice to a computed length, and an operator whose shapes
    # onnx 1.23 does not infer alone.
    bodies_and_unknown = {"if-body-capture", "unknown-custom-operator"}
    attention = {"attention-gpt2", "attention-multi-head", "attention-operator", "attention-operator-heads"}
    assert others <= bodies_and_unknown | attention | {"einsum-image", "einsum-sequence", "group-normalization"}


def test_onnx_prints_nothing(capfd, tmp_path):
    """The checker warns of experimental operators, in C++."""
    node = helper.make_node("Affine", ["x"], ["y"], alpha=1.0)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    path = tmp_path / "in.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 1)], ir_version=7).SerializeToString())
    read_checked(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="ps is asked")
def test_where_the_system_has_no_limit_the_memory_is_watched(monkeypatch):
    start = limited_process.subprocess.Popen
    hungry = "import time; kept = bytearray(400_000_000); time.sleep(60)"
    monkeypatch.setattr(limited_process, "LIMITS_OF_SYSTEM", False)
    monkeypatch.setattr(
        limited_process.subprocess,
        "Popen",
        lambda command, **how: start([command[0], "-c", hungry] if command[0] == sys.executable else command, **how),
    )
    with pytest.raises(ProcessFailure, match="more memory"):
        answer_of("any", [], 60.0, 200_000_000)


STAYING = {"sleeps": ("time.sleep(60)", 60.0), "keeps Python from running": ("ctypes.PyDLL(None).sleep(60)", 4.0)}


@pytest.mark.parametrize(("action", "seconds"), STAYING.values(), ids=STAYING)
def test_it_ends_where_the_process_that_asked_is_killed(action: str, seconds: float, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")  # a lock shows whether the process lives
    started = "import ctypes, fcntl, time; file = open('locked', 'w'); fcntl.flock(file, 2); file.write('x'); file.flush()"
    (tmp_path / "staying.py").write_text(f"{started}; {action}")
    ask = f"from onnxmerge.execution.limited_process import answer_of; answer_of('staying', [], {seconds})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", ask], env=environment, cwd=tmp_path) as asking:
        locked = tmp_path / "locked"
        assert within(20.0, lambda: locked.exists() and locked.read_text() == "x")
        asking.kill()

    def unlocked() -> bool:
        with locked.open() as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    assert within(10.0, unlocked)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition becomes true in that time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_inputs_that_are_run_together_have_their_place(tmp_path):
    """The first run takes 4 * (6 + 8) bytes an input; twice as large inputs take twice as much; two models are compared."""
    shapes = {"x": (2, 3), "y": (2, 4)}
    assert batch_that_fits(shapes, {"x": np.zeros((1, 3))}, 1_000_000) == 1_000_000 // (2 * 4 * 7)
    assert batch_that_fits(shapes, {"x": np.zeros((1, 6))}, 1_000_000) == 1_000_000 // (2 * 4 * 14)
    assert batch_that_fits({"x": (1, 10**9)}, {"x": np.zeros((1, 3))}) >= 1
    path = tmp_path / "in.onnx"
    path.write_bytes(built(TOPOLOGIES["conv-relu-conv"]).SerializeToString())
    session = open_session(path, optimise=False)
    shapes = {"x": (1, 3, 8, 8), "a": (1, 5000)}
    inputs = inputs_for(session, shapes, InputOptions(samples=100), max_memory=1_000_000)
    assert max(len(feeds["x"]) for feeds in inputs.batches(32)) == 1_000_000 // (8 * (5000 + 192))


def test_a_shape_of_an_output_that_is_not_computed(run, tmp_path):
    """It shows only where sizes that the model computes have become constants; ONNX Runtime takes such a model."""
    model = built(TOPOLOGIES["chunk-with-computed-bounds"])
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 2**31 - 1
    path = tmp_path / "in.onnx"
    path.write_bytes(model.SerializeToString())
    assert run("compress", path, tmp_path / "out.onnx", "--ratio", "0.3", "--method", "prune", "--no-bench")[0] == 0


@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite_warn_of_nothing(run, tmp_path):
    model, path = built(TOPOLOGIES["gemm-bias-scalar"]), tmp_path / "in.onnx"
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(1e38 * numpy_helper.to_array(weight), weight.name))
    path.write_bytes(model.SerializeToString())
    code, _, err = run("compress", path, tmp_path / "out.onnx", "--ratio", "0.3", "--samples", "8", "--no-bench")
    assert (code, "NaN or infinity on these inputs" in err, len(err.splitlines())) == (2, True, 1), err


@pytest.mark.parametrize("number", range(30))
def test_damaged_files(number: int, worker: Worker, tmp_path: Path) -> None:
    """A few of those that `make fuzz-files` tries by thousands."""
    chance = random.Random(number)
    _, data = chance.choice(list(seeds().items()))
    assert tried(mutated(data, chance), worker, COMMANDS[number % len(COMMANDS)], tmp_path, data) == ""
