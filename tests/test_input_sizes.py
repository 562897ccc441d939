"""The sizes that dynamic inputs are given, where these come from, and that every report says so."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from PIL import Image

import onnxmerge
from onnxmerge.errors import InputError, ModelError, OptionError
from onnxmerge.execution.first_run import first_observations
from onnxmerge.options import InputOptions
from onnxmerge.pipeline import model_measurements

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
SMALL = "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)  r = Relu(c)  z = Conv(r, v)"
WEIGHTS = "float[8,3,3,3] w, float[4,8,1,1] v"
IMAGE = f"g (float[N,3,H,W] x) => (float[N,4,A,B] z) <{WEIGHTS}> {{ {SMALL} }}"
LINEAR = (
    f"""g (float[N,3,H,W] x) => (float[N,5] y) <{WEIGHTS}, float[SIDE,5] o> {{ {SMALL}  f = Flatten(z)  y = MatMul(f, o) }}"""
)
RESHAPED = f"""g (float[N,3,H,W] x) => (float[N,5] y) <{WEIGHTS}, int64[2] s = {{-1,1024}}, float[1024,5] o>
{{ {SMALL}  f = Reshape(z, s)  y = MatMul(f, o) }}"""
RESIZED = f"""g (float[N,3,H,W] x) => (float[N,4,A,B] y) <{WEIGHTS}, int64[4] s = {{1,4,96,160}}>
{{ {SMALL}  y = Resize<mode="nearest">(z, , , s) }}"""
TOKENS = """g (int64[N,T] ids) => (float[N,T,6] y) <float[50,8] e, float[LENGTH,8] p, float[8,6] o>
{ h = Gather(e, ids)  a = Add(h, p)  y = MatMul(a, o) }"""
PATCHES = """g (float[N,3,H,W] x) => (float[N,L,6] y) <float[8,3,14,14] w, float[1,1369,8] p, float[8,6] o, int64[3] s = {0,8,-1}>
{ c = Conv<strides=[14,14]>(x, w)  f = Reshape(c, s)  t = Transpose<perm=[0,2,1]>(f)  a = Add(t, p)  y = MatMul(a, o) }"""
STRIP = f"""g (float[N,3,H,W] x) => (float[N,4,T] y) <{WEIGHTS}, int64[1] two = {{2}}>
{{ {SMALL}  p = MaxPool<kernel_shape=[24,1], strides=[24,1]>(z)  y = Squeeze(p, two) }}"""


def model_of(text: str, **metadata: str) -> onnx.ModelProto:
    model, rng = parser.parse_model(HEAD + text), np.random.default_rng(0)
    for info in model.graph.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), info.name))
    del model.graph.value_info[:]
    onnx.helper.set_model_props(model, metadata)
    return model


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(model_of(IMAGE), path)
    return path


FOUND = {
    "an image": (IMAGE, {}, (1, 3, 224, 224), "chosen"),
    "a note of the exporter": (IMAGE, {"imgsz": "[96, 64]"}, (1, 3, 96, 64), "graph"),
    "a note that is none": (IMAGE, {"imgsz": "large"}, (1, 3, 224, 224), "chosen"),
    "Gemm of 32 x 32": (LINEAR.replace("SIDE", "1024"), {}, (1, 3, 32, 32), "graph"),
    "Gemm of 72 x 72": (LINEAR.replace("SIDE", "5184"), {}, (1, 3, 72, 72), "graph"),
    "a literal that other sizes run with too": (RESHAPED, {}, (1, 3, 32, 32), "graph"),
    "a Resize to literal sizes": (RESIZED, {}, (1, 3, 96, 160), "graph"),
    "a table of 37 x 37 patches": (PATCHES, {}, (1, 3, 518, 518), "graph"),
    "a line of text": (STRIP, {}, (1, 3, 48, 320), "chosen"),
    "strides of a line of text": (IMAGE.replace("strides=[2,2]", "strides=[2,1]"), {}, (1, 3, 48, 320), "chosen"),
    "strides of columns": (IMAGE.replace("strides=[2,2]", "strides=[1,2]"), {}, (1, 3, 224, 224), "chosen"),
    "a table of 40 positions": (TOKENS.replace("LENGTH", "40"), {}, (1, 40), "graph"),
    "one position for all": (TOKENS.replace("LENGTH", "1"), {}, (1, 128), "chosen"),
    "one second of sound": ("g (float[N,1,L] x) => (float[N,1,L] y) { y = Relu(x) }", {}, (1, 1, 16000), "chosen"),
    "samples": ("g (float[N,L] x) => (float[N,L] y) { y = Relu(x) }", {}, (1, 16000), "chosen"),
    "a spectrogram": ("g (float[N,80,T] x) => (float[N,80,T] y) { y = Relu(x) }", {}, (1, 80, 100), "chosen"),
    "channels last": ("g (float[N,H,W,3] x) => (float[N,H,W,3] y) { y = Relu(x) }", {}, (1, 224, 224, 3), "chosen"),
    "dynamic channels": (IMAGE.replace("N,3", "N,C"), {}, (1, 3, 224, 224), "chosen"),
    "a line of given height": ("g (float[N,3,32,W] x) => (float[N,3,32,W] y) { y = Relu(x) }", {}, (1, 3, 32, 320), "chosen"),
    "only the batch is open": ("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }", {}, (1, 3), "batch"),
}


@pytest.mark.parametrize("name", FOUND)
def test_sizes_that_nobody_gives(name: str, tmp_path: Path) -> None:
    text, metadata, shape, origin = FOUND[name]
    path = tmp_path / "model.onnx"
    onnx.save(model_of(text, **metadata), path)
    runs = first_observations(path, label="model")
    assert [(each.shape, each.origin) for each in runs.inputs] == [(shape, origin)]
    if runs.second is not None and name != "a table of 37 x 37 patches":
        (other,) = (runs.second[each.name].shape for each in runs.inputs)
        assert other != shape
        assert np.prod(other) <= 2 * 3 * 128 * 160  # cheap


TEXTS = {
    "no such input": ("y:1,3,8,8", "no input 'y'.* x:N,3,H,W"),
    "rank": ("1,3,8", "x:1,3,8 has 3 sizes, needed are 4: x:N,3,H,W"),
    "fixed size": ("x:1,4,8,8", "fixes axis 1 to 3"),
    "no number": ("x:1,3,a,8", "not 'x:1,3,a,8'"),
    "zero": ("x:1,3,0,8", "at least 1.*, not 'x:1,3,0,8'"),
    "huge": ("x:1,3,4294967296,8", "at least 1"),
    "negative": ("x:1,3,-1,8", "not 'x:1,3,-1,8'"),
    "longer than Python reads": ("x:1,3,8," + "9" * 5000, "at least 1"),
    "twice": (("x:1,3,8,8", "x:1,3,9,9"), "once for each"),
    "twice, once without the name": (("1,3,8,8", "x:1,3,9,9"), "twice for the input 'x'"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_sizes_that_do_not_fit_are_refused(name: str, image_file: Path) -> None:
    given, words = TEXTS[name]
    with pytest.raises(OptionError, match=words):
        onnxmerge.inspect(image_file, input_shape=given)


def test_sizes_of_several_inputs(tmp_path: Path) -> None:
    model = model_of("g (float[N,T] a, float[N,T] b) => (float[N,T] y) { y = Add(a, b) }")
    with pytest.raises(OptionError, match="needs the name of an input, as in a:1,7; they are a:N,T, b:N,T"):
        onnxmerge.inspect(model, input_shape=(1, 7))
    for found in onnxmerge.inspect(model, input_shape="a:1,7").inputs:  # a name is the same size wherever it occurs
        assert (found.shape, found.origin) == ((1, 7), "given")


@pytest.mark.parametrize("name", ["?", "D"])
def test_one_name_for_both_sides_of_an_image(name: str) -> None:
    """Some exporters write it; ONNX Runtime does not mind."""
    model = model_of(IMAGE)
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = name
    assert onnxmerge.inspect(model, input_shape=(1, 3, 20, 44)).size.macs == macs_of(20, 44)


def test_a_size_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"sizes given, x:1,3,40,40: .*MatMul"):
        onnxmerge.inspect(model_of(LINEAR.replace("SIDE", "1024")), input_shape=(1, 3, 40, 40))


def test_a_candidate_that_does_not_run_at_the_sizes_of_the_reference() -> None:
    """Nobody gave these sizes."""
    with pytest.raises(ModelError, match=r"of the reference's sizes, x:1,3,224,224: .*MatMul"):
        onnxmerge.verify(model_of(IMAGE), model_of(LINEAR.replace("SIDE", "1024")))


def macs_of(height: int, width: int) -> int:
    return (height // 2) * (width // 2) * (8 * 27 + 4 * 8)


@pytest.mark.parametrize("command", ["inspect", "compress", "verify", "bench", "sweep"])
def test_every_command_takes_and_names_the_sizes(command: str, image_file: Path, run, tmp_path: Path) -> None:
    paths = {"inspect": [image_file], "compress": [image_file, tmp_path / "out.onnx"], "sweep": [image_file]}
    quick = {
        "compress": ["--ratio", "0.5", "--no-bench"],
        "sweep": ["--targets", "ratio=0.5", "--no-bench"],
        "bench": ["--threads", "1"],
    }
    solved = ["--method", "prune"] if command in ("compress", "sweep") else []
    report, page = tmp_path / "report.json", tmp_path / "report.html"
    samples = [] if command == "inspect" else ["--samples", "8"]
    arguments = [command, *paths.get(command, [image_file, image_file]), *quick.get(command, []), *solved, *samples]
    code, out, err = run(*arguments, "--input-shape", "x:1,3,20,44", "--report", report, "--report", page)
    assert code == 0, err
    assert "x:1,3,20,44, given" in out
    assert "x:1,3,20,44, given" in page.read_text()
    content = json.loads(report.read_text())
    (told,) = content["inputs"]
    assert (told["name"], told["shape"], told["origin"]) == ("x", [1, 3, 20, 44], "given")
    size = content.get("size") or content.get("before")
    assert size is None or size["macs"] == macs_of(20, 44)
    assert "chosen" not in out


def test_a_chosen_size_is_warned_of(image_file: Path, run, tmp_path: Path) -> None:
    code, out, _ = run("inspect", image_file, "--report", tmp_path / "page.html")
    assert code == 0
    assert "x:1,3,224,224, chosen" in out
    assert "--input-shape" in " ".join(out.split())
    assert "input-shape" in (tmp_path / "page.html").read_text().replace("input_shape", "input-shape")
    result = onnxmerge.compress(image_file, tmp_path / "out.onnx", ratio=0.5, method="prune", verify=False)
    assert "`input_shape`" in result.warnings[0]
    assert result.before.macs == macs_of(224, 224)


def test_calibration_inputs_set_the_sizes(image_file: Path) -> None:
    inputs = np.zeros((3, 3, 12, 36), np.float32)
    result = onnxmerge.inspect(image_file, calibration=inputs)
    assert [(each.shape, each.origin) for each in result.inputs] == [((1, 3, 12, 36), "calibration")]
    assert result.size.macs == macs_of(12, 36)
    with pytest.raises(InputError, match=r"needs float32 \(N, 3, 12, 40\), found float32 \(3, 3, 12, 36\)"):
        onnxmerge.inspect(image_file, calibration=inputs, input_shape=(1, 3, 12, 40))


def test_images_are_scaled_to_the_sizes_given(image_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (30, 20)).save(folder / "a.png")
    found = [onnxmerge.inspect(image_file, calibration=folder, input_shape=given) for given in (None, (1, 3, 16, 24))]
    assert [each.inputs[0].shape for each in found] == [(1, 3, 20, 30), (1, 3, 16, 24)]
    assert [each.inputs[0].origin for each in found] == ["calibration", "given"]


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_reports_say_how_images_became_inputs(command: str, image_file: Path, run, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    reports = [tmp_path / f"report.{suffix}" for suffix in ("html", "md", "json")]
    models = [image_file] if command == "inspect" else [image_file, image_file]
    measured = ["--sensitivity"] if command == "inspect" else []
    given = [
        *measured,
        "--calibration",
        tmp_path,
        "--input-shape",
        "1,3,16,24",
        "--fit",
        "letterbox",
        "--color",
        "bgr",
        "--std",
        "0.5",
    ]
    code, out, err = run(command, *models, *given, *(word for report in reports for word in ("--report", report)))
    assert code == 0, err
    line = "letterboxed with 114 to 16 x 24 (height x width), BGR, range 0 to 1, mean 0, std 0.5"
    assert all(line in " ".join(text.split()) for text in (out, *(report.read_text() for report in reports)))


def test_the_first_size_is_that_of_one_call(image_file: Path) -> None:
    latency = onnxmerge.bench(image_file, image_file, input_shape=(3, 3, 8, 8), threads=1, provider="cpu")
    assert latency.batch_size == 3
    assert latency.inputs[0].shape == (3, 3, 8, 8)


@pytest.mark.parametrize(("batch", "repeats"), [(None, 1), (8, 2)])
def test_time_is_predicted_for_the_batch_that_is_timed(
    batch: int | None, repeats: int, image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, made = [], model_measurements.budget_of
    monkeypatch.setattr(model_measurements, "budget_of", lambda *given: (found.append(given[-1]), made(*given))[1])
    options = {"input_shape": (4, 3, 8, 8), "batch": batch, "samples": 8, "threads": 1, "bench": False}
    onnxmerge.compress(image_file, tmp_path / "out.onnx", target="macs=0.9", **options)
    assert found == [repeats]


def test_the_candidate_is_counted_at_the_size_of_the_reference(tmp_path: Path) -> None:
    reference, candidate = model_of(IMAGE, imgsz="[64, 96]"), model_of(IMAGE)
    assert onnxmerge.bench(reference, candidate, threads=1, provider="cpu").macs_ratio == 1.0


def test_what_the_option_may_be() -> None:
    assert InputOptions(input_shape=["tensor:0:1,3", "b:2"]).input_shape == {"tensor:0": (1, 3), "b": (2,)}
    assert InputOptions(input_shape=()).input_shape is None
    of_numpy = InputOptions(input_shape={"x": (np.int64(1), 3)}).input_shape
    assert json.dumps(of_numpy) == '{"x": [1, 3]}'
    assert InputOptions(input_shape=(1, 3)).input_shape == InputOptions(input_shape="1,3").input_shape == {"": (1, 3)}
    for bad in ("", "x", 5, {"x": 5}, {1: (1,)}, {"x": (True,)}):
        with pytest.raises(OptionError, match="input_shape"):
            InputOptions(input_shape=bad)


def test_an_input_without_axes_is_called_one_value(run, tmp_path: Path) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x, float scale) => (float[N, 2] y)'
        " <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2, 2] v = {1, 2, 3, 4}>"
        " { s = Mul(x, scale)  h = MatMul(s, w)  r = Relu(h)  y = MatMul(r, v) }"
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    code, out, _ = run("inspect", tmp_path / "model.onnx", "--report", tmp_path / "page.html")
    assert code == 0
    for text in (out, (tmp_path / "page.html").read_text()):
        assert "scale (one value), fixed" in " ".join(text.split())
        assert "scale:" not in text
    with pytest.raises(OptionError, match=r"no input 'z'; its inputs are x:N,4, scale \(one value\)"):
        onnxmerge.inspect(model, input_shape={"z": (1, 4)})
