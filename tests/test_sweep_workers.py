"""Sweeps: the same bytes wherever the points are made, whoever is killed."""

import json
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path

import onnx
import pytest
import threadpoolctl
from test_sweep import MLP, QUICK, SWEEP, files_of
from workers import FLAG, Killing, compress_killed_once

import onnxmerge
from onnxmerge.errors import ModelError
from onnxmerge.execution.threads import default_threads
from onnxmerge.parallel import dask as clusters
from onnxmerge.pipeline import sweep_point as points
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.report.documents import as_json

TARGETS = "macs=0.5,0.25,fidelity=0.8"


def made(place: Path, **settings) -> tuple[str, dict[str, bytes]]:
    """The JSON of a sweep, the folder's name out of it, and the models."""
    result = onnxmerge.sweep(MLP, TARGETS, folder=place, **QUICK, **settings)
    return json.dumps(as_json(result)).replace(str(place), "FOLDER"), files_of(place)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[str, dict[str, bytes]]:
    """What every other way must give: one process, one point after the other."""
    return made(tmp_path_factory.mktemp("alone"))


def test_points_come_in_order_and_are_what_compress_gives(alone, tmp_path):
    text, files = alone
    found = json.loads(text)
    assert [point["target"] for point in found["points"]] == ["macs=0.5", "macs=0.25", "fidelity=0.8"]
    assert [point["output"] for point in found["points"]] == [f"FOLDER/{name}" for name in sorted(files, key=order)]
    left = [point["after"]["macs"] / found["before"]["macs"] for point in found["points"]]
    assert left[:2] == pytest.approx([0.5, 0.25], abs=0.01)
    assert found["points"][2]["fidelity"] >= 0.8
    assert found["points"][1]["fidelity"] < found["points"][0]["fidelity"] < 1
    assert "synthetic" in found["input_description"]
    for point in found["points"]:
        content = files[Path(point["output"]).name]
        assert len(content) == point["after"]["file_bytes"]
        assert onnx.load_model_from_string(content).graph.output[0].name == "y"
    result = onnxmerge.compress(MLP, tmp_path / "o.onnx", target="macs=0.5", **QUICK)
    assert (tmp_path / "o.onnx").read_bytes() == files["digits-mlp-macs-0.5.onnx"]
    assert {group.name: group.kept for group in result.groups} == found["points"][0]["kept_by_group"]


def order(name: str) -> int:
    return ["macs-0.5", "macs-0.25", "fidelity-0.8"].index(name.removeprefix("digits-mlp-").removesuffix(".onnx"))


def test_a_cluster_gives_the_same(alone, tmp_path, cluster, monkeypatch):
    """Workers of Dask set the threads of numpy's library to one; a relative path means nothing to them."""
    monkeypatch.chdir(MLP.parent)
    with clusters.executor_at(cluster.scheduler_address) as executor:
        result = onnxmerge.sweep(MLP.name, TARGETS, folder=tmp_path, executor=executor, **QUICK)
    assert json.dumps(as_json(result)).replace(str(tmp_path), "FOLDER").replace(MLP.name, str(MLP), 1) == alone[0]
    assert files_of(tmp_path) == alone[1]


def test_a_worker_of_a_cluster_is_killed(alone, tmp_path, cluster):
    with clusters.executor_at(cluster.scheduler_address) as executor:
        (tmp_path / "models").mkdir()
        assert made(tmp_path / "models", executor=Killing(executor, tmp_path / "flag")) == alone
    assert (tmp_path / "flag").exists()


def test_a_large_model_travels_in_silence(cluster):
    with warnings.catch_warnings(), clusters.executor_at(cluster.scheduler_address) as executor:
        warnings.simplefilter("error")
        assert executor.submit(len, bytes(20_000_000)).result(timeout=20) == 20_000_000


def test_processes_give_the_same_where_one_is_killed_too(alone, tmp_path, monkeypatch):
    monkeypatch.setenv(FLAG, str(tmp_path / "flag"))
    monkeypatch.setattr(SWEEP, "compress_point", compress_killed_once)
    assert made(tmp_path / "models", jobs=2) == alone
    assert not [child for child in active_children() if "Dask" not in child.name]  # a cluster starts its workers again by itself
    assert (tmp_path / "flag").exists()


def test_a_process_of_a_users_pool_is_killed(alone, tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert made(tmp_path / "models", executor=Killing(pool, tmp_path / "flag")) == alone
    assert (tmp_path / "flag").exists()


def test_threads_of_this_process_are_an_executor_too(alone, tmp_path):
    before = [library["num_threads"] for library in threadpoolctl.threadpool_info()]
    with ThreadPoolExecutor(2) as pool:
        assert made(tmp_path, executor=pool) == alone
    assert [library["num_threads"] for library in threadpoolctl.threadpool_info()] == before


def test_linear_algebra_runs_on_one_thread_whatever_the_options(monkeypatch, tmp_path):
    """Numpy's decompositions differ in the last bits with the number of its threads."""

    def search(builder):
        raise ModelError(str([found["num_threads"] for found in threadpoolctl.threadpool_info() if found["user_api"] == "blas"]))

    monkeypatch.setattr(sys.modules["onnxmerge.pipeline.compress"], "search", search)
    for threads in (1, 2, 3):
        task = points.PointTask(
            MLP, MLP.read_bytes(), MLP, CompressOptions.from_keywords({"samples": 32, "threads": threads}, bench=False), tmp_path
        )
        assert points.compress_point(task).failure == "[1]"


@pytest.mark.parametrize(
    ("asked", "threads"),
    [("1", 1), ("2", 2), ("2,1", 2), ("9" * 5000, 3), ("0", 3), ("x", 3), ("", 3)],
    ids=lambda each: str(each)[:5],
)
def test_threads_of_the_environment_are_at_most_the_processors(asked, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert default_threads() == threads
