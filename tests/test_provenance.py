"""A compressed model says how it was made; the same options give the same bytes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from topologies.net import Net

import onnxmerge
from onnxmerge import compress, inspect, verify

MODELS = Path(__file__).resolve().parents[1] / "models"
MLP = MODELS / "digits-mlp.onnx"
QUICK = {"method": "prune", "ratio": 0.25, "bench": False}


def test_a_compressed_model_says_how_it_was_made(tmp_path, run):
    done = compress(MLP, tmp_path / "out.onnx", **QUICK)
    told = inspect(tmp_path / "out.onnx").provenance
    assert told.pop("fidelity") == f"{done.fidelity.worst.fidelity:.3f}"
    assert told.pop("inputs") == done.fidelity.input_description
    assert json.loads(told.pop("options")) == {"method": "prune", "ratio": 0.25}
    assert told == {"version": onnxmerge.__version__, "source_sha256": hashlib.sha256(MLP.read_bytes()).hexdigest()}
    code, out, _ = run("inspect", tmp_path / "out.onnx", "--report", tmp_path / "page.html")
    assert (code, inspect(MLP).provenance) == (0, {})
    for text in (" ".join(out.split()), (tmp_path / "page.html").read_text()):
        assert "made by onnxmerge" in text
        assert hashlib.sha256(MLP.read_bytes()).hexdigest()[:8] in text


def test_bytes_know_no_paths_and_no_times(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / f"{folder}.npy", np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32))
        compress(MLP, f"{folder}.onnx", calibration=tmp_path / folder / f"{folder}.npy", **QUICK)
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert any("solved on most of these" in each for each in verify(MLP, "a.onnx", calibration="a/a.npy").warnings)
    assert not any("solved on" in each for each in verify(MLP, "a.onnx").warnings)


@pytest.mark.parametrize("verb", ["compress", "sweep"])
def test_without_provenance(verb, tmp_path, run):
    how = ("--ratio", "0.25", "--no-verify") if verb == "compress" else ("--targets", "ratio=0.25", "--out", tmp_path)
    output = tmp_path / ("out.onnx" if verb == "compress" else "digits-mlp-ratio-0.25.onnx")
    arguments = (verb, MLP, *([output] if verb == "compress" else []), *how, "--method", "prune", *(["--no-bench"]))
    for extra, keys in ((["--no-provenance"], False), ([], True)):
        assert run(*arguments, *extra)[0] == 0
        assert any(each.key.startswith("onnxmerge.") for each in onnx.load(output).metadata_props) is keys


def test_metadata_that_were_there_stay(tmp_path):
    model = onnx.load(MLP)
    onnx.helper.set_model_props(model, {"labels": "0 1 2", "onnxmerge.fidelity": "0.1"})
    compress(model, tmp_path / "out.onnx", **QUICK)
    stored = {each.key: each.value for each in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert stored["labels"] == "0 1 2"
    assert float(stored["onnxmerge.fidelity"]) > 0.5


READ = {"mean": 0.3054, "std": (0.3758,)}
OTHERWISE = {
    "the same": (READ, READ, "pixels", False),
    "not at all": (READ, {}, "pixels", True),
    "another": (READ, {**READ, "std": 1.0}, "pixels", True),
    "other order": ({**READ, "input_range": (0, 255)}, READ, "pixels", True),
    "made up": (READ, {}, "synthetic", True),
    "values already": (READ, {}, "floats", False),
    "nothing known": ({}, READ, "pixels", False),
}


@pytest.mark.parametrize(("made", "given", "inputs", "warns"), OTHERWISE.values(), ids=OTHERWISE)
def test_pixels_that_are_read_otherwise_are_warned_of(made, given, inputs, warns, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8)
    calibration = {"pixels": pixels, "floats": pixels.astype(np.float32), "synthetic": None}[inputs]
    compress(MLP, tmp_path / "o.onnx", calibration=pixels, **QUICK, **made)
    found = verify(MLP, tmp_path / "o.onnx", calibration=calibration, **given).warnings
    assert any("was made for pixels that are read with `" in text for text in found) is warns


def test_a_mean_that_all_channels_share_is_that_of_each(tmp_path):
    net = Net(np.random.default_rng(0))
    y = net.relu(net.conv(net.input("x", 3, 8, 8), "conv", 3, 16))
    net.output(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", y)), "fc", 16, 4), 4)
    model, pixels = net.model(), np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), np.uint8)
    compress(model, tmp_path / "o.onnx", calibration=pixels, mean=0.5, std=0.5, fit="crop", **QUICK)
    for mean, warns in ((0.5, False), ((0.5, 0.5, 0.5), False), ((0.5, 0.4, 0.5), True)):
        found = verify(model, tmp_path / "o.onnx", calibration=pixels, mean=mean, std=0.5, fit="crop").warnings
        assert any("pixels that are read with `mean=0.5` and `std=0.5` and `fit=crop`" in text for text in found) is warns


def test_provenance_of_others_is_no_error(tmp_path):
    model = onnx.load(MLP)
    for options in ("{", "[]", '{"mean": "grey"}', '{"mean": [[1]], "std": 3}', '{"color": "blue"}'):
        onnx.helper.set_model_props(model, {"onnxmerge.options": options})
        assert verify(MLP, model, samples=8).passed
