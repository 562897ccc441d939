"""Statistics of a large calibration set: shards add up to the whole, on any executor, to the same bytes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from onnxmerge import compress
from onnxmerge.algorithms.moments import MomentSums, pooled_covariance
from onnxmerge.data.selection import inputs_for
from onnxmerge.execution.sessions import open_session
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import InputOptions, RuntimeOptions
from onnxmerge.parallel.tasks import process_pool
from onnxmerge.pipeline import model_measurements as measurements_module
from onnxmerge.pipeline.progress import overall
from onnxmerge.pruning.layer_statistics import layer_statistics_of
from onnxmerge.statistics import sharding as shards_module
from onnxmerge.statistics.sharding import sharded_covariances

MODEL = Path(__file__).resolve().parents[1] / "models" / "digits-mlp.onnx"
QUIET = overall(None, [])


@pytest.fixture
def calibration(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(150, 1, 8, 8)) * np.linspace(0.2, 2.0, 150).reshape(-1, 1, 1, 1) + rng.normal(size=(1, 8, 8))
    np.save(tmp_path / "inputs.npy", images.astype(np.float32))
    return tmp_path / "inputs.npy"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch) -> None:
    for module in (shards_module, measurements_module):
        monkeypatch.setattr(module, "SHARD_INPUTS", 64)


def test_parts_pool_to_the_whole():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 5)) @ rng.normal(size=(5, 5)) + 3.0, rng.normal(size=(90, 2)) - 7.0
    bounds = [(0, 17), (17, 60), (60, 90)]
    found = pooled_covariance([b - a for a, b in bounds], [MomentSums.of(x[a:b], y[a:b]).covariance() for a, b in bounds])
    whole = MomentSums.of(x, y).covariance()
    for name in ("mean_x", "mean_y", "xx", "xy", "variance_y"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-9, atol=1e-12)


def test_shards_give_the_moments_of_the_whole(calibration):
    options = InputOptions(calibration=calibration)
    analysed = analyse_model(MODEL)
    inputs = inputs_for(open_session(MODEL, optimise=True), analysed.shapes, options)
    inputs = inputs.subset(np.arange(7, 140), "some")  # as after a part was held back
    whole = layer_statistics_of(analysed, inputs, None, QUIET).reference.covariances
    found = sharded_covariances(MODEL, options, RuntimeOptions(), inputs, QUIET, None)
    assert found.keys() == whole.keys()
    for key, moments in whole.items():
        np.testing.assert_allclose(found[key].xx, moments.xx, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[key].mean_x, moments.mean_x, rtol=1e-4, atol=1e-5)


def test_the_bytes_do_not_depend_on_the_executor(calibration, tmp_path):
    made = []
    options = InputOptions(calibration=calibration)
    for name, executor in (("here", None), ("threads", ThreadPoolExecutor(2))):
        compress(MODEL, tmp_path / name, calibration=calibration, ratio=0.5, verify=False, threads=1, executor=executor)
        made.append((tmp_path / name).read_bytes())
    with process_pool(1) as workers:
        inputs = inputs_for(open_session(MODEL, optimise=True), analyse_model(MODEL).shapes, options)
        apart, here = (
            sharded_covariances(MODEL, options, RuntimeOptions(threads=1), inputs, QUIET, executor)
            for executor in (workers, None)
        )
    assert made[0] == made[1]
    assert all((apart[key].xx == moments.xx).all() for key, moments in here.items())


def test_what_a_worker_has_no_memory_for_is_pruned_by_its_weights(calibration, tmp_path, monkeypatch):
    """With the reason: no statistics of one consumer come back."""
    take = shards_module.covariances_of

    def without_one(shard):
        moments = take(shard)
        moments.pop(next(iter(moments)))
        return moments

    monkeypatch.setattr(shards_module, "covariances_of", without_one)
    result = compress(MODEL, tmp_path / "o.onnx", ratio=0.5, calibration=calibration, threads=1, verify=False)
    assert sum("another machine had too little memory" in group.note for group in result.groups) == 1
