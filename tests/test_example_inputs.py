"""The worst and a median input of a comparison: the right ones, by the names that their user knows, and the right pictures."""

import base64
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from broken import swapped_channels
from PIL import Image

import onnxmerge
from onnxmerge.data.thumbnails import LARGEST, _png, pixels_of
from onnxmerge.execution.sessions import open_session

MODELS = Path(__file__).resolve().parents[1] / "models"

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 9, 3), np.uint8)
COLOUR[0, 0], COLOUR[0, 1] = 0, 255
GREY = COLOUR[..., :1]
IMAGES = {
    "channels first": (COLOUR.transpose(2, 0, 1) / np.float32(255), COLOUR),
    "channels last": (COLOUR / np.float32(255), COLOUR),
    "grey": (GREY.transpose(2, 0, 1) / np.float32(255), GREY[..., 0]),
    "grey, channels last": (GREY.astype(np.int32), GREY[..., 0]),
    "normalised": ((COLOUR.transpose(2, 0, 1) / np.float16(255) - 0.45) / 0.25, COLOUR),
    "dim pixels as they are": (COLOUR // 2, COLOUR // 2),
    "constant": (np.full((3, 8, 8), 7.5, np.float32), np.zeros((8, 8, 3), np.uint8)),
}


@pytest.mark.parametrize(("values", "expected"), IMAGES.values(), ids=IMAGES)
def test_values_become_the_pixels_that_they_were(values, expected):
    assert np.abs(pixels_of(values).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("values", [np.zeros((4, 9, 9)), np.zeros((3, 7, 9)), np.zeros((16, 8, 8)), np.zeros((3, 9, 9), bool)])
def test_other_inputs_have_no_picture(values):
    assert pixels_of(values) is None


def decoded(picture: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))


@pytest.fixture
def swapped(tmp_path):
    model = onnx.load(MODELS / "digits-mlp.onnx")
    swapped_channels(model, -1)
    onnx.save(model, tmp_path / "swapped.onnx")
    return tmp_path / "swapped.onnx"


def test_examples_are_files_that_their_user_can_look_at(tmp_path, swapped):
    """Some images of a folder: names, errors and pictures belong together."""
    folder = tmp_path / "digits"
    (folder / "more").mkdir(parents=True)
    with np.load(MODELS / "digits.npz") as archive:
        images = archive["images"][:23, 0]
    files = [folder / ("more" if number % 2 else "") / f"{number}.png" for number in range(23)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    fidelity = onnxmerge.verify(MODELS / "digits-mlp.onnx", swapped, calibration=folder, samples=9).fidelity
    output, sessions = fidelity.outputs[0], [open_session(path, optimise=False) for path in (MODELS / "digits-mlp.onnx", swapped)]

    def error(file) -> float:
        values = np.asarray(Image.open(file), np.float32)[np.newaxis, np.newaxis] / 255
        first, second = (session.run({"x": values})["y"] for session in sessions)
        return float(np.linalg.norm(first - second) / np.linalg.norm(first))

    assert [each.which for each in fidelity.examples] == ["worst", "median"]
    for example, number in zip(fidelity.examples, (output.worst_input, output.median_input), strict=True):
        assert example.name == str(sorted(files)[number].relative_to(folder))
        assert example.relative_l2 == pytest.approx(error(folder / example.name), rel=1e-4)
        pixels = np.asarray(Image.open(folder / example.name), int)
        stretched = (pixels - pixels.min()) * 255 / np.ptp(pixels)
        assert np.abs(decoded(example.picture) - stretched).max() <= 1
    quantiles = output.relative_l2_quantiles
    assert len(quantiles) == 21
    assert [quantiles[20], quantiles[10]] == [each.relative_l2 for each in fidelity.examples]


def test_synthetic_inputs_have_pictures_of_a_size_that_fits_a_page(swapped):
    fidelity = onnxmerge.verify(MODELS / "digits-mlp.onnx", swapped, samples=5).fidelity
    assert all(decoded(each.picture).shape == (8, 8) and int(each.name.removeprefix("no. ")) < 5 for each in fidelity.examples)
    assert "picture" not in repr(fidelity)
    large = _png(np.zeros((300, 200, 3), np.uint8))
    assert decoded(large).shape == (LARGEST, 64, 3)
