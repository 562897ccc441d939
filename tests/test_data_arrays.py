"""Calibration arrays: what the model is fed with, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from input_feeds import CIFAR, FLOATS, IMAGE, PIXELS, calibrate, shapes_of, spec, whole

from onnxmerge.data.inputs import calibration_inputs
from onnxmerge.data.npy_files import open_npz
from onnxmerge.data.synthetic import ImageRange
from onnxmerge.errors import InputError

HWC, CHW, GRAY = PIXELS.transpose(0, 2, 3, 1), PIXELS, PIXELS[:, 0]
LAST = spec("x", ("N", 8, 8, 3))
UNIT = PIXELS / 255
ARRAYS = {
    "float64": (IMAGE, FLOATS, FLOATS),
    "float32, column-major": (IMAGE, np.asfortranarray(FLOATS.astype(np.float32)), FLOATS),
    "big-endian": (IMAGE, FLOATS.astype(">f4"), FLOATS),
    "half precision": (spec("x", ("N", 3, 8, 8), "float16"), FLOATS, FLOATS.astype(np.float16)),
    "integers": (spec("x", ("N", 4)), np.arange(28).reshape(7, 4), np.arange(28.0).reshape(7, 4)),
    "narrower integers": (spec("x", ("N", 4), "int32"), np.arange(28).reshape(7, 4), np.arange(28).reshape(7, 4)),
    "strings": (spec("x", ("N", 2), "object"), np.array([["a", "bc"]] * 7), np.array([["a", "bc"]] * 7, object)),
    "pixels": (IMAGE, CHW, UNIT),
    "pixels, channels last": (IMAGE, HWC, UNIT),
    "pixels, channels first": (LAST, CHW, UNIT.transpose(0, 2, 3, 1)),
    "pixels, both channels last": (LAST, HWC, UNIT.transpose(0, 2, 3, 1)),
    "gray pixels": (spec("x", ("N", 1, 8, 8)), GRAY, UNIT[:, :1]),
    "gray pixels, channels last": (spec("x", ("N", 8, 8, 1)), GRAY, UNIT[:, 0, :, :, np.newaxis]),
    "gray pixels, dynamic": (spec("x", ("N", 1, "H", "W")), GRAY, UNIT[:, :1]),
    "pixels, flat": (spec("x", ("N", 192)), CHW.reshape(7, -1), UNIT.reshape(7, -1)),
    "pixels, uint8 model": (spec("x", ("N", 3, 8, 8), "uint8"), HWC, CHW),
}


@pytest.mark.parametrize("file", ["a.npy", "stored.npz", "packed.npz"])
@pytest.mark.parametrize(("one", "array", "expected"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_feed_the_only_input(tmp_path, one, array, expected, file):
    path = tmp_path / file
    {"a.npy": np.save, "stored.npz": np.savez, "packed.npz": np.savez_compressed}[file](path, array)
    inputs = calibrate(path, one)
    assert (inputs.count, inputs.description) == (7, f"7 calibration inputs from {file}")
    for size in (3, 7):
        found = whole(inputs, size)["x"]
        assert found.dtype == one.dtype
        if one.dtype.kind == "f":
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        else:
            np.testing.assert_array_equal(found, expected)


def test_pixels_go_through_the_image_range(tmp_path):
    np.save(tmp_path / "a.npy", HWC)
    mean, std = (np.reshape(values, (1, 3, 1, 1)) for values in (CIFAR.mean, CIFAR.std))
    for one, axis in ((IMAGE, 1), (LAST, -1)):
        found = whole(calibrate(tmp_path / "a.npy", one, image_range=ImageRange(0, 255, CIFAR.mean, CIFAR.std)))["x"]
        np.testing.assert_allclose(np.moveaxis(found, axis, 1), (PIXELS - mean) / std, rtol=1e-5, atol=1e-4)


def test_members_feed_the_inputs_of_their_names(tmp_path):
    ids = np.arange(14).reshape(7, 2)
    np.savez(tmp_path / "a.npz", labels=np.arange(3), ids=ids, x=FLOATS, ratio=np.float32(0.5))
    inputs = calibrate(tmp_path / "a.npz", spec("ids", ("N", 2), "int64"), IMAGE, spec("ratio", ()))
    feeds = list(inputs.batches(4))
    np.testing.assert_array_equal(np.concatenate([each["ids"] for each in feeds]), ids)
    np.testing.assert_allclose(np.concatenate([each["x"] for each in feeds]), FLOATS, rtol=1e-6)
    assert [each["ratio"].shape for each in feeds] == [(), ()]


def test_the_only_member_that_fits_feeds_the_only_input(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.arange(7))
    np.testing.assert_allclose(whole(calibrate(tmp_path / "a.npz", IMAGE))["x"], UNIT, rtol=1e-6)


def test_models_of_a_fixed_batch_get_whole_batches(tmp_path):
    np.save(tmp_path / "a.npy", FLOATS)
    inputs = calibrate(tmp_path / "a.npy", spec("x", (3, 3, 8, 8)))
    assert [len(feeds["x"]) for feeds in inputs.batches(100)] == [3, 3]
    assert inputs.description == "6 calibration inputs from a.npy (1 left out: the model takes 3 at a time)"


def test_a_call_has_as_many_inputs_as_asked_for(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6, dtype=np.float32)[:, None] * np.ones(5, np.float32))
    free, tied = ([spec("x", [size, 5])] for size in ("N", 4))
    given = [calibration_inputs(tmp_path / "x.npy", each, shapes_of(each)) for each in (free, tied)]
    assert given[0].repeated(8)["x"][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert given[0].repeated(2)["x"][:, 0].tolist() == [0, 1]
    assert given[1].repeated(8)["x"][:, 0].tolist() == [0, 1, 2, 3]


def test_whole_inputs_are_taken_run_by_run(tmp_path):
    state = np.arange(56.0).reshape(7, 2, 4)
    np.savez(tmp_path / "a.npz", x=FLOATS[:, np.newaxis], state=state)
    feeds = list(calibrate(tmp_path / "a.npz", spec("x", (1, 3, 8, 8)), spec("state", (2, 4))).batches(5))
    np.testing.assert_array_equal(np.stack([each["state"] for each in feeds]), state)
    assert {each["x"].shape for each in feeds} == {(1, 3, 8, 8)}


def test_only_the_rows_of_a_batch_are_read(tmp_path):
    with (tmp_path / "big.npy").open("wb") as file:  # sparse: 40 GB that are not there
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (50_000, 3, 256, 256)})
        file.truncate(file.tell() + 50_000 * 3 * 256**2 * 4)
    feeds = next(calibrate(tmp_path / "big.npy", spec("x", ("N", 3, 256, 256))).batches(16))
    assert feeds["x"].shape == (16, 3, 256, 256)


def test_stored_members_are_mapped_where_they_lie(tmp_path):
    np.savez(tmp_path / "a.npz", x=FLOATS, y=PIXELS)
    mapped = (open_npz(tmp_path / "a.npz", ["y"]))[0]
    assert Path(mapped.base.filename) == tmp_path / "a.npz"
    np.testing.assert_array_equal(mapped, PIXELS)


def nan(where):
    array = FLOATS.copy()
    array.reshape(-1)[where] = np.nan
    return array


REFUSED = {
    "shape": (IMAGE, FLOATS[:, :, :5], r"input 'x' needs float32 \(N, 3, 8, 8\), found float64 \(7, 3, 5, 8\)"),
    "floats are not turned": (IMAGE, FLOATS.transpose(0, 2, 3, 1), r"found float64 \(7, 8, 8, 3\)"),
    "no batch axis": (IMAGE, FLOATS[0], r"found float64 \(3, 8, 8\)"),
    "a number": (IMAGE, np.float32(3), r"found float32 \(\)"),
    "type": (spec("x", ("N", 4), "int64"), np.zeros((7, 4)), r"needs int64 \(N, 4\), found float64"),
    "complex": (IMAGE, FLOATS * 1j, "found complex128"),
    "empty": (IMAGE, FLOATS[:0], "holds no inputs"),
    "nan": (IMAGE, nan(700), "holds nan, which input 'x'"),
    "overflow": (spec("x", ("N", 3, 8, 8), "float16"), FLOATS * 1e6, "which input 'x' \\(float16\\) cannot take"),
    "wrap-around": (spec("x", ("N", 4), "int32"), np.full((7, 4), 2**40), "holds 1099511627776"),
    "too few": (spec("x", (8, 3, 8, 8)), FLOATS, "holds 7 inputs, but the model takes exactly 8 at a time"),
    "python objects": (IMAGE, np.array([{"a": 1}] * 7, object), "Python objects"),
}


@pytest.mark.parametrize(("one", "array", "message"), REFUSED.values(), ids=REFUSED)
def test_arrays_that_do_not_fit_are_refused(tmp_path, one, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message) as caught:
        whole(calibrate(tmp_path / "a.npy", one))
    assert "\n" not in str(caught.value)


ARCHIVES = {
    "no member fits": (
        [IMAGE],
        {"a": GRAY, "b": np.arange(7)},
        r"no member that fits; found a uint8 \(7, 8, 8\), b int64 \(7,\)",
    ),
    "several fit": ([IMAGE], {"a": PIXELS, "b": FLOATS}, "2 members that fit"),
    "the only one does not fit": ([IMAGE], {"a": GRAY}, r"'a' of .* does not fit: .* found uint8 \(7, 8, 8\)"),
    "its namesake does not fit": ([IMAGE], {"x": GRAY, "y": PIXELS}, r"'x' of .* does not fit"),
    "a name is missing": (
        [IMAGE, spec("y", ("N", 2))],
        {"x": FLOATS},
        r"input 'y' needs float32 \(N, 2\), but .* no member of its name",
    ),
    "counts differ": ([IMAGE, spec("y", ("N", 2))], {"x": FLOATS, "y": np.zeros((5, 2))}, "7 of 'x', 5 of 'y'"),
    "nothing": ([IMAGE], {}, "found no arrays"),
}


@pytest.mark.parametrize(("specs", "members", "message"), ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_do_not_fit_are_refused(tmp_path, specs, members, message):
    np.savez(tmp_path / "a.npz", **members)
    with pytest.raises(InputError, match=message):
        calibrate(tmp_path / "a.npz", *specs)


def valid_npy(tmp_path):
    np.save(tmp_path / "valid.npy", FLOATS)
    return (tmp_path / "valid.npy").read_bytes()


def valid_npz(tmp_path):
    np.savez_compressed(tmp_path / "valid.npz", x=FLOATS)
    return (tmp_path / "valid.npz").read_bytes()


BROKEN = {
    "missing": ("a.npz", None, "does not exist"),
    "suffix": ("a.txt", lambda _: b"1 2 3", "is of no known kind"),
    "npy of no kind": ("a.npy", lambda _: b"hello", "cannot be read"),
    "npy cut short": ("a.npy", lambda path: valid_npy(path)[:-1], "needs 10752 bytes, but only 10751 are there"),
    "npz of no kind": ("a.npz", lambda _: b"hello", "cannot be read: File is not a zip file"),
    "npz with a flipped byte": ("a.npz", lambda path: flipped(valid_npz(path), 5000), "cannot be read"),
    "empty file": ("a.npy", lambda _: b"", "cannot be read"),
}


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_refused(tmp_path, name, content, message):
    if content:
        (tmp_path / name).write_bytes(content(tmp_path))
    with pytest.raises(InputError, match=message):
        calibrate(tmp_path / name, IMAGE)


def test_a_lone_array_cannot_feed_two_inputs(tmp_path):
    np.save(tmp_path / "a.npy", FLOATS)
    with pytest.raises(InputError, match=r"the model has 2: a \.npz with members x, y is needed"):
        calibrate(tmp_path / "a.npy", IMAGE, spec("y", ("N", 2)))
