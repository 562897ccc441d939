"""What all tests share: where the project and the real models beside it are."""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

# Before numpy is loaded: tests run in parallel, and threads that wait for each other's processors spend several times as much.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# In the background of a shell Ctrl-C is ignored, and the processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
from stored_models import inline_file, outside_file

from onnxmerge.cli import app
from onnxmerge.data import selection
from onnxmerge.evaluation import benchmark
from onnxmerge.execution.static_cost import StaticCost
from onnxmerge.pipeline import size_search
from onnxmerge.pruning import kept_counts
from onnxmerge.report import progress

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


EFFORTS = {
    "evaluation.benchmark": "DEFAULT_EFFORT",
    "pipeline.candidate_builder": "TRIAL_EFFORT",
    "pipeline.compress": "CONFIRMING_EFFORT",
    "pipeline.latency_search": "CONFIRMING_EFFORT",
}
"""Where models are timed, by the module that reads the effort."""
TRACED_CASES = 3
"""Cases of one test that are looked at for coverage; tracing costs two fifths, and hundreds of cases run the same lines."""
ALL_TRACED = {"test_attention.py", "test_channels.py", "test_hostile_files.py", "test_random_graphs.py"}
"""Where every case has operators, or ends, of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Coverage counts the first cases of a test; tests marked `shared` need the real models and images beside the project."""
    cases = Counter[str]()
    for item in items:
        cases[name := item.nodeid.partition("[")[0]] += 1
        if cases[name] > TRACED_CASES and item.path.name not in ALL_TRACED:
            item.add_marker("no_cover")
    if (SHARED / "models").is_dir() and (SHARED / "data").is_dir():
        return
    skip = pytest.mark.skip(reason=f"needs the real models and images in {SHARED}, which is not there")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _to_the_channel() -> Iterator[None]:
    """Counts are met to the channel: the small networks of tests would keep most of theirs in multiples of 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_counts, "HARDWARE_MULTIPLE", 1)
        yield


@pytest.fixture(autouse=True, scope="session")
def _quick() -> Iterator[None]:
    """Where a test says nothing else, dense networks are pruned on few inputs, and models are timed for a tenth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "DENSE_CALIBRATION_INPUTS", 256)
        for module, name in EFFORTS.items():
            patch.setattr(f"onnxmerge.{module}.{name}", replace(getattr(benchmark, name), seconds=0.1))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_lines_of_progress() -> Iterator[None]:
    """On a busy machine short work takes long: stderr holds errors alone all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "LOG_DELAY_SECONDS", 600.0)
        yield


@pytest.fixture
def multiples_of_8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts as outside of tests."""
    for module in (kept_counts, size_search):
        monkeypatch.setattr(module, "HARDWARE_MULTIPLE", 8)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: run("inspect", path) -> (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ending:
            app.main([str(argument) for argument in arguments])
        return ending.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """The project's own trained models."""
    return ROOT / "models"


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The real models and images beside the project; only for tests marked `shared`."""
    return SHARED


@pytest.fixture(scope="module")
def harmless_models() -> Iterator[None]:
    """No model is tried in a process of its own first: that it comes to the same is held elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StaticCost, "is_small", lambda *_: True)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers of Dask on this machine."""
    distributed = pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    settings = {"n_workers": 2, "processes": True, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**settings, silence_logs=50) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model and inputs in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "models" / "digits-mlp.onnx", "in.onnx")
    np.save("x.npy", np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype(np.float32))
    return tmp_path


@pytest.fixture
def inline(tmp_path: Path) -> Path:
    """A model with its weights inside."""
    return inline_file(tmp_path)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A model with its weights in another file."""
    return outside_file(tmp_path)
