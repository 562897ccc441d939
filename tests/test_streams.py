"""`scope` stream: residual streams in another basis, and fewer directions of it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxmerge import compress, inspect
from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import inputs_for
from onnxmerge.errors import OptionError
from onnxmerge.execution.sessions import open_session
from onnxmerge.graph.analysed_model import AnalysedModel, analyse_model
from onnxmerge.graph.rewrite import Removal, rewrite
from onnxmerge.graph.stream_rotation import principal_basis
from onnxmerge.onnxio.export import export
from onnxmerge.options import InputOptions, silent
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.streams import with_streams
from onnxmerge.pruning.masked_means import mask_means, mean_masks, means_over
from onnxmerge.statistics.reference_run import run_context_of

TOKENS, WIDTH, HIDDEN, CLASSES, LENGTH, EPSILON = 9, 12, 16, 7, 5, 1e-3
ROOT_FORMS = {"div": "{t} = Div({x}, {t}_r)", "product": "{t}_i = Div(one, {t}_r)  {t} = Mul({x}, {t}_i)"}
RMS = "{t}_p = Pow({x}, two)  {t}_m = ReduceMean<axes=[-1]>({t}_p)  {t}_e = Add({t}_m, eps)  {t}_r = Sqrt({t}_e)  "
CENTRE = "{t}_a = ReduceMean<axes=[-1]>({x})  {t}_c = Sub({x}, {t}_a)  "
SCALED = "  {o} = Mul({t}, scale{n})"
NORMS = {
    "rms": (RMS + ROOT_FORMS["product"] + SCALED, 17),
    "rms-div": (RMS + ROOT_FORMS["div"] + SCALED, 17),
    "rms-operator": ("{o} = RMSNormalization<axis=-1, epsilon=0.001>({x}, scale{n})", 23),
    "layer-norm": ("{o} = LayerNormalization<axis=-1, epsilon=0.001>({x}, scale{n}, shift{n})", 17),
    "layer-norm-new": ("{o} = LayerNormalization<axis=-1, epsilon=0.001>({x}, scale{n}, shift{n})", 20),
    "layer-norm-written-out": (
        CENTRE + RMS.replace("{x}", "{t}_c") + ROOT_FORMS["div"].replace("{x}", "{t}_c") + "  {t}_s = Mul({t}, scale{n})"
        "  {o} = Add({t}_s, shift{n})",
        17,
    ),
}
CENTRED = [name for name in NORMS if name.startswith("layer")]


def weights() -> dict[str, np.ndarray]:
    """Of two blocks and a head; the stream has a few strong directions and a mean that is not zero."""
    random = np.random.default_rng(0)
    shapes = {
        "table": (TOKENS, WIDTH),
        "positions": (LENGTH, WIDTH),
        "head": (WIDTH, CLASSES),
        "side": (WIDTH, CLASSES),
        "kernel": (CLASSES, WIDTH, 3),
    }
    for block in (0, 1):
        shapes |= {f"v{block}": (WIDTH, HIDDEN), f"w{block}": (HIDDEN, WIDTH), f"b{block}": (WIDTH,)}
    found = {name: random.normal(size=shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}
    mixing = random.normal(size=(WIDTH, WIDTH)) * 0.7 ** np.arange(WIDTH)[:, None]
    for name in ("table", "positions", "w0", "w1", "b0", "b1"):
        found[name] = found[name] @ mixing + 0.1
    for number in range(3):
        found |= {f"scale{number}": random.uniform(0.5, 2, WIDTH), f"shift{number}": random.normal(size=WIDTH)}
    found |= {"two": np.array(2.0), "one": np.array(1.0), "eps": np.array(EPSILON)}
    return {name: value.astype(np.float32) for name, value in found.items()}


def network(path: Path, norm: str, change: dict[str, str] | None = None) -> Path:
    """Tokens -> table + positions, two blocks of a normalisation and two layers, a normalisation and a head."""
    text, opset = NORMS[norm]
    parts = ["e = Gather(table, x)", "s0 = Add(e, positions)"]
    for block in (0, 1):
        parts.append(text.format(x=f"s{block}", o=f"n{block}", t=f"t{block}", n=block))
        parts.append(f"h{block} = MatMul(n{block}, v{block})  r{block} = Relu(h{block})  p{block} = MatMul(r{block}, w{block})")
        parts.append(f"q{block} = Add(b{block}, p{block})  s{block + 1} = Add(s{block}, q{block})")
    parts += [text.format(x="s2", o="n2", t="t2", n=2), "y = MatMul(n2, head)"]
    body = "  ".join(parts)
    for old, new in (change or {}).items():
        assert old in body
        body = body.replace(old, new)
    outputs = f"float[N, {LENGTH}, {CLASSES}] y" + (f", float[N, {LENGTH}, {WIDTH}] s2" if "s2 = Id" in body else "")
    source = f'<ir_version: 10, opset_import: ["": {opset}]> g (int64[N, {LENGTH}] x) => ({outputs}) {{ {body} }}'
    model = onnx.parser.parse_model(source)
    inner = (node for outer in model.graph.node for attribute in outer.attribute for node in attribute.g.node)
    used = {name for node in (*model.graph.node, *inner) for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights().items() if name in used)
    onnx.save(model, path)
    return path


def tokens(count: int = 64) -> np.ndarray:
    return np.random.default_rng(1).integers(0, TOKENS, (count, LENGTH))


def formula(basis: np.ndarray, is_centred: bool, kept: int) -> np.ndarray:
    """The outputs with the first directions of a basis, in numpy."""
    of = {name: value.astype(np.float64) for name, value in weights().items()}
    basis = basis[:, :kept]

    def read(z: np.ndarray, number: int, weight: np.ndarray) -> np.ndarray:
        y = z / np.sqrt((z**2).sum(-1, keepdims=True) / WIDTH + EPSILON)
        shift = of[f"shift{number}"] if is_centred else 0.0
        return (y @ basis.T * of[f"scale{number}"] + shift) @ weight

    z = (of["table"][tokens()] + of["positions"]) @ basis
    for block in (0, 1):
        hidden = np.maximum(read(z, block, of[f"v{block}"]), 0)
        z = z + (hidden @ of[f"w{block}"] + of[f"b{block}"]) @ basis
    return read(z, 2, of["head"])


def calibration(folder: Path) -> Inputs:
    """The tokens, as inputs."""
    session = open_session(folder / "model.onnx", optimise=False, threads=1)
    return inputs_for(session, {"x": (1, LENGTH)}, InputOptions(calibration=folder / "tokens.npy"))


def outputs(model: onnx.ModelProto | Path) -> np.ndarray:
    content = model if isinstance(model, Path) else model.SerializeToString()
    return open_session(content, optimise=False, threads=1).run({"x": tokens()})["y"]


def turned(path: Path, folder: Path) -> AnalysedModel:
    np.save(folder / "tokens.npy", tokens())
    options = CompressOptions.from_keywords({"scope": "stream", "calibration": folder / "tokens.npy"}, verify=False)
    return with_streams(path, analyse_model(path), options)


@pytest.mark.parametrize("norm", NORMS)
def test_all_directions_give_the_same_outputs(norm: str, tmp_path: Path) -> None:
    path = network(tmp_path / "model.onnx", norm)
    found = turned(path, tmp_path)
    assert sorted(group.size for group in found.channels.groups) == [WIDTH, HIDDEN, HIDDEN]
    np.testing.assert_allclose(outputs(export(found.model)), outputs(path), atol=1e-4)


@pytest.mark.parametrize("norm", ["rms", "layer-norm"])
@pytest.mark.parametrize("kept", [11, 7, 1])
def test_fewer_directions_follow_the_formula(norm: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2).normal(size=(WIDTH, WIDTH))
    centring = np.eye(WIDTH) - (norm in CENTRED) / WIDTH
    basis = principal_basis(centring @ random @ random.T @ centring, norm in CENTRED)
    monkeypatch.setattr("onnxmerge.pipeline.streams.principal_basis", lambda moments, is_centred: basis)
    channels = turned(network(tmp_path / "model.onnx", norm), tmp_path).channels
    (group,) = (group for group in channels.groups if group.size == WIDTH)
    small = export(rewrite(channels, [Removal(group, np.arange(kept), "prune")], {}))
    shapes = {tuple(tensor.dims) for tensor in small.graph.initializer}
    assert shapes >= {(TOKENS, kept), (HIDDEN, kept), (kept, CLASSES)}
    np.testing.assert_allclose(outputs(small), formula(basis, norm in CENTRED, kept), atol=1e-4)


@pytest.mark.parametrize("norm", ["rms", "layer-norm"])
def test_runs_of_all_channels_normalise_as_the_smaller_model(norm: str, tmp_path: Path) -> None:
    found = turned(network(tmp_path / "model.onnx", norm), tmp_path)
    channels, kept = found.channels, np.arange(5)
    (group,) = (group for group in channels.groups if group.size == WIDTH)
    context = run_context_of(found, calibration(tmp_path), 1, silent)
    run = context.new_run()
    means = means_over(channels, [group])
    mask_means(run, mean_masks(channels, channels.kept_mask([(group, kept)]), means))
    run.run_until(context.node_index["n0"] + 1, keep="n0")
    small = export(rewrite(channels, [Removal(group, kept, "prune")], {}))
    small.graph.output.append(helper.make_empty_tensor_value_info("n0"))
    expected = open_session(small.SerializeToString(), optimise=False, threads=1).run({"x": tokens()})["n0"]
    assert len(means) == 3
    np.testing.assert_allclose(run.tensor(0, "n0")[..., :5], expected[: len(run.tensor(0, "n0"))], atol=1e-5)


@pytest.mark.parametrize("norm", ["rms-div", "layer-norm"])
def test_directions_are_removed_with_widths(norm: str, tmp_path: Path) -> None:
    path, small = network(tmp_path / "model.onnx", norm), tmp_path / "small.onnx"
    np.save(tmp_path / "tokens.npy", tokens())
    options = {"calibration": tmp_path / "tokens.npy", "bench": False, "round_to": 1}
    found = compress(path, small, target="macs=0.75", scope="stream", **options)
    widths = compress(path, tmp_path / "widths.onnx", target="macs=0.75", **options)
    (stream,) = (group for group in found.groups if group.channels == WIDTH)
    assert stream.note.startswith(f"residual stream of {WIDTH} channels to {stream.kept} principal directions")
    assert stream.kept < WIDTH
    assert found.after.macs <= 0.75 * found.before.macs
    assert found.before == widths.before
    assert found.fidelity is not None
    assert widths.fidelity is not None
    assert found.fidelity.worst.fidelity > max(0.8, widths.fidelity.worst.fidelity)
    again = compress(path, tmp_path / "again.onnx", target="macs=0.75", scope="stream", **options)
    assert again.after == found.after
    assert (tmp_path / "again.onnx").read_bytes() == small.read_bytes()


REFUSED = {
    "graph-output": (
        {"q1 = Add(b1, p1)  s2 = Add(s1, q1)": "q1 = Add(b1, p1)  z = Add(s1, q1)  s2 = Identity(z)"},
        "graph output s2",
    ),
    "read-by-a-layer": ({"y = MatMul(n2, head)": "u = MatMul(s2, side)  o = MatMul(n2, head)  y = Add(u, o)"}, "another way"),
    "scaled": ({"s1 = Add(s0, q0)": "z1 = Mul(q0, scale1)  s1 = Add(s0, z1)"}, "another way"),
    "one-number-for-all": ({"s1 = Add(s0, q0)": "z1 = Add(q0, one)  s1 = Add(s0, z1)"}, "another way"),
    "activation": ({"s1 = Add(s0, q0)": "z1 = Relu(q0)  s1 = Add(s0, z1)"}, "another way"),
    "behind-a-normalisation": ({"h1 = MatMul(n1, v1)": "z1 = Relu(n1)  h1 = MatMul(z1, v1)"}, "another way"),
    "tied-table": (
        {"y = MatMul(n2, head)": "back = Transpose<perm=[1, 0]>(table)  y = MatMul(n2, back)"},
        "table is also read by",
    ),
    "padded-convolution": (
        {
            "y = MatMul(n2, head)": "i2 = Transpose<perm=[0, 2, 1]>(n2)  o2 = Conv<pads=[1, 1]>(i2, kernel)"
            "  y = Transpose<perm=[0, 2, 1]>(o2)"
        },
        "o2: Conv .* another way",
    ),
    "bias-of-one-number": (
        {
            "p0 = MatMul(r0, w0)": "flat = Constant<value_ints=[-1, 16]>()  whole = Constant<value_ints=[-1, 5, 12]>()"
            "  f0 = Reshape(r0, flat)  g0 = Gemm(f0, w0, one)  p0 = Reshape(g0, whole)"
        },
        "g0: Gemm .* another way",
    ),
    "none": (
        {"n0 = ": "f0 = ", "MatMul(n0": "MatMul(s0", "n1 = ": "f1 = ", "MatMul(n1": "MatMul(s1", "MatMul(n2": "MatMul(s2"},
        "",
    ),
}


def test_a_model_with_bodies_is_refused(tmp_path: Path) -> None:
    bodies = (("then_branch", "t", "head"), ("else_branch", "f", "side"))
    parts = [f"{name} = {out}g () => (float[N, M, C] {out}) {{ {out} = MatMul(n2, {weight}) }}" for name, out, weight in bodies]
    choice = f"c = Greater(one, two)  y = If(c) <{', '.join(parts)}>"
    path = network(tmp_path / "model.onnx", "layer-norm", {"y = MatMul(n2, head)": choice})
    with pytest.raises(OptionError, match="If, Loop or Scan"):
        inspect(path, scope="stream")


@pytest.mark.parametrize("case", REFUSED)
def test_a_stream_that_cannot_be_turned_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    change, reason = REFUSED[case]
    path = network(tmp_path / "model.onnx", "layer-norm", change)
    with pytest.raises(OptionError, match=f"`scope` stream finds no residual stream.*{reason}"):
        inspect(path, scope="stream")
