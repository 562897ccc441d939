"""Sums over the samples of consumers, against dense samples made by loops in numpy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from dense_samples import CONVOLUTIONS, DENSE, FIRST, LAST, MIDDLE, dense
from running import analysed, built, run
from topologies import TOPOLOGIES

from onnxmerge.algorithms.moments import Covariance, MomentSums
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.layers import Layer
from onnxmerge.statistics import consumer_moments as sums_module
from onnxmerge.statistics import unfold as unfold_module
from onnxmerge.statistics.consumer_moments import ConsumerSamples, channel_covariance, moment_sums
from onnxmerge.statistics.unfold import thinning


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_change_no_byte_of_the_sums(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums_module, "BLOCK_SAMPLES", 16)
    x = np.random.default_rng(0).normal(size=(1, 150, 7)).astype(np.float32)
    (one,), (found,) = moment_sums(x, x), moment_sums(x, x, threads=threads)
    assert (one.xx.tobytes(), one.xy.tobytes(), one.count) == (found.xx.tobytes(), found.xy.tobytes(), found.count)


PARTS = ("count", "mean_x", "mean_y", "xx", "xy", "variance_y")


def assert_covariances(
    found: Covariance, x: np.ndarray, y: np.ndarray, parts: tuple[str, ...] = PARTS, scale: float = 1e-5
) -> None:
    expected = MomentSums.of(x, y).covariance()
    for part in parts:
        one, other = getattr(found, part), getattr(expected, part)
        np.testing.assert_allclose(one, other, rtol=scale, atol=scale * max(1.0, np.abs(other).max()))


@pytest.mark.parametrize("with_xx", [True, False])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_sums_are_sums(with_xx: bool, mean: float) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(mean, size=(3, 50, count)) for count in (4, 2))
    near_zero = [(each - np.float32(mean + 0.1)).astype(np.float32) for each in (x, y)]
    added = moment_sums(x[:, 20:], y[:, 20:], with_xx, before=moment_sums(x[:, :20], y[:, :20], with_xx))
    plain = [[part.covariance() for part in sums] for sums in (moment_sums(x, y, with_xx), added)]
    centred = [part.covariance(mean + 0.1, mean + 0.1) for part in moment_sums(*near_zero, with_xx)]
    for found in (*plain, centred):
        for group, covariance in enumerate(found):
            assert_covariances(covariance, x[group], y[group], PARTS if with_xx else (*PARTS[:3], *PARTS[4:]))


def test_float32_products_leave_the_smallest_eigenvalue_at_zero() -> None:
    values = np.maximum(np.random.default_rng(0).normal(size=(800, 600)), 0).astype(np.float32) + np.float32(9)
    x = np.concatenate([values, values[:, ::-1], values], 1)[np.newaxis]
    eigenvalues = np.linalg.eigvalsh(moment_sums(x - x.mean(1))[0].covariance().xx)
    assert abs(eigenvalues[0]) < 2e-5 * eigenvalues.mean()


@dataclass(frozen=True)
class Standing:
    """A consumer at which a walk stands, and all of its samples: x (g, samples, d) patches, y (g, samples, out)."""

    walk: LayerwiseRun
    layer: Layer
    x: np.ndarray
    y: np.ndarray
    targets: list[np.ndarray]


def standing(name: str, consumer: str, folder: Path, sizes: tuple[int, ...] = (4, 3), thin: tuple[int, ...] = ()) -> Standing:
    topology = TOPOLOGIES[name]
    model = built(topology)
    channels = analysed(model, folder).channels
    (at,) = [at for at, node in enumerate(model.graph.node) if node.name == consumer]
    (layer,) = [each for each in channels.layers if each.node.name == consumer]
    rng = np.random.default_rng(7)
    whole = {key: rng.normal(size=(sum(sizes), *shape[1:])).astype(topology.dtype) for key, shape in topology.feeds.items()}
    starts = np.cumsum([0, *sizes])
    pairs = list(itertools.pairwise(starts))
    batches = [{key: value[a:b] for key, value in whole.items()} for a, b in pairs]
    extra = tuple(tensor for tensor in (layer.source, layer.key) if tensor not in {value.name for value in model.graph.output})
    names = [*(value.name for value in model.graph.output), *extra]
    runs = [dict(zip(names, run(model, feeds, extra), strict=True)) for feeds in batches]
    inputs, targets = ([each[tensor] for each in runs] for tensor in (layer.source, layer.key))
    walk = LayerwiseRun(model, batches)
    walk.run_until(at)
    samples = [dense(name, consumer, layer, thin, *pair) for pair in zip(inputs, targets, strict=True)]
    x, y = (np.concatenate(side, 1) for side in zip(*samples, strict=True))
    return Standing(walk, layer, x, y, targets)


CONSUMERS = [pytest.param(*key, id="-".join(key)) for key in (*DENSE, *CONVOLUTIONS)]


def kept_of(layer: Layer) -> np.ndarray:
    """(g, in/g) about half of the places, equally many in each group."""
    rng = np.random.default_rng(3)
    count = layer.weight.shape[2]
    return np.stack([rng.permutation(count) < max(1, count // 2) for _ in range(layer.groups)])


def samples_at(at: Standing, kept: np.ndarray) -> ConsumerSamples:
    return ConsumerSamples(at.walk, at.layer, kept, at.targets[0].shape)


def covariances_at(at: Standing, kept: np.ndarray, targets: list[np.ndarray] | None = None) -> list[Covariance]:
    samples = samples_at(at, kept)
    return samples.covariances(lambda batch: samples.view(batch, (targets or at.targets)[batch]))


def places(standing: Standing, kept: np.ndarray, group: int) -> np.ndarray:
    """The patch columns of the kept places of a group: (position, place)."""
    inside, positions = standing.layer.weight.shape[2:]
    return (np.arange(positions)[:, None] * inside + np.flatnonzero(kept[group])).reshape(-1)


@pytest.mark.parametrize(("name", "consumer"), CONSUMERS)
def test_moments_of_a_consumer_are_those_of_its_dense_samples(name: str, consumer: str, tmp_path: Path) -> None:
    at = standing(name, consumer, tmp_path)
    weight = np.moveaxis(at.layer.weight, 2, 3).reshape(at.layer.groups, at.layer.weight.shape[1], -1)
    alpha = 0.5 if "alpha" in name else 1.0
    offset = at.y - alpha * at.x @ weight.swapaxes(1, 2)
    tolerance = 2e-2 if name == "float16" else 1e-4
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1], offset.shape), atol=tolerance)
    kept = kept_of(at.layer)
    found = covariances_at(at, kept)
    for group, moments in enumerate(found):
        x = at.x[group][:, places(at, kept, group)]
        assert_covariances(moments, x, at.y[group], scale=1e-3 if name == "float16" else 1e-5)


@pytest.mark.parametrize(("name", "consumer"), CONSUMERS)
def test_channel_moments_pool_all_places_of_a_channel(name: str, consumer: str, tmp_path: Path) -> None:
    at = standing(name, consumer, tmp_path)
    found = channel_covariance(at.walk, at.layer)
    source = [np.asarray(at.walk.tensor(number, at.layer.source), np.float64) for number in range(at.walk.batch_count)]
    axis = {LAST: -1, FIRST: 0, MIDDLE: 1}[DENSE[name, consumer][0]] if (name, consumer) in DENSE else 1
    rows = np.concatenate([np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in source])
    ids = at.layer.in_ids.reshape(-1)
    owners = at.layer.channel_of
    samples = [np.stack([rows[:, place] for place in np.flatnonzero(owners == owner)]) for owner in range(owners.max() + 1)]
    pooled_covariance = np.stack([each.reshape(-1) for each in samples], 1)
    assert all(len(set(ids[owners == owner])) == 1 for owner in range(owners.max() + 1))
    np.testing.assert_allclose(found.mean_x, pooled_covariance.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.xx, np.cov(pooled_covariance.T, bias=True), rtol=1e-4, atol=1e-6)


def test_places_of_a_channel_that_flatten_apart_are_pooled(tmp_path: Path) -> None:
    for name, columns in (
        ("flatten-spatial", np.arange(128).reshape(8, 16)),
        ("flatten-channel-minor", np.arange(128).reshape(16, 8).T),
    ):
        np.testing.assert_array_equal(standing(name, "out", tmp_path).layer.channel_positions, columns)


@pytest.mark.parametrize("means", [0.0, 1.0, 7.5, 30.0, 1e3], ids=lambda value: f"{value:g}-deviations")
def test_covariances_keep_their_digits_however_far_the_means_are_from_zero(means: float, tmp_path: Path) -> None:
    """Correlated inputs with one unit of deviation and a smallest eigenvalue of 2e-3, in float32 as a model gives them."""
    at = standing("gemm-relu-gemm-transb1", "fc_b", tmp_path)
    size, outputs = at.layer.in_ids.size, at.layer.out_ids.size
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.normal(size=(size, size)))[0] * np.geomspace(1.0, 2e-3, size) ** 0.5
    batches = [rng.normal(size=(4096, size)) @ mixing.T + means * mixing.std() * size**0.5 for _ in range(at.walk.batch_count)]
    targets = [batch[:, :outputs] + rng.normal(size=(4096, outputs)) for batch in batches]
    for number, batch in enumerate(batches):
        at.walk.tensors.put(number, at.layer.source, batch.astype(np.float32))
    x, y = (np.concatenate(side).astype(np.float32).astype(np.float64) for side in (batches, targets))
    exact = np.cov(x.T, y.T, bias=True)
    (found,) = covariances_at(at, np.ones((1, size), bool), [each.astype(np.float32) for each in targets])
    channels = channel_covariance(at.walk, at.layer)
    for covariance in (found, channels):
        np.testing.assert_allclose(covariance.xx, exact[:size, :size], atol=1e-6)
        np.testing.assert_allclose(np.linalg.eigvalsh(covariance.xx), np.linalg.eigvalsh(exact[:size, :size]), rtol=1e-3)
        np.testing.assert_allclose(covariance.mean_x, x.mean(0), rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(found.xy, exact[:size, size:], atol=1e-5)
    np.testing.assert_allclose(found.variance_y, y.var(0), rtol=1e-5)


def test_padding_counts_as_zeros(tmp_path: Path) -> None:
    """A padded convolution that reads channels far from zero: most of what varies in its patches is the padding."""
    name, consumer = "conv-relu-conv", "out"
    at = standing(name, consumer, tmp_path)
    for number in range(at.walk.batch_count):
        far = np.asarray(at.walk.tensor(number, at.layer.source)) + np.float32(100)
        at.walk.tensors.put(number, at.layer.source, far)
    batches = [np.asarray(at.walk.tensor(number, at.layer.source)) for number in range(at.walk.batch_count)]
    samples = [dense(name, consumer, at.layer, (), *pair) for pair in zip(batches, at.targets, strict=True)]
    x, y = (np.concatenate(side, 1)[0] for side in zip(*samples, strict=True))
    assert (x == 0).any()
    (found,) = covariances_at(at, np.ones((1, 8), bool))
    exact = np.cov(x.T, y.T, bias=True)
    np.testing.assert_allclose(found.xx, exact[: len(x.T), : len(x.T)], rtol=1e-4, atol=1e-4 * x.var())
    np.testing.assert_allclose(found.xy, exact[: len(x.T), len(x.T) :], rtol=1e-3, atol=1e-4 * x.std())


SHARDS = [("conv-relu-conv", "out"), ("grouped-conv", "grouped"), ("gemm-relu-gemm-transb1", "fc_b"), ("flatten-spatial", "out")]


@pytest.mark.parametrize(("name", "consumer"), SHARDS, ids=["conv", "grouped", "gemm", "flatten"])
def test_shards_add_up_to_the_whole(name: str, consumer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of other sizes, and batches in pieces, give the same moments."""
    whole = standing(name, consumer, tmp_path, (7,))
    kept = kept_of(whole.layer)
    expected = covariances_at(whole, kept)
    channels = channel_covariance(whole.walk, whole.layer)
    for budget in (1 << 28, 1):
        monkeypatch.setattr(sums_module, "BATCH_BYTES", budget)
        parts = standing(name, consumer, tmp_path, (1, 4, 2))
        found = covariances_at(parts, kept)
        for one, other in zip(found, expected, strict=True):
            for part in PARTS:
                np.testing.assert_allclose(getattr(one, part), getattr(other, part), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(channel_covariance(parts.walk, parts.layer).xx, channels.xx, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kept_bytes", [0, 1 << 29], ids=["samples-taken-anew", "samples-kept"])
@pytest.mark.parametrize(("name", "consumer"), SHARDS, ids=["conv", "grouped", "gemm", "flatten"])
def test_other_targets_need_no_sums_over_the_inputs(
    name: str, consumer: str, kept_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums_module, "CACHE_BYTES", kept_bytes)
    at = standing(name, consumer, tmp_path)
    kept = kept_of(at.layer)
    samples = samples_at(at, kept)
    samples.covariances(lambda batch: samples.view(batch, at.targets[batch]))
    again = samples.covariances(lambda batch: samples.view(batch, 2 * at.targets[batch] + 1), with_xx=False)
    for group, found in enumerate(again):
        assert_covariances(found, at.x[group][:, places(at, kept, group)], 2 * at.y[group] + 1, (*PARTS[:3], *PARTS[4:]))


def test_many_samples_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upper convolution of a 16 x 16 map."""
    monkeypatch.setattr(unfold_module, "enough_samples", lambda unknowns: max(60, unknowns))
    monkeypatch.setattr(unfold_module, "drawn_positions", lambda steps, batch: tuple(slice(0, None, step) for step in steps))
    monkeypatch.setattr(sums_module, "drawn_positions", unfold_module.drawn_positions)
    monkeypatch.setattr(sums_module, "thinning", lambda *positions_and_batches: thinning(*positions_and_batches[:3], 9))
    at = standing("resize-scales", "out", tmp_path, thin=(3, 3))
    kept = kept_of(at.layer)
    (found,) = covariances_at(at, kept)
    assert found.count == 7 * 6 * 6
    assert_covariances(found, at.x[0][:, places(at, kept, 0)], at.y[0])
