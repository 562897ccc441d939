"""Synthetic inputs and calibration data: what the model is fed with, and what is refused."""

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxmerge.data import synthetic
from onnxmerge.data.batching import Batching, batching
from onnxmerge.data.images import ImageReading
from onnxmerge.data.inputs import calibration_inputs, synthetic_inputs
from onnxmerge.data.npy_files import open_npz
from onnxmerge.data.synthetic import ImageRange, dead_leaves
from onnxmerge.errors import InputError, OptionError
from onnxmerge.evaluation.fidelity import compare
from onnxmerge.execution.sessions import open_session
from onnxmerge.execution.tensor_specs import TensorSpec

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent")
TYPES = {
    "float32": "float",
    "float16": "float16",
    "float64": "double",
    "int64": "int64",
    "int32": "int32",
    "uint8": "uint8",
    "bool": "bool",
    "object": "string",
}
CIFAR = ImageRange(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))


def spec(name, dims, dtype="float32"):
    return TensorSpec(name, f"tensor({TYPES[dtype]})", np.dtype(dtype), tuple(dims))


def shapes_of(specs, batch=2, extent=16):
    """As one run would have seen them."""
    size = lambda axis, dim: dim if isinstance(dim, int) else extent if axis else batch  # noqa: E731
    return {each.name: tuple(size(axis, dim) for axis, dim in enumerate(each.dims)) for each in specs}


def synthesise(*specs, count=6, seed=0, batch=2, **options):
    return synthetic_inputs(specs, shapes_of(specs, batch), count, seed, **options)


def calibrate(path, *specs, batch=2, image_range=None, reading=None):
    return calibration_inputs(path, specs, shapes_of(specs, batch), image_range, reading)


def whole(inputs, size=1000):
    """Everything by name, joined on axis 0."""
    batches = list(inputs.batches(size))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def generators(count, seed=0):
    return np.random.default_rng(seed).spawn(count)


def images(count, height, width, channels, rng):
    return dead_leaves(rng.spawn(count), (height, width), channels)


# Dead leaves


@pytest.mark.parametrize("extents", [(50,), (24, 31), (64, 64), (3, 40), (1, 1), (9, 12, 10)], ids=str)
def test_leaves_are_what_painting_one_shape_after_the_other_gives(extents):
    number = synthetic._number_of_shapes(extents)
    for painted, rng in zip(dead_leaves(generators(5), extents, 2), generators(5), strict=True):
        centre, radius, aspect, cosine, sine = synthetic._draw(rng, number, extents)
        colour = synthetic._colours(rng, number, 2)
        image = np.tile(colour[0].reshape(2, *[1] * len(extents)), (1, *extents))
        covered = np.zeros(extents, bool)
        grid = np.meshgrid(*(np.arange(size, dtype=np.float32) for size in extents), indexing="ij")
        for shape in range(number):
            offset = [axis - at for axis, at in zip(grid, centre[shape], strict=True)]
            if aspect[shape] == 0:
                inside = sum(each * each for each in offset) < radius[shape] * radius[shape]
            elif len(extents) == 1:
                inside = abs(offset[0]) < aspect[shape] * radius[shape]
            else:
                u = offset[-1] * cosine[shape] + offset[-2] * sine[shape]
                v = offset[-2] * cosine[shape] - offset[-1] * sine[shape]
                inside = (abs(u) < radius[shape]) & (abs(v) < aspect[shape] * radius[shape])
                inside &= len(extents) == 2 or abs(offset[0]) < radius[shape]
            image[:, inside] = colour[shape + 1][:, np.newaxis]
            covered |= inside
        noise = painted - image
        assert np.abs(noise[:, ~covered]).max(initial=0) == 0
        assert np.abs(noise).max() < 0.6
        assert covered.sum() < 20 or 0.05 < noise[:, covered].std() < 0.15


@needs_shared
@pytest.mark.shared
def test_leaves_have_the_statistics_of_the_prototype():
    def describe(images):
        power = (np.abs(np.fft.fft2(images)) ** 2).mean(axis=(0, 1)) / 32**2
        frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(32, 1 / 32)] * 2))
        bands = [
            power[(low < frequency) & (frequency <= high)].mean() for low, high in ((0.1, 1.5), (1.5, 4.5), (4.5, 9), (9, 16))
        ]
        steps = np.abs(np.diff(images, axis=3)).mean()
        across = np.corrcoef(images[:, 0].ravel(), images[:, 1].ravel())[0, 1]
        return np.array([images.std(), images.std(axis=(2, 3)).mean(), steps, across, *bands])

    location = spec_from_file_location("prototype", SHARED / "prototypes" / "reconstruction.py")
    prototype = module_from_spec(location)
    location.loader.exec_module(prototype)
    expected, found = prototype.dead_leaves(500, 32), images(500, 32, 32, 3, np.random.default_rng(1))
    assert abs(found.mean() - expected.mean()) < 0.05
    np.testing.assert_allclose(describe(found), describe(expected), rtol=0.08)


