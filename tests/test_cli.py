"""The command line's contract: exit codes, one clear line, JSON and nothing else on stdout, nothing half written."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxmerge
from onnxmerge.errors import ModelError
from onnxmerge.execution.providers import resolve_provider
from onnxmerge.report.documents import KINDS, REFUSAL_FIELDS, as_json
from onnxmerge.results import (
    Benchmark,
    Compression,
    Fidelity,
    GroupResult,
    Inspection,
    LatencyComparison,
    LatencySummary,
    OutputFidelity,
    Size,
    Verification,
)

MODELS = Path(__file__).resolve().parents[1] / "models"
MLP, RESNET = MODELS / "digits-mlp.onnx", MODELS / "digits-resnet-bn.onnx"
PRUNE = ("--method", "prune", "--ratio", "0.25")
ANSI = re.compile(r"\x1b")


@pytest.fixture(scope="module")
def smaller(tmp_path_factory) -> Path:
    """The MLP with a quarter of its neurons gone."""
    path = tmp_path_factory.mktemp("smaller") / "mlp.onnx"
    onnxmerge.compress(MLP, path, method="prune", ratio=0.25, verify=False)
    return path


def subprocess_run(*arguments: object, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "onnxmerge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **settings)


def check_schema(value: dict, kind: type) -> None:
    """The JSON object has the dataclass's fields, and so have the objects within."""
    assert list(value) == [field.name for field in dataclasses.fields(kind)]


def check_document(value: dict, kind: type) -> None:
    """The same, behind the name of its schema and what gives the result again."""
    about = ["schema", "verdict", "command", "made_at", "versions", "sha256", "defaults"]
    names = [field.name for field in dataclasses.fields(kind)]
    assert list(value) == [*about, *(name for name in names if name not in about)]
    assert value["schema"] == KINDS[kind].schema
    assert value["command"].startswith("onnxmerge ")


def test_inspect_shows_the_groups_that_the_options_leave(run):
    found = json.loads(run("inspect", RESNET, "--scope", "chains", "--exclude", "/4/*", "--json")[1])
    whole = json.loads(run("inspect", RESNET, "--json")[1])
    chains = [group["name"] for group in whole["groups"] if len(group["producers"]) == 1]
    assert [group["name"] for group in found["groups"]] == [name for name in chains if not name.startswith("/4/")]
    assert found["refusals"] == whole["refusals"]


def check_one_line(text: str) -> None:
    assert text.startswith("onnxmerge: ")
    assert text.count("\n") == 1
    assert "Traceback" not in text


# what each command does


def test_inspect(run):
    code, out, err = run("inspect", RESNET)
    assert (code, err) == (0, "")
    assert "9 channel groups can be compressed" in out
    assert "written to the graph output y" in out


def test_compress_writes_a_smaller_model_that_runs(run, tmp_path):
    code, out, err = run("compress", MLP, tmp_path / "out.onnx", *PRUNE)
    assert (code, err) == (0, "")
    assert "50.8 k" in out
    assert f"wrote {tmp_path}/out.onnx" in out
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    assert (tmp_path / "out.onnx").stat().st_size < MLP.stat().st_size
    assert os.listdir(tmp_path) == ["out.onnx"]


def test_compress_reads_calibration_and_pixel_options(run, tmp_path):
    with np.load(MODELS / "digits.npz") as archive:
        np.save(tmp_path / "calibration.npy", archive["calibration"])
    pixels = ("--input-range", "0", "1", "--mean", "0.3054", "--std", "0.3758")
    code, out, _ = run("compress", MLP, tmp_path / "o.onnx", *PRUNE, "--calibration", tmp_path / "calibration.npy", *pixels)
    assert code == 0
    assert "calibration.npy" in out


def test_same_seed_same_bytes(run, tmp_path):
    for name in ("a", "b"):
        assert run("compress", MLP, tmp_path / name, "--ratio", "0.5", "--no-verify", "--seed", "3", "--samples", "64")[0] == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_verify_passes_on_the_same_model(run):
    code, out, err = run("verify", MLP, MLP)
    assert (code, err) == (0, "")
    assert "identical" in out


