"""Labels and the worst input of `verify`: read and written through the command line."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from broken import swapped_channels

import onnxmerge
from onnxmerge.execution.sessions import Session, open_session

MODELS = Path(__file__).resolve().parents[1] / "models"
MLP = MODELS / "digits-mlp.onnx"
MEAN, STD = 0.3054, 0.3758
PIXELS = ("--mean", str(MEAN), "--std", str(STD))


@pytest.fixture
def folder(tmp_path) -> Path:
    """100 digits and their labels, and a candidate whose classes 0 and 9 are exchanged."""
    with np.load(MODELS / "digits.npz") as archive:
        np.save(tmp_path / "images.npy", archive["images"][:100])
        np.save(tmp_path / "labels.npy", archive["labels"][:100])
        np.savez(tmp_path / "labels.npz", labels=archive["labels"][:100], other=np.zeros(3))
    model = onnx.load(MLP)
    swapped_channels(model, -1)
    onnx.save(model, tmp_path / "swapped.onnx")
    return tmp_path


@pytest.mark.parametrize("file", ["labels.npy", "labels.npz"])
def test_accuracy_before_and_after(run, folder, file):
    given = ("--calibration", folder / "images.npy", "--labels", folder / file, *PIXELS)
    code, out, _ = run("verify", MLP, folder / "swapped.onnx", *given, "--min-cosine", "0")
    labels = np.load(folder / "labels.npy")
    _, found, _ = run("verify", MLP, folder / "swapped.onnx", *given, "--min-cosine", "0", "--json")
    accuracy = json.loads(found)["fidelity"]["accuracy"]
    assert code == 0
    assert accuracy["reference"] > 0.97
    assert accuracy["candidate"] == pytest.approx(accuracy["reference"] - np.isin(labels, (0, 9)).mean(), abs=0.021)
    assert f"{accuracy['reference']:.2%} before, {accuracy['candidate']:.2%} after" in out


def test_labels_cost_no_second_run(folder, monkeypatch):
    calls, run = [], Session.run
    monkeypatch.setattr(Session, "run", lambda session, feeds: calls.append(session.label) or run(session, feeds))
    given = {"calibration": folder / "images.npy", "mean": (MEAN,), "std": (STD,), "min_cosine": -1.0}
    counts = []
    for labels in (None, folder / "labels.npy"):
        calls.clear()
        onnxmerge.verify(MLP, folder / "swapped.onnx", labels=labels, **given)
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_labels_stay_with_their_inputs_where_only_some_are_used(run, folder):
    given = ("--calibration", folder / "images.npy", "--labels", folder / "labels.npy", *PIXELS, "--samples", "31", "--json")
    _, out, _ = run("verify", MLP, MLP, *given)
    assert json.loads(out)["fidelity"]["accuracy"]["reference"] > 0.96


LABELS = {
    "too few": (np.zeros(99, int), "labels of shape (99,) for 100 calibration inputs"),
    "one-hot": (np.zeros((100, 10), int), "labels of shape (100, 10)"),
    "floats": (np.zeros(100), "labels are class numbers"),
    "no member": ({"classes": np.zeros(100, int)}, "no member 'labels'; found classes"),
}


@pytest.mark.parametrize(("content", "message"), LABELS.values(), ids=LABELS.keys())
def test_labels_that_do_not_fit(run, folder, content, message):
    file = folder / ("bad.npz" if isinstance(content, dict) else "bad.npy")
    np.savez(file, **content) if isinstance(content, dict) else np.save(file, content)
    code, out, err = run("verify", MLP, MLP, "--calibration", folder / "images.npy", "--labels", file)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


REFUSED = {
    "labels without inputs": (("--labels", "labels.npy"), "give these as --calibration"),
    "labels that are not there": (("--calibration", "images.npy", "--labels", "no.npy"), "no.npy does not exist"),
    "labels of another kind": (("--calibration", "images.npy", "--labels", "swapped.onnx"), "no .npy file and no .npz"),
    "worst of another kind": (("--save-worst", "worst.npy"), "--save-worst writes a .npz file"),
    "worst nowhere": (("--save-worst", "no/worst.npz"), "no of the worst input does not exist"),
    "worst over labels": (
        ("--calibration", "images.npy", "--labels", "labels.npz", "--save-worst", "labels.npz"),
        "would overwrite the labels",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(run, folder, monkeypatch, options, message):
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code, out, err = run("verify", MLP, MLP, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_worst_input_can_be_given_again(run, folder):
    worst = folder / "worst.npz"
    code, out, _ = run("verify", MLP, folder / "swapped.onnx", "--samples", "40", "--save-worst", worst, "--json")
    first = json.loads(out)["fidelity"]["outputs"][0]
    assert code == 1
    with np.load(worst) as archive:
        assert archive.files == ["x"]
        session = open_session(MLP, optimise=False)
        assert session.run({"x": archive["x"]})["y"].shape == (1, 10)
    _, out, _ = run("verify", MLP, folder / "swapped.onnx", "--calibration", worst, "--json")
    again = json.loads(out)["fidelity"]
    assert again["input_count"] == 1
    assert again["outputs"][0]["relative_l2_mean"] == pytest.approx(first["relative_l2_worst"], rel=1e-4)


def test_layers_on_the_terminal_and_as_json(run, folder):
    code, out, err = run("verify", MLP, folder / "swapped.onnx", "--layers", "--samples", "16")
    assert code == 1
    assert "first deviation: /5/Gemm: channels are permuted: 0 holds 9, 9 holds 0" in out
    assert "deviate from /5/Gemm on" in err
    _, out, _ = run("verify", MLP, folder / "swapped.onnx", "--layers", "--samples", "16", "--json")
    layers = json.loads(out)["fidelity"]["layer_comparison"]
    assert (layers["first_deviation"]["node"], layers["same_channel_counts"], layers["runs"]) == ("/5/Gemm", True, 16)
    assert [node["tensor"] for node in layers["deviations"]] == ["y"]