@pytest.mark.parametrize("side", [8, 28, 64, 160], ids=str)
def test_leaves_cover_the_same_share_at_every_size(side):
    drawn = images(60, side, side, 1, np.random.default_rng(0))
    flat = (np.diff(drawn, axis=3) == 0).mean()  # the background alone has no noise
    assert 0.08 < flat < 0.35
    assert abs(drawn.mean()) < 0.2
    assert 0.8 < drawn.std() < 1.2


def test_leaves_of_batches_are_the_leaves_of_one_call():
    rng = np.random.default_rng(3)
    parts = [images(count, 40, 24, 3, rng) for count in (1, 5, 0, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), images(8, 40, 24, 3, np.random.default_rng(3)))
    assert [part.dtype for part in parts] == [np.float32] * 4


def test_signals_are_smooth_and_of_unit_variance():
    signals = whole(synthesise(spec("x", ("N", 2, 4000)), count=40))["x"]
    assert signals.shape == (40, 2, 4000)
    assert 0.8 < signals.std() < 1.2
    assert (
        np.abs(np.diff(signals, axis=2)).mean()
        < 0.6 * np.abs(np.diff(np.random.default_rng(0).permutation(signals.ravel()))).mean()
    )
    noise = synthetic._smooth_noise(np.random.default_rng(0), 200, 501)
    assert abs(noise.std() - 1) < 0.05
    assert abs(noise.mean()) < 1e-6


# What each input is fed with

KINDS = {
    "image": (spec("x", ("N", 3, 20, 24)), (-5, 5), True),
    "image, channels last": (spec("x", ("N", 20, 24, 3)), (-5, 5), True),
    "uint8 image": (spec("x", ("N", 20, 24, 3), "uint8"), (0, 255), True),
    "volume": (spec("x", ("N", 2, 6, 8, 7)), (-5, 5), True),
    "half precision": (spec("x", ("N", 3, 20, 24), "float16"), (-5, 5), True),
    "features": (spec("x", ("N", 100)), (-6, 6), True),
    "ids": (spec("input_ids", ("N", 100), "int64"), (0, 1), True),
    "mask": (spec("attention_mask", ("N", 100), "int64"), (1, 1), False),
    "booleans": (spec("x", ("N", 100), "bool"), (0, 1), True),
    "boolean mask": (spec("mask", ("N", 100), "bool"), (1, 1), False),
}


@pytest.mark.parametrize(("one", "limits", "varies"), KINDS.values(), ids=KINDS)
def test_inputs_follow_the_models_input(one, limits, varies):
    values = whole(synthesise(one))[one.name]
    assert values.shape == (6, *one.dims[1:])
    assert values.dtype == one.dtype
    assert limits[0] <= values.astype(np.float64).min() <= values.astype(np.float64).max() <= limits[1]
    assert (values.astype(np.float64).std() > 0.3) == varies
    assert any((values[0] != other).any() for other in values[1:]) == varies


def test_channels_last_images_are_the_images_turned():
    first, last = whole(synthesise(spec("x", ("N", 3, 20, 24))))["x"], whole(synthesise(spec("x", ("N", 20, 24, 3))))["x"]
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), last)


def test_ids_use_the_vocabulary_where_it_is_known():
    values = whole(synthesise(spec("ids", ("N", 400), "int64"), id_limits={"ids": 50}))["ids"]
    assert set(values.ravel()) == set(range(50))


def test_image_range_gives_pixels_of_photographs_in_the_range_asked_for():
    one = spec("x", ("N", 3, 32, 32))
    pixels = whole(synthesise(one, count=200, image_range=ImageRange()))["x"]
    assert pixels.min() == 0
    assert pixels.max() == 1
    assert abs(pixels.mean() - 0.45) < 0.02
    assert abs(pixels.std() - 0.24) < 0.03
    low_high = whole(synthesise(one, count=200, image_range=ImageRange(-1, 3, CIFAR.mean, CIFAR.std)))["x"]
    mean, std = (np.reshape(values, (1, 3, 1, 1)) for values in (CIFAR.mean, CIFAR.std))
    np.testing.assert_allclose(low_high, (pixels * 4 - 1 - mean) / std, atol=1e-4)
    raw = whole(synthesise(spec("x", ("N", 3, 32, 32), "uint8"), count=200))["x"]
    np.testing.assert_allclose(raw, 255 * pixels, atol=0.501)


def test_inputs_of_one_shape_are_fed_differently():
    values = whole(synthesise(IMAGE, spec("y", IMAGE.dims)))
    assert (values["x"] != values["y"]).mean() > 0.9


