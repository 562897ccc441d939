"""Folders of calibration images and arrays: what the model is fed with, and what is refused."""

import os

import numpy as np
import pytest
from input_feeds import CIFAR, FLOATS, IMAGE, PIXELS, SHARED, calibrate, needs_shared, spec, whole
from PIL import Image

from onnxmerge.data.images import ImageReading
from onnxmerge.data.inputs import calibration_inputs
from onnxmerge.data.synthetic import ImageRange
from onnxmerge.errors import InputError, UnusedOptionError
from onnxmerge.evaluation.fidelity import compare
from onnxmerge.execution.sessions import open_session


def save_image(path, width=20, height=12, mode="RGB", suffix="png", seed=0):
    bands = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *bands), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path.with_suffix(f".{suffix}"))
    return pixels


def test_images_of_the_models_size_are_fed_exactly_in_order_of_their_names(tmp_path):
    pixels = [save_image(tmp_path / name, 8, 8, seed=seed) for seed, name in enumerate(("a", "b/a", "c"))]
    (tmp_path / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image")
    inputs = calibrate(tmp_path, IMAGE, image_range=CIFAR)
    mean, std = (np.reshape(values, (1, 1, 1, 3)) for values in (CIFAR.mean, CIFAR.std))
    expected = ((np.stack(pixels) / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert inputs.count == 3
    for size in (2, 3):
        np.testing.assert_allclose(whole(inputs, size)["x"], expected, rtol=1e-5, atol=1e-5)


IMAGE_INPUTS = {
    "first": (spec("x", ("N", 3, 8, 6)), (3, 8, 6), "float32"),
    "last": (spec("x", ("N", 8, 6, 3)), (8, 6, 3), "float32"),
    "gray": (spec("x", ("N", 1, 8, 6)), (1, 8, 6), "float32"),
    "gray, last": (spec("x", ("N", 8, 6, 1)), (8, 6, 1), "float32"),
    "native size": (spec("x", ("N", 3, "H", "W")), (3, 12, 20), "float32"),
    "native width": (spec("x", ("N", 3, 8, "W")), (3, 8, 20), "float32"),
    "uint8": (spec("x", ("N", 8, 6, 3), "uint8"), (8, 6, 3), "uint8"),
}


@pytest.mark.parametrize(("one", "shape", "dtype"), IMAGE_INPUTS.values(), ids=IMAGE_INPUTS)
def test_images_become_what_the_model_takes(tmp_path, one, shape, dtype):
    save_image(tmp_path / "a", 20, 12)
    save_image(tmp_path / "b", 9, 31, mode="L", suffix="jpg")
    save_image(tmp_path / "c", 3, 3, mode="RGBA")
    values = whole(calibrate(tmp_path, one), 2)["x"]
    assert values.shape == (3, *shape)
    assert values.dtype == dtype
    assert values.min() >= 0
    assert 0.3 < values.mean() / (255 if dtype == "uint8" else 1) < 0.7


def test_images_are_cropped_about_the_centre(tmp_path):
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(np.repeat(np.repeat(pixels, 3, 0), 3, 1)).save(tmp_path / "b.png")
    assert whole(calibrate(tmp_path, IMAGE))["x"].min() > 0.85


READINGS = {  # of 6 rows, black, and 12 columns of which the last 4 are white; the model takes 6 x 6
    "crop": ("crop", [0, 0, 0, 0, 0, 1], 0),
    "resize": ("resize", [0, 0, 0, 0, 1, 1], 0),
    "letterbox": ("letterbox", [0, 0, 0, 0, 1, 1], 114 / 255),
}


@pytest.mark.parametrize(("fit", "columns", "above"), READINGS.values(), ids=READINGS)
def test_images_are_fitted_to_the_models_size_as_asked(tmp_path, fit, columns, above):
    pixels = np.zeros((6, 12, 3), np.uint8)
    pixels[:, 8:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (values,) = whole(calibrate(tmp_path, spec("x", ("N", 3, 6, 6)), reading=ImageReading(fit)))["x"]
    np.testing.assert_allclose(values[:, 2:4], np.broadcast_to(columns, (3, 2, 6)), atol=0.3)
    np.testing.assert_allclose(values[:, [0, 5], :3], above, atol=1e-6)


@pytest.mark.parametrize("dims", [("N", 3, 8, 8), ("N", 8, 8, 3)], ids=["NCHW", "NHWC"])
def test_bgr_is_rgb_turned_before_mean_and_std(tmp_path, dims):
    pixels = save_image(tmp_path / "a", 8, 8)
    inputs = calibrate(tmp_path, spec("x", dims), image_range=CIFAR, reading=ImageReading(color="bgr"))
    expected = (pixels[..., ::-1] / 255 - np.array(CIFAR.mean)) / np.array(CIFAR.std)
    found = whole(inputs)["x"][0]
    np.testing.assert_allclose(found if dims[3] == 3 else np.moveaxis(found, 0, -1), expected, rtol=1e-4, atol=1e-5)
    assert inputs.pixels == {"x": inputs.pixels["x"]}
    assert inputs.pixels["x"].endswith(
        "to 8 x 8 (height x width), BGR, range 0 to 1, mean 0.4914,0.4822,0.4465, std 0.2023,0.1994,0.201"
    )


def test_images_of_any_mode_are_read_without_a_word(tmp_path, recwarn):
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    palette = red.convert("P")
    palette.info["transparency"] = bytes([255] * 255 + [0])
    for number, image in enumerate((red, red.convert("CMYK"), red.convert("RGBA"), palette)):
        image.save(tmp_path / f"{number}.{'tif' if image.mode == 'CMYK' else 'png'}")
    red.save(tmp_path / "4.gif", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    values = whole(calibrate(tmp_path, IMAGE))["x"]
    np.testing.assert_allclose(values, np.broadcast_to([[[1]], [[0]], [[0]]], (5, 3, 8, 8)), atol=0.01)
    assert not recwarn.list


@pytest.mark.parametrize("place", ["a.npy", ""], ids=["file", "folder"])
@pytest.mark.parametrize("option", ["color", "fit"])
def test_options_of_images_are_refused_for_arrays(tmp_path, place, option):
    np.save(tmp_path / "a.npy", FLOATS)
    reading = ImageReading(**{option: {"color": "bgr", "fit": "letterbox"}[option]})
    for given in (tmp_path / place, FLOATS):
        told = rf"holds no images, that is image files or uint8 arrays, .*, so that `{option}` has no effect: drop it"
        with pytest.raises(UnusedOptionError, match=told) as refused:
            calibrate(given, IMAGE, reading=reading)
        assert refused.value.option == option


@pytest.mark.parametrize("form", ["npy", "npz", "folder of npy", "array"])
@pytest.mark.parametrize("shape", [(6, 12, 3), (3, 6, 12), (6, 12)], ids=["HWC", "CHW", "HW"])
def test_arrays_of_pixels_are_read_as_image_files_are(tmp_path, shape, form):
    pixels = np.random.default_rng(3).integers(0, 256, (3, *shape), np.uint8)
    one, reading = spec("x", ("N", 3 if 3 in shape else 1, 8, 8)), ImageReading("letterbox", "bgr")
    for place in ("images", "arrays"):
        (tmp_path / place).mkdir()
    for number, image in enumerate(np.moveaxis(pixels, 1, -1) if shape[0] == 3 else pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
        np.save(tmp_path / "arrays" / f"{number}.npy", pixels[number])
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "a.npz", pixels=pixels)
    forms = {"npy": tmp_path / "a.npy", "npz": tmp_path / "a.npz", "folder of npy": tmp_path / "arrays", "array": pixels}
    found, expected = (calibrate(given, one, reading=reading) for given in (forms[form], tmp_path / "images"))
    np.testing.assert_array_equal(whole(found)["x"], whole(expected)["x"])
    assert found.pixels == expected.pixels


def test_images_of_another_size_are_refused_with_the_cure():
    with pytest.raises(InputError, match=r"found uint8 \(2, 9, 12, 3\); `fit` brings images to that size"):
        calibrate(np.zeros((2, 9, 12, 3), np.uint8), IMAGE)


def test_folders_that_vanish_meanwhile_are_passed_over(tmp_path, monkeypatch):
    save_image(tmp_path / "a", 8, 8)
    (tmp_path / "gone").mkdir()
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scandir(f"{path}-gone" if "gone" in str(path) else path))
    assert calibrate(tmp_path, IMAGE).count == 1


@pytest.mark.parametrize("shape", [(2, 8, 8, 4), (2, 8), (0, 8, 8, 3), (2, 8, 8)])
def test_pixels_of_other_channels_are_refused(shape):
    with pytest.raises(InputError, match=r"does not fit: input 'x' needs float32 .*, found uint8 \("):
        calibrate(np.zeros(shape, np.uint8), IMAGE, reading=ImageReading())


def test_npy_files_hold_one_input_or_several(tmp_path):
    for name, array in (("a", FLOATS[0]), ("b", FLOATS[1:4]), ("c", FLOATS[4:])):
        np.save(tmp_path / f"{name}.npy", array)
    inputs = calibrate(tmp_path, IMAGE)
    for size in (2, 7):
        np.testing.assert_allclose(whole(inputs, size)["x"], FLOATS, rtol=1e-6)
    assert sum(part.count for part in inputs.split(3, seed=0)) == 7


def test_npy_files_of_pixels_are_turned(tmp_path):
    for number, image in enumerate(PIXELS.transpose(0, 2, 3, 1)):
        np.save(tmp_path / f"{number}.npy", image)
    np.testing.assert_allclose(whole(calibrate(tmp_path, IMAGE), 3)["x"], PIXELS / 255, rtol=1e-6)


FOLDERS = {
    "empty": (IMAGE, [], "holds 0 images, 0 .npy and 0 .npz files among 0 files"),
    "mixed": (IMAGE, [("a.png", None), ("b.npy", FLOATS)], "1 images, 1 .npy and 0 .npz files"),
    "unreadable image": (IMAGE, [("a.png", None), ("b.png", b"hello")], r"b\.png cannot be read"),
    "image cut short": (IMAGE, [("a.png", 300)], r"a\.png cannot be read"),
    "no image model": (spec("x", ("N", 100)), [("a.png", None)], r"images need \(N, C, H, W\) or \(N, H, W, C\)"),
    "seven channels": (spec("x", ("N", 7, 8, 8)), [("a.png", None)], "with 1 or 3 channels"),
    "no batch axis": (spec("x", ()), [("a.npy", np.float32(1))], "no axis counts inputs"),
    "shape": (IMAGE, [("a.npy", FLOATS[0]), ("b.npy", FLOATS[0, :, :4])], r"b\.npy does not fit: .* found float64 \(3, 4, 8\)"),
    "shapes differ": (
        spec("x", ("N", 3, "H", "W")),
        [("a.npy", FLOATS[0]), ("b.npy", FLOATS[0, :, :4])],
        r"b\.npy holds inputs of float64 \(3, 4, 8\): float64 \(3, 8, 8\) as in a\.npy",
    ),
    "sixteen bits": (IMAGE, [("a.png", "I;16")], "its pixels are 'I;16'"),
}


@pytest.mark.parametrize(("one", "files", "message"), FOLDERS.values(), ids=FOLDERS)
def test_folders_that_do_not_fit_are_refused(tmp_path, one, files, message):
    for name, content in files:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "I;16" if isinstance(content, str) else False:
            Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(path)
        elif content is None or isinstance(content, int):
            save_image(path)
            path.write_bytes(path.read_bytes()[:content])
        else:
            np.save(path, content)
    with pytest.raises(InputError, match=message):
        whole(calibrate(tmp_path, one))


def test_bombs_are_refused(tmp_path, monkeypatch):
    save_image(tmp_path / "a")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="could be decompression bomb"):
        whole(calibrate(tmp_path, IMAGE))


@needs_shared
@pytest.mark.shared
def test_real_images_reach_the_network_as_it_was_trained():
    session = open_session(SHARED / "models" / "lenet-300-100.onnx", optimise=False, threads=1)
    shapes = {each.name: (1, 1, 28, 28) for each in session.inputs}
    path = SHARED / "data" / "fashion_mnist_test.npz"
    inputs = calibration_inputs(path, session.inputs, shapes, ImageRange(mean=(0.5,), std=(0.5,)))
    with np.load(path, allow_pickle=False) as archive:
        assert compare(session, session, inputs.batches(200), "", archive["labels"]).accuracy.reference > 0.88
