"""Synthetic inputs: what the model is fed with where no data is given."""

from types import SimpleNamespace

import numpy as np
import pytest
from input_feeds import CIFAR, IMAGE, SHARED, needs_shared, shapes_of, spec, synthesise, whole

from onnxmerge.data import dead_leaves as leaves_module
from onnxmerge.data import synthetic
from onnxmerge.data.balance import balanced
from onnxmerge.data.batching import Batching, batching
from onnxmerge.data.dead_leaves import dead_leaves
from onnxmerge.data.inputs import Inputs
from onnxmerge.data.synthetic import ImageRange
from onnxmerge.data.synthetic_inputs import synthetic_inputs
from onnxmerge.errors import InputError, OptionError
from onnxmerge.execution.tensor_specs import TensorSpec, batch_size


def generators(count, seed=0):
    return np.random.default_rng(seed).spawn(count)


def images(count, height, width, channels, rng):
    return dead_leaves(rng.spawn(count), (height, width), channels)


def blurred(line, share):
    return np.convolve(np.pad(line, 1, "edge"), [share, 1 - 2 * share, share], "valid")


# Dead leaves


@pytest.mark.parametrize("extents", [(50,), (24, 31), (64, 64), (3, 40), (1, 1), (9, 12, 10)], ids=str)
def test_leaves_are_what_painting_one_shape_after_the_other_gives(extents):
    number = leaves_module._number_of_shapes(extents)
    for painted, rng in zip(dead_leaves(generators(5), extents, 2), generators(5), strict=True):
        centre, radius, aspect, cosine, sine = leaves_module._draw(rng, number, extents)
        colour = leaves_module._colours(rng, number, 2)
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
        share = 0.15 * min(1.0, np.prod(extents) ** (1 / len(extents)) / 32)
        for axis in range(1, image.ndim):
            image = np.apply_along_axis(blurred, axis, image, share)
        noise = painted - image
        assert np.abs(noise[:, ~covered]).max(initial=0) < 1e-6
        assert np.abs(noise).max() < 0.6
        assert covered.sum() < 20 or 0.05 < noise[:, covered].std() < 0.15


@needs_shared
@pytest.mark.shared
def test_leaves_have_about_the_spectrum_of_photographs():
    window, frequency = np.hanning(32), np.hypot(*np.meshgrid(*[np.fft.fftfreq(32, 1 / 32)] * 2))

    def spectrum(images):
        centred = images - images.mean(axis=(2, 3), keepdims=True)
        power = (np.abs(np.fft.fft2(centred * np.outer(window, window))) ** 2).mean(axis=(0, 1))
        bands = [power[(low < frequency) & (frequency <= high)].mean() for low, high in ((1.5, 4.5), (4.5, 9), (9, 16))]
        return np.array(bands[1:]) / bands[0]

    with np.load(SHARED / "data" / "cifar10_calibration.npz") as archive:
        photographs = archive["images"][:500].astype(np.float64)
    found = spectrum(images(500, 32, 32, 3, np.random.default_rng(1)))
    assert np.abs(np.log(found / spectrum(photographs))).max() < np.log(1.5)  # 2.4 without the blur


@pytest.mark.parametrize("side", [8, 28, 64, 160], ids=str)
def test_leaves_cover_the_same_share_at_every_size(side, monkeypatch):
    drawn = images(60, side, side, 1, np.random.default_rng(0))
    assert abs(drawn.mean()) < 0.2
    assert 0.8 < drawn.std() < 1.2
    monkeypatch.setattr(leaves_module, "_BLUR", 0.0)
    sharp = images(60, side, side, 1, np.random.default_rng(0))
    flat = (np.diff(sharp, axis=3) == 0).mean()  # the background alone has no noise
    assert 0.08 < flat < 0.35


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

BATCHING = {
    "dynamic": ([IMAGE, spec("y", ("N", 4))], {"x": 0, "y": 0}, None),
    "unknown": ([spec("x", (None, 4)), spec("y", (None, 4))], {"x": 0, "y": 0}, None),
    "fixed at 4": ([spec("x", (4, 3, 8, 8)), spec("y", (4, 2))], {"x": 0, "y": 0}, 4),
    "fixed, no common extent": ([spec("x", (1, 3, 8, 8)), spec("y", (5,))], {}, 1),
    "fixed at 1 on two axes": ([spec("x", (1, 6)), spec("state", (2, 1, 4))], {"x": 0, "state": 1}, 1),
    "scalar beside": ([IMAGE, spec("ratio", ())], {"x": 0}, None),
    "scalar only": ([spec("ratio", ())], {}, 1),
    "fixed beside": ([IMAGE, spec("size", (2,), "int64")], {"x": 0}, None),
    "another name": ([IMAGE, spec("boxes", ("K", 4))], {"x": 0}, None),
    "name twice": ([spec("x", ("N", 4)), spec("pairs", ("N", "N"))], {"x": 0, "pairs": 0}, 2),
    "name on another axis": ([spec("state", (3, "N", 4)), spec("x", ("N", 4))], {"x": 0, "state": 1}, None),
    "a name that says so": ([spec("x", ("T", "batch", 4)), spec("n", ("batch",))], {"x": 1, "n": 0}, None),
    "no name, states beside": ([spec("x", (None, 4)), spec("state", (2, None, 8))], {"x": 0}, None),
    "name in a formula": ([spec("x", ("N", 4)), spec("past", ("N * 12", 4))], {"x": 0}, 2),
}


@pytest.mark.parametrize(("specs", "axes", "size"), BATCHING.values(), ids=BATCHING)
def test_batching_is_read_from_names_and_sizes(specs, axes, size):
    assert batching(specs, shapes_of(specs)) == Batching(axes, size)


@pytest.mark.parametrize(("specs", "axes", "size"), BATCHING.values(), ids=BATCHING)
def test_synthetic_feeds_have_the_shapes_of_a_run(specs, axes, size):
    shapes = shapes_of(specs)
    inputs = synthetic_inputs(specs, shapes, 5, 0)
    assert inputs.count == (5 if size is None else -(-5 // size) * size)
    sizes = []
    for feeds in inputs.batches(3):
        sizes.append(batch_size(feeds, axes) if axes else 1)
        for each in specs:
            at, expected = axes.get(each.name), shapes[each.name]
            assert feeds[each.name].shape == (expected if at is None else (*expected[:at], sizes[-1], *expected[at + 1 :]))
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
    assert held.first(1).description.endswith(f" of {inputs.description}")
    assert held.first(1).description.count(" of ") == 1
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


@pytest.mark.parametrize(("first_other", "ran"), [(None, 40), (39, 96), (60, 40), (0, 96)])
def test_as_many_again_are_made_only_where_the_classes_differ(first_other: int | None, ran: int) -> None:
    """Chosen evenly over the classes then; where all that are needed are put into one class, they are taken as they are."""
    labels, runs = np.zeros(96, np.int64), list[int]()
    if first_other is not None:
        labels[first_other : first_other + 10] = 2

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        runs.append(len(feeds["x"]))
        return {"scores": np.eye(3, dtype=np.float32)[labels[feeds["x"]]]}

    inputs = Inputs(96, "", None, np.arange(96), lambda indices: {"x": indices})
    chosen = balanced(inputs, SimpleNamespace(run=run), 40, 8)  # type: ignore[arg-type]
    assert (chosen.count, sum(runs)) == (40, ran)
    assert np.count_nonzero(labels[chosen.indices]) == (10 if ran == 96 else 0)
