"""The models that the project ships are the files that models.json and models/README.md describe."""

import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "models"
FACTS = json.loads((FOLDER / "models.json").read_text(encoding="utf-8"))
README = (FOLDER / "README.md").read_text(encoding="utf-8")
EVERY_MODEL = pytest.mark.parametrize("entry", FACTS["models"], ids=lambda entry: entry["file"])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def inputs(images: np.ndarray, entry: dict) -> np.ndarray:
    """(n, 1, 8, 8) uint8 -> the model's float32 input, by the scale, mean and std of models.json."""
    facts = entry["input"]
    mean, std = (np.array(facts[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    return (images.astype(np.float32) / np.float32(facts["scale"]) - mean) / std


def scores(entry: dict, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(FOLDER / entry["file"], providers=["CPUExecutionProvider"])
    (result,) = session.run([entry["output"]["name"]], {entry["input"]["name"]: inputs(images, entry)})
    return result


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    with np.load(FOLDER / FACTS["data"]["file"], allow_pickle=False) as archive:
        return dict(archive)


def test_every_file_in_the_folder_is_described():
    digits = {entry["file"] for entry in FACTS["models"]} | {FACTS["data"]["file"]}
    described = digits | set(re.findall(r"^\| `((?:cifar|text)[-a-z0-9]*\.(?:onnx|npz))` \|", README, re.MULTILINE))
    assert described == {path.name for path in FOLDER.iterdir() if path.suffix in (".onnx", ".npz", ".data")}


def test_files_stay_small():
    sizes = [path.stat().st_size for path in FOLDER.iterdir() if path.is_file()]
    assert max(sizes) < 5_000_000
    assert sum(sizes) < 8_000_000


def test_data_are_what_models_json_says(data):
    facts = FACTS["data"]
    assert sha256(FOLDER / facts["file"]) == facts["sha256"]
    assert set(data) == {"images", "labels", "calibration"}
    assert {array.dtype for array in data.values()} == {np.dtype(np.uint8)}
    assert data["images"].shape == (facts["test_images"], 1, 8, 8)
    assert data["calibration"].shape == (facts["calibration_images"], 1, 8, 8)
    assert np.bincount(data["labels"], minlength=10).min() >= 55


def test_no_calibration_image_is_a_test_image(data):
    assert not {image.tobytes() for image in data["images"]} & {image.tobytes() for image in data["calibration"]}


@EVERY_MODEL
def test_file_is_the_described_one(entry):
    path = FOLDER / entry["file"]
    assert sha256(path) == entry["sha256"]
    assert path.stat().st_size == entry["size_bytes"]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (entry["opset"], entry["ir_version"]) == (17, 8)
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert sum(math.prod(tensor.dims) for tensor in floats) == entry["parameters"]


@EVERY_MODEL
def test_accuracy_is_the_stated_one(entry, data):
    measured = 100.0 * float((scores(entry, data["images"]).argmax(1) == data["labels"]).mean())
    assert measured == pytest.approx(entry["accuracy_percent"], abs=0.01)
    assert measured >= (96.5 if entry["file"] == "digits-mlp.onnx" else 98.0)


@EVERY_MODEL
def test_readme_row_states_the_same_facts(entry):
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{entry['file']}`")]
    for fact in (f"`{entry['sha256']}`", f"| {entry['accuracy_percent']:.2f} %", f"| {entry['parameters']:,} |"):
        assert fact in row


def test_readme_states_the_preprocessing_of_every_model():
    assert f"`{FACTS['data']['sha256']}`" in README
    for entry in FACTS["models"]:
        facts = entry["input"]
        formula = f"x = (images.astype(float32) / {facts['scale']:g} - {facts['mean'][0]}) / {facts['std'][0]}"
        assert formula in README


@pytest.mark.parametrize(
    ("file", "kept"), [("digits-resnet-bn.onnx", True), ("digits-resnet.onnx", False), ("digits-mobile.onnx", True)]
)
def test_batch_normalization_is_kept_or_folded(file, kept):
    operators = {node.op_type for node in onnx.load(FOLDER / file).graph.node}
    assert ("BatchNormalization" in operators) is kept


def test_both_exports_of_the_residual_network_agree(data):
    entries = {entry["file"]: entry for entry in FACTS["models"]}
    kept, folded = (scores(entries[file], data["images"]) for file in ("digits-resnet-bn.onnx", "digits-resnet.onnx"))
    np.testing.assert_allclose(kept, folded, rtol=0, atol=1e-4)