RANGES = {
    "turned round": ({"low": 1.0, "high": 0.0}, "`input_range` 1 0"),
    "infinite": ({"high": np.inf}, "`input_range` 0 inf"),
    "zero std": ({"std": (1.0, 0.0)}, "`std`"),
    "no std": ({"std": ()}, "`std`"),
    "nan mean": ({"mean": (np.nan,)}, "`mean`"),
}


@pytest.mark.parametrize(("options", "message"), RANGES.values(), ids=RANGES)
def test_image_ranges_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        ImageRange(**options)


def test_mean_of_another_number_of_channels_is_refused():
    with pytest.raises(InputError, match=r"`mean` has 3 numbers, but input 'x' has 1 channels"):
        whole(synthesise(spec("x", ("N", 1, 8, 8)), image_range=CIFAR))


def test_inputs_that_are_no_tensors_are_refused():
    with pytest.raises(InputError, match="only tensors"):
        synthesise(TensorSpec("x", "seq(tensor(float))", np.dtype(object), ("N",)))


# Batches

IMAGE = spec("x", ("N", 3, 8, 8))
BATCHING = {
    "dynamic": ([IMAGE, spec("y", ("N", 4))], {"x", "y"}, None),
    "unknown": ([spec("x", (None, 4)), spec("y", (None, 4))], {"x", "y"}, None),
    "fixed at 4": ([spec("x", (4, 3, 8, 8)), spec("y", (4, 2))], {"x", "y"}, 4),
    "fixed, no common extent": ([spec("x", (1, 3, 8, 8)), spec("y", (5,))], set(), 1),
    "scalar beside": ([IMAGE, spec("ratio", ())], {"x"}, None),
    "scalar only": ([spec("ratio", ())], set(), 1),
    "fixed beside": ([IMAGE, spec("size", (2,), "int64")], {"x"}, None),
    "another name": ([IMAGE, spec("boxes", ("K", 4))], {"x"}, None),
    "name on another axis": ([spec("x", ("N", 4)), spec("pairs", ("N", "N"))], {"x", "pairs"}, 2),
    "no name, states beside": ([spec("x", (None, 4)), spec("state", (2, None, 8))], {"x"}, 2),
    "name in a formula": ([spec("x", ("N", 4)), spec("past", ("N * 12", 4))], {"x"}, 2),
}


@pytest.mark.parametrize(("specs", "batched", "size"), BATCHING.values(), ids=BATCHING)
def test_batching_is_read_from_the_first_axes(specs, batched, size):
    assert batching(specs, shapes_of(specs)) == Batching(frozenset(batched), size)


