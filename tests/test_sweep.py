"""Sweeps: what is sent, where files lie, what is refused, and what a failing target leaves."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxmerge
from onnxmerge.errors import InputError, OptionError, VerificationError
from onnxmerge.execution.providers import provider_of
from onnxmerge.execution.threads import default_threads
from onnxmerge.options import RuntimeOptions
from onnxmerge.parallel import dask as clusters
from onnxmerge.parallel.tasks import run_tasks
from onnxmerge.pipeline import sweep_point as points
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.sweep_point import PointOutcome, compress_point
from onnxmerge.pipeline.sweep_targets import options_by_target

MLP = Path(__file__).resolve().parents[1] / "models" / "digits-mlp.onnx"
SWEEP = import_module("onnxmerge.pipeline.sweep")
QUICK = {"samples": 32, "threads": 1, "bench": False, "round_to": 1}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# what is sent, and where files lie


def test_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = onnxmerge.sweep(MLP, "ratio=0.5", method="prune", samples=32, threads=1, progress=note(told := []))
    assert list(tmp_path.iterdir()) == []
    assert (result.points[0].output, result.points[0].latency.batch_size) == ("", 1)
    assert told[-1] == ("timing", 1.0)
    onnxmerge.sweep(MLP, "ratio=0.5", method="prune", progress=note(untimed := []), **QUICK)
    assert not [stage for stage, _ in untimed if "timing" in stage]


def note(told):
    return lambda stage, share: told.append((stage, share))


def test_weights_in_another_file_are_read_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.load(MLP), "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    outside = onnxmerge.sweep("model.onnx", "ratio=0.5", folder="out", jobs=1, **QUICK)
    inside = onnxmerge.sweep(MLP, "ratio=0.5", **QUICK)
    assert outside.points[0].output == "out/model-ratio-0.5.onnx"
    assert outside.points[0].after.file_bytes == Path(outside.points[0].output).stat().st_size
    assert replace(outside.points[0], output="", after=None) == replace(inside.points[0], after=None)


def test_a_target_that_fails_is_a_point(tmp_path):
    options = {"min_fidelity": 0.9, "method": "prune", **QUICK}
    result = onnxmerge.sweep(MLP, ["ratio=0.05", ("ratio", 0.9)], folder=tmp_path, **options)
    good, bad = result.points
    assert (bad.after, bad.fidelity, bad.kept_by_group, bad.output) == (None, None, {}, "")
    assert "is below 0.9" in bad.failure
    assert good.failure == ""
    assert list(files_of(tmp_path)) == ["digits-mlp-ratio-0.05.onnx"]


def test_an_error_names_the_users_file(monkeypatch):
    def fail(model, output, options, **_):
        raise VerificationError(f"{model}: no")

    monkeypatch.setattr(points, "compress_file", fail)
    for executor in (None, ThreadPoolExecutor(1)):
        assert onnxmerge.sweep(MLP, "ratio=0.5", executor=executor, **QUICK).points[0].failure == f"{MLP}: no"


def test_targets_that_need_a_clock_stay_here(monkeypatch, tmp_path):
    given = []

    def noted(call, tasks, *others):
        given.extend(tasks)
        run_tasks(call, tasks, *others)

    monkeypatch.setattr(SWEEP, "run_tasks", noted)
    monkeypatch.setattr(SWEEP, "compress_point", lambda task, shared: PointOutcome(None, failure="none"))
    np.save(tmp_path / "inputs.npy", np.zeros((40, 1, 8, 8), np.float32))
    shutil.copy(MLP, tmp_path)
    monkeypatch.chdir(tmp_path)
    result = onnxmerge.sweep(MLP.name, "latency=0.7,macs=0.5", calibration="inputs.npy")
    (sent,) = (task.options for task in given)
    assert (sent.runtime.threads, sent.bench) == (default_threads(), False)
    assert sent.runtime.provider == provider_of(RuntimeOptions()).option
    assert (sent.inputs.calibration, given[0].model) == (tmp_path / "inputs.npy", tmp_path / MLP.name)
    assert [task.options.pruning.target for task in given] == [("macs", 0.5)]
    assert [point.target for point in result.points] == ["latency=0.7", "macs=0.5"]
    onnxmerge.sweep(MLP, "macs=0.25", **QUICK | {"round_to": "measured"})
    assert len(given) == 1


# what is refused

BAD = {
    "kind": (("--targets", "flops=0.5"), "--targets must be a list such as"),
    "no number": (("--targets", "macs=half"), "not 'macs=half'"),
    "no kind": (("--targets", "0.5"), "not '0.5'"),
    "empty": (("--targets", ""), "--targets must be a list"),
    "share": (("--targets", "macs=0.5,1.5"), "--target must be"),
    "ratio": (("--targets", "ratio=1"), "--ratio must be"),
    "twice": (("--targets", "macs=0.5,0.50"), "macs=0.5 twice"),
    "jobs": (("--jobs", "0"), "--jobs must be at least 1"),
    "group": (("--include", "no-such-*"), "no-such-*"),
    "calibration": (("--calibration", "no-such.npz"), "no-such.npz does not exist"),
    "folder in nothing": (("--out", "no/such"), "does not exist; create it first"),
    "folder is a file": (("--out", "file.onnx"), "is a file; name another one"),
    "model in the way": (("--out", ".", "--targets", "ratio=0.5"), "would overwrite the model"),
    "report": (("--report", "r.txt"), "must be named .html, .md or .json"),
    "no scheduler": (("--dask", "tcp://127.0.0.1:9"), "no Dask scheduler answers at tcp://127.0.0.1:9"),
    "no port": (("--dask", "nowhere"), "'nowhere' is no address of a Dask scheduler such as tcp://host:8786: missing port"),
    "no address": (("--dask", ""), "'' is no address"),
    "no such scheme": (("--dask", "foo://host:1"), "unknown address scheme 'foo'"),
}


@pytest.mark.parametrize("target", [("macs", "0.5"), ("macs", None), ("flops", 0.5)], ids=str)
def test_bad_targets_from_python(target):
    with pytest.raises(OptionError, match="`targets` must be a list such as"):
        onnxmerge.sweep(MLP, [target], **QUICK)


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_options_are_one_line_before_any_work(run, tmp_path, monkeypatch, arguments, message):
    if "--dask" in arguments:
        pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    monkeypatch.setattr(clusters, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(SWEEP, "compress_point", None)
    monkeypatch.chdir(tmp_path)
    Path("file.onnx").touch()
    shutil.copy(MLP, "a.onnx")
    Path("a-ratio-0.5.onnx").hardlink_to("a.onnx")
    code, out, err = run("sweep", "a.onnx", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-ratio-0.5.onnx", "a.onnx", "file.onnx"]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"ratio": 0.5}, OptionError, "`ratio` and `targets` both say"),
        ({"plan": {"a": 1}}, OptionError, "`plan` and `targets` both say"),
        ({"minimize": "macs"}, OptionError, "`minimize` is for fidelities and changed decisions"),
        ({"verify": False}, TypeError, "unexpected keyword argument 'verify'"),
    ],
    ids=["ratio", "plan", "minimize", "verify"],
)
def test_options_that_speak_against_a_sweep(options, kind, message):
    with pytest.raises(kind, match=message):
        onnxmerge.sweep(MLP, **options)


def test_points_of_changed_decisions(tmp_path):
    pixels = np.load(MLP.parent / "digits.npz")["calibration"]
    images = ((pixels / 255 - 0.3054) / 0.3758).astype(np.float32).reshape(-1, 1, 8, 8)
    found = onnxmerge.sweep(MLP, "max-changed-decisions=0,5%", calibration=images, bench=False, threads=1)
    none, some = found.points
    assert [none.target, some.target] == ["max_changed_decisions=0", "max_changed_decisions=0.05"]
    assert none.changed_decisions == 0.0 < some.changed_decisions <= 0.05
    assert found.before.parameters >= none.after.parameters > some.after.parameters  # channels of no use may go


def test_the_inputs_are_not_those_that_a_whole_model_is_checked_on():
    inputs = np.random.default_rng(0).normal(size=(48, 1, 8, 8)).astype(np.float32)
    found = onnxmerge.sweep(MLP, "ratio=0,0.5", method="prune", calibration=inputs, bench=False)
    assert found.input_description == "48 calibration inputs from arrays in memory"


def test_minimize_is_that_of_fidelities():
    options = options_by_target(CompressOptions.from_keywords({"minimize": "macs"}), "fidelity=0.9,macs=0.5")
    assert [each.pruning.minimize for each in options.values()] == ["macs", None]


def test_two_places_to_work_are_refused():
    with ThreadPoolExecutor(1) as pool, pytest.raises(OptionError, match="both say where"):
        onnxmerge.sweep(MLP, executor=pool, jobs=2)


def test_inputs_that_do_not_fit_are_no_point(tmp_path):
    np.save(tmp_path / "c.npy", np.zeros((20, 3), np.float32))
    with pytest.raises(InputError, match=r"c\.npy"):
        onnxmerge.sweep(MLP, "ratio=0.5,0.6", calibration=tmp_path / "c.npy", **QUICK)


def test_missing_extra_is_said(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, out, err = run("sweep", MLP, "--dask", "tcp://127.0.0.1:9")
    assert (code, out) == (2, "")
    assert err == "onnxmerge: --dask needs the package distributed: pip install 'onnxmerge[dask]'\n"


# the command


def test_command(run, tmp_path, cluster):
    arguments = (
        "sweep",
        MLP,
        "--targets",
        "ratio=0.5,params=0.001",
        "--samples",
        "32",
        "--threads",
        "1",
        "--out",
        tmp_path / "out",
        *(word for kind in ("json", "html", "md") for word in ("--report", tmp_path / f"r.{kind}")),
    )
    code, out, err = run(*arguments, "--dask", cluster.scheduler_address)
    assert (code, err) == (0, "")
    assert "ratio=0.5" in out
    assert "x [" in out
    assert "warning: params=0.001: params=0.001 cannot be reached" in out
    made = [tmp_path / "out" / f"digits-mlp-{target}.onnx" for target in ("ratio-0.5", "params-0.001")]
    assert all(f"wrote {path}" in out for path in made)
    digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in (MLP, *made)}
    assert json.loads((tmp_path / "r.json").read_text())["sha256"] == digests
    for page in ("r.html", "r.md"):
        assert all(digest in (tmp_path / page).read_text() for digest in digests.values())


def test_no_model_at_all_is_exit_code_1(run, monkeypatch):
    monkeypatch.setattr(SWEEP, "compress_point", lambda task, shared: PointOutcome(None, failure="too small: use `ratio`"))
    code, out, err = run("sweep", MLP, "--targets", "ratio=0.5", "--no-bench")
    assert code == 1
    assert "no model: too small: use --ratio" in out
    assert out.endswith("\nFailed: no target gave a model.\n")
    assert err == "onnxmerge: verification failed: no target gave a model; ratio=0.5: too small: use --ratio\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_interruption_ends_the_processes(tmp_path, number, code):
    command = [sys.executable, "-m", "onnxmerge", "sweep", str(MLP), "--jobs", "2", "--out", "out", "-q"]
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(MLP.parents[1]), "TMPDIR": str(tmp_path / "temporary")}
    settings = {"env": environment, "cwd": tmp_path, "text": True}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)
    while len(list((tmp_path / "temporary").glob("*/*/after"))) < 2:  # both workers are at work
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(number)
    out, err = running.communicate(timeout=20)
    assert (running.returncode, out, err) == (code, "", "onnxmerge: interrupted\n")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "temporary") == {}
    assert os.listdir(tmp_path / "temporary") == []


def test_models_made_before_an_interruption_stay(tmp_path, monkeypatch):
    def interrupted(task, shared):
        if task.options.pruning.ratio == 0.3:
            raise KeyboardInterrupt
        return compress_point(task)

    monkeypatch.setattr(SWEEP, "compress_point", interrupted)
    with pytest.raises(KeyboardInterrupt):
        onnxmerge.sweep(MLP, "ratio=0.5,0.3,0.2", method="prune", folder=tmp_path / "out", **QUICK)
    assert list(files_of(tmp_path / "out")) == ["digits-mlp-ratio-0.5.onnx"]


def test_points_share_nothing_that_depends_on_the_size_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    make = SWEEP.compress_point.__globals__["compress_file"]

    def noted(*args, shared, **settings):
        result = make(*args, shared=shared, **settings)
        taken.extend(measured.options.pruning.ratio for measured in shared._measured.values())
        return result

    monkeypatch.setitem(SWEEP.compress_point.__globals__, "compress_file", noted)
    onnxmerge.sweep(MLP, targets="ratio=0.5,macs=0.5", bench=False, samples=24, threads=1)
    assert set(taken) == {None}