def test_bench_of_two_models(run, smaller):
    code, out, err = run("bench", MLP, smaller, "--batch", "4", "--threads", "1", "--provider", "cpu")
    assert (code, err) == (0, "")
    assert "batch 4, CPUExecutionProvider, 1 thread" in out


# machines read it


def test_json_of_inspect(run):
    code, out, err = run("inspect", MLP, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    check_document(found, Inspection)
    check_schema(found["size"], Size)
    check_schema(found["groups"][0], GroupResult)
    assert list(found["refusals"][0]) == list(REFUSAL_FIELDS)


def test_json_of_compress(run, tmp_path):
    code, out, err = run("compress", MLP, tmp_path / "o.onnx", *PRUNE, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    check_document(found, Compression)
    check_schema(found["after"], Size)
    check_schema(found["fidelity"], Fidelity)
    check_schema(found["fidelity"]["outputs"][0], OutputFidelity)
    check_schema(found["latency"], LatencyComparison)
    check_schema(found["latency"]["candidate"], LatencySummary)
    assert found["after"]["file_bytes"] == (tmp_path / "o.onnx").stat().st_size


def test_json_of_verify_also_below_the_threshold(run, smaller):
    code, out, err = run("verify", MLP, smaller, "--min-fidelity", "1", "--json")
    assert code == 1
    check_document(json.loads(out), Verification)
    check_one_line(err)


def test_json_of_bench(run, smaller):
    code, out, _ = run("bench", MLP, smaller, "--json")
    assert code == 0
    check_document(json.loads(out), Benchmark)


def test_json_and_python_give_the_same(run):
    _, out, _ = run("inspect", MLP, "--json")
    found = json.loads(out)
    assert found["command"] == f"onnxmerge inspect {MLP} --json"
    expected = as_json(onnxmerge.inspect(str(MLP)))
    assert {name: found[name] for name in expected} == expected


# exit codes and their one line


def test_failed_verification_writes_nothing(run, tmp_path):
    code, out, err = run("compress", MLP, tmp_path / "o.onnx", "--method", "prune", "--ratio", "0.9", "--min-cosine", "0.999")
    assert (code, "\nFailed: output 'y': mean cosine " in out, "wrote" in out) == (1, True, False)
    check_one_line(err)
    assert "mean cosine" in err
    assert "--no-verify" in err
    assert os.listdir(tmp_path) == []


def test_every_threshold_that_is_missed_is_named(run, tmp_path):
    missed = {"--max-macs": "0.01", "--min-cosine": "0.999", "--max-relative-l2": "0.001", "--min-speedup": "900"}
    options = [word for pair in missed.items() for word in pair]
    code, _, err = run("compress", MLP, tmp_path / "o.onnx", "--method", "prune", "--ratio", "0.9", *options)
    assert code == 1
    assert [word for word in ("MACs", "mean cosine", "relative L2", "below 900x") if word not in err] == []


def test_failed_verification_keeps_what_was_there(run, tmp_path):
    target = tmp_path / "o.onnx"
    target.write_bytes(b"precious")
    assert run("compress", MLP, target, "--method", "prune", "--ratio", "0.9", "--min-fidelity", "0.9999")[0] == 1
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--min-cosine", "0.99999"), 1),
        (("--min-fidelity", "0.99999"), 1),
        (("--max-relative-l2", "0.00001"), 1),
        (("--min-top1-agreement", "1"), 1),
        (("--min-cosine", "-1"), 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_thresholds_of_verify(run, smaller, options, code):
    found, out, err = run("verify", MLP, smaller, *options)
    assert found == code
    assert "fidelity" in out
    assert (err == "") is (code == 0)


BAD = {
    "no such command": (("squash",), "No such command"),
    "no such option": (("inspect", MLP, "--fast"), "No such option"),
    "argument missing": (("compress", MLP), "Missing argument 'OUTPUT'"),
    "argument too many": (("inspect", MLP, MLP), "unexpected extra argument"),
    "no such file": (("inspect", "no-such.onnx"), "no-such.onnx"),
    "not a model": (("inspect", MODELS / "README.md"), "README.md"),
    "folder as model": (("inspect", MODELS), "models"),
    "ratio of 1": (("compress", MLP, "o.onnx", "--ratio", "1"), "--ratio must be at least 0 and below 1"),
    "ratio of words": (("compress", MLP, "o.onnx", "--ratio", "half"), "such as 0.5 or 50%, not 'half'"),
    "ratio above all": (("compress", MLP, "o.onnx", "--ratio", "150%"), "--ratio must be at least 0 and below 1"),
    "unknown method": (("compress", MLP, "o.onnx", "--method", "magic"), "--method"),
    "no output folder": (("compress", MLP, "no/such/folder/o.onnx"), "does not exist"),
    "output is a folder": (("compress", MLP, MODELS), "folder"),
    "pattern that names nothing": (("compress", MLP, "o.onnx", "--include", "no-such-*"), "no-such-*"),
    "mean of words": (("compress", MLP, "o.onnx", "--mean", "grey"), "'grey' is not a list of numbers"),
    "std of zero": (("compress", MLP, "o.onnx", "--std", "0"), "--std must be a number above 0"),
    "no such calibration": (("compress", MLP, "o.onnx", "--calibration", "no-such.npz"), "no-such.npz does not exist"),
    "batch of 0": (("bench", MLP, MLP, "--batch", "0"), "--batch"),
    "no threads": (("bench", MLP, MLP, "--threads", "0"), "--threads must be a whole number of at least 1"),
    "jobs and dask": (("sweep", MLP, "--jobs", "2", "--dask", "tcp://127.0.0.1:1"), "--jobs and --dask both say where"),
    "negative seed": (("compress", MLP, "o.onnx", "--seed", "-1"), "--seed must be a whole number of at least 0"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_usage_and_bad_input(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    check_one_line(err)
    assert message in err
    assert os.listdir(tmp_path) == []


def test_truncated_model(run, tmp_path):
    (tmp_path / "cut.onnx").write_bytes(MLP.read_bytes()[:5000])
    code, out, err = run("compress", tmp_path / "cut.onnx", tmp_path / "o.onnx")
    assert (code, out) == (2, "")
    check_one_line(err)
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.skipif(resolve_provider("auto").option == "cuda", reason="CUDA works here")
def test_cuda_that_is_not_there(run, smaller):
    code, out, err = run("bench", MLP, smaller, "--provider", "cuda")
    assert (code, out) == (2, "")
    check_one_line(err)
    assert "--provider cpu" in err


def test_bug_of_ours_keeps_its_traceback(run, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("onnxmerge.pipeline.inspect.inspect", broken)
    code, out, err = run("inspect", MLP)
    assert (code, out) == (70, "")
    assert "Traceback" in err
    assert "ZeroDivisionError" in err


def test_message_of_several_lines_becomes_one(run, monkeypatch):
    def refuse(*_, **__):
        raise ModelError("first\nsecond\x1b[31m")

    monkeypatch.setattr("onnxmerge.pipeline.inspect.inspect", refuse)
    code, _, err = run("inspect", MLP)
    assert code == 2
    assert err == "onnxmerge: first second\N{REPLACEMENT CHARACTER}[31m\n"


# what it prints where it is not a terminal


def test_quiet_prints_the_verdict_alone(run):
    code, out, err = run("inspect", MLP, "--quiet")
    assert (code, err) == (0, "")
    assert " ".join(out.split()).startswith("Up to ")


def test_module_without_a_terminal_prints_no_escape_codes(tmp_path):
    done = subprocess_run(
        "compress", MLP, tmp_path / "o.onnx", *PRUNE, "--no-bench", env={**os.environ, "TERM": "xterm-256color"}
    )
    assert done.returncode == 0
    assert not ANSI.search(done.stdout + done.stderr)
    assert [line for line in done.stderr.splitlines() if "%" not in line] == []  # progress, where the machine is busy


def test_module_prints_only_json_on_stdout():
    done = subprocess_run("inspect", MLP, "--json")
    assert done.returncode == 0
    check_document(json.loads(done.stdout), Inspection)
    assert [line for line in done.stderr.splitlines() if "%" not in line] == []  # progress, where the machine is busy