@pytest.mark.parametrize(("specs", "batched", "size"), BATCHING.values(), ids=BATCHING)
def test_synthetic_feeds_have_the_shapes_of_a_run(specs, batched, size):
    shapes = shapes_of(specs)
    inputs = synthetic_inputs(specs, shapes, 5, 0)
    assert inputs.count == (5 if size is None else -(-5 // size) * size)
    sizes = []
    for feeds in inputs.batches(3):
        sizes.append(len(feeds[specs[0].name]) if batched else 1)
        for each in specs:
            expected = (sizes[-1], *shapes[each.name][1:]) if each.name in batched else shapes[each.name]
            assert feeds[each.name].shape == expected
    assert sizes == ([3, 2] if size is None else [size] * (inputs.count // size))


def test_the_seed_decides_every_byte_and_the_batch_size_none():
    specs = [spec("x", ("N", 3, 30, 30)), spec("signal", ("N", 2, 33)), spec("ids", ("N", 7), "int64"), spec("z", ("N", 5))]
    one, again, other = (synthesise(*specs, count=11, seed=seed) for seed in (5, 5, 6))
    reference = whole(one)
    for size in (1, 4, 11):
        found = whole(again, size)
        for name, values in reference.items():
            assert found[name].tobytes() == values.tobytes()
    assert all((whole(other)[name] != values).any() for name, values in reference.items())
    assert one == again


def test_inputs_given_whole_are_the_same_in_every_run_beside_a_free_batch_and_differ_otherwise():
    beside = list(synthesise(IMAGE, spec("state", (1, 4))).batches(2))
    assert len({feeds["state"].tobytes() for feeds in beside}) == 1
    alone = list(synthesise(spec("x", (1, 3, 8, 8)), spec("state", (2, 4))).batches(2))
    assert len({row.tobytes() for feeds in alone for row in feeds["state"]}) == 12
    assert len({feeds["state"].tobytes() for feeds in alone}) == len({feeds["x"].tobytes() for feeds in alone}) == 6


SPLITS = {
    "share": (None, 10, 0.3, 3),
    "number": (None, 10, 4, 4),
    "at least one": (None, 10, 0.01, 1),
    "at most all but one": (None, 10, 99, 9),
    "whole batches": (4, 20, 0.3, 8),
    "at least one batch": (4, 8, 0.01, 4),
}


@pytest.mark.parametrize(("fixed", "count", "held_out", "expected"), SPLITS.values(), ids=SPLITS)
def test_split_holds_a_part_out(fixed, count, held_out, expected):
    inputs = synthesise(spec("x", (fixed or "N", 6)), count=count)
    rest, held = inputs.split(held_out, seed=0)
    assert (rest.count, held.count) == (count - expected, expected)
    assert held.description == f"{expected} of {inputs.description}"
    rows = {name: {row.tobytes() for row in whole(part)["x"]} for name, part in (("all", inputs), ("rest", rest), ("held", held))}
    assert len(rows["rest"]) + len(rows["held"]) == len(rows["all"])
    assert rows["rest"] | rows["held"] == rows["all"]
    assert {row.tobytes() for row in whole(inputs.split(held_out, seed=0)[1])["x"]} == rows["held"]


def test_the_seed_draws_the_part_that_is_held_out():
    inputs = synthesise(IMAGE, count=40)
    held = [tuple(inputs.split(8, seed)[1].indices) for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_one_input_cannot_be_split():
    with pytest.raises(InputError, match="at least 2 inputs are needed"):
        synthesise(IMAGE, count=1).split(0.5, seed=0)


def test_a_batch_of_no_inputs_is_our_own_bug():
    with pytest.raises(ValueError, match="a batch of 0"):
        next(synthesise(IMAGE).batches(0))


def test_no_synthetic_inputs_are_refused():
    with pytest.raises(InputError, match="at least 1"):
        synthesise(IMAGE, count=0)


STANDARD = "mean 0 and standard deviation 1 assumed: "
SAY_OTHERWISE = f"{STANDARD}`mean` and `std`, or `input_range`, tell others"
KINDS = {
    "images": (("N", 3, 8, 8), "images (overlapping shapes)", SAY_OTHERWISE),
    "images, NHWC": (("N", 8, 12, 1), "images (overlapping shapes)", SAY_OTHERWISE),
    "features": (("N", 64, 8, 8), "maps (overlapping shapes)", SAY_OTHERWISE),
    "electrodes": ((1, 1, 22, 1000), "signals (steps and noise)", SAY_OTHERWISE),
    "sound": (("N", 1, 500), "signals (steps and noise)", f"{STANDARD}`calibration` gives others"),
    "volumes": (("N", 1, 8, 8, 8), "volumes (overlapping shapes)", f"{STANDARD}`calibration` gives others"),
    "numbers": (("N", 5), "noise", f"{STANDARD}`calibration` gives others"),
}


@pytest.mark.parametrize(("dims", "kind", "values"), KINDS.values(), ids=KINDS)
def test_reports_say_what_was_made_up_and_which_values_were_assumed(dims, kind, values):
    inputs = synthesise(spec("x", dims))
    assert inputs.assumed == {"x": f"synthetic {kind}, {values}"}
    assert ("inputs: " if kind == "noise" else "") + kind.partition(" (")[0] in inputs.description
    of_pixels = synthesise(spec("x", dims), image_range=CIFAR).assumed["x"]
    assert of_pixels.endswith(CIFAR.text if len(dims) == 4 else values)


def test_ids_and_pixels_of_whole_numbers_assume_nothing():
    assert synthesise(spec("i", ("N", 3), "int64")).assumed == {"i": ""}
    assert synthesise(spec("x", ("N", 3, 8, 8), "uint8")).assumed["x"].endswith("shapes), values 0 to 255")


@pytest.mark.parametrize(
    ("inputs", "source"),
    [
        (synthesise(IMAGE, seed=7), "6 synthetic images (seed 7)"),
        (
            synthesise(spec("i", ("N", 3), "int64"), spec("mask", ("N", 3), "int64")),
            "6 synthetic inputs: ids 0 and 1, ones (seed 0)",
        ),
    ],
    ids=["images", "ids"],
)
def test_sources_say_what_the_inputs_are(inputs, source):
    assert inputs.description == source


# Calibration arrays

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 3, 8, 8), dtype=np.uint8)
FLOATS = np.random.default_rng(0).standard_normal((7, 3, 8, 8))
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


# Folders


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
def test_options_of_images_are_refused_for_arrays(tmp_path, place):
    np.save(tmp_path / "a.npy", FLOATS)
    for given in (tmp_path / place, FLOATS):
        with pytest.raises(InputError, match=r"holds no images, that is image files or uint8 arrays, .*: drop `fit` and `color`"):
            calibrate(given, IMAGE, reading=ImageReading(color="bgr"))


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
    for number, image in enumerate(HWC):
        np.save(tmp_path / f"{number}.npy", image)
    np.testing.assert_allclose(whole(calibrate(tmp_path, IMAGE), 3)["x"], UNIT, rtol=1e-6)


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
