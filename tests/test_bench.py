"""`bench`: batch sizes, the MACs beside the time, what is refused, what is shown."""

import dataclasses
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console
from samples import LATENCY, SLOWER
from topologies.net import Net

import onnxmerge
from onnxmerge.errors import InputError, OptionError
from onnxmerge.evaluation import benchmark
from onnxmerge.evaluation.latency import compare_latency
from onnxmerge.execution.providers import resolve_provider
from onnxmerge.report.terminal import show_benchmark
from onnxmerge.results import Benchmark, Execution, LatencyComparison, LatencySummary

MODELS = Path(__file__).resolve().parents[1] / "models"
MLP = MODELS / "digits-mlp.onnx"
CPU = "CPUExecutionProvider"


def convolutions(channels: int, batch: str | int = "N") -> onnx.ModelProto:
    """Two wide convolutions, so that nearly all time goes into MACs."""
    net = Net(np.random.default_rng(0), batch=batch)
    inner = net.relu(net.conv(net.input("x", 16, 24, 24), "first", 16, channels))
    net.output(net.conv(inner, "second", channels, 16), 16, 24, 24)
    return net.model()


@pytest.fixture
def models(tmp_path) -> Path:
    for name, model in {"whole": convolutions(128), "half": convolutions(64), "four": convolutions(64, 4)}.items():
        onnx.save(model, tmp_path / f"{name}.onnx")
    return tmp_path


def test_half_of_the_macs_is_faster(models, monkeypatch):
    monkeypatch.setattr(benchmark, "DEFAULT_EFFORT", replace(benchmark.DEFAULT_EFFORT, seconds=1.0))
    found = onnxmerge.bench(models / "whole.onnx", models / "half.onnx", provider="cpu", threads=1)
    assert found.macs_ratio == 0.5
    assert found.latency_ratio_high < 1.0
    assert found.realised_saving == pytest.approx((1 - found.latency_ratio) / 0.5)


def test_several_batch_sizes(run, models):
    files = (models / "whole.onnx", models / "half.onnx")
    code, out, err = run("bench", *files, "--batch", "1,3", "--json", "--provider", "cpu")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["schema"], list(found)[-2:]) == ("onnxmerge.benchmark/1", ["batches", "inputs"])
    assert [each["batch_size"] for each in found["batches"]] == [1, 3]
    for each in found["batches"]:
        assert list(each) == [field.name for field in dataclasses.fields(LatencyComparison)]
        assert each["candidate_inputs_per_second"] == pytest.approx(each["batch_size"] * 1e3 / each["candidate"]["median_ms"])
        assert set(each["execution"]["reference_providers"].values()) == {CPU}
        assert {"first", "second"} <= set(each["execution"]["candidate_providers"])
    code, out, _ = run("bench", *files, "--batch", "1,3", "--provider", "cpu")
    assert code == 0
    assert "50.0% of the MACs saved" in out


def test_a_model_of_one_batch_size_takes_its_own(run, models):
    code, out, _ = run("bench", models / "four.onnx", models / "four.onnx", "--json")
    assert (code, json.loads(out)["batches"][0]["batch_size"]) == (0, 4)


def test_fewer_inputs_than_a_call_takes_are_repeated(run, models, tmp_path):
    np.save(tmp_path / "two.npy", np.zeros((2, 16, 24, 24), np.float32))
    files = (models / "whole.onnx", models / "half.onnx")
    code, out, _ = run("bench", *files, "--batch", "8", "--calibration", tmp_path / "two.npy", "--json")
    assert (code, json.loads(out)["batches"][0]["batch_size"]) == (0, 8)


def test_compress_and_sweep_time_the_batch_that_is_asked_for_and_are_sure_of_a_latency(run, tmp_path, monkeypatch):
    asked = []

    def spy(reference, candidate, feeds, *, rounds, **others):
        asked.append((len(next(iter(feeds.values()))), rounds))
        return replace(compare_latency(reference, candidate, feeds, seconds=0.02, min_runs=2, rounds=1), latency_ratio=0.9)

    monkeypatch.setattr(benchmark, "compare_latency", spy)
    quick = ("--method", "prune", "--samples", "8", "--batch", "3", "--json")
    code, out, _ = run("compress", MLP, tmp_path / "o.onnx", "--target", "latency=0.9", "--round-to", "8", *quick)
    assert (code, json.loads(out)["latency"]["batch_size"]) == (0, 3)
    trial, sure = ((3, effort.rounds) for effort in (benchmark.TRIAL_EFFORT, benchmark.CONFIRMING_EFFORT))
    assert asked == [trial, sure, sure]  # tried, confirmed, proved
    asked.clear()
    code, out, _ = run("sweep", MLP, "--targets", "macs=0.5,latency=0.9", "--round-to", "8", *quick)
    assert (code, [point["latency"]["batch_size"] for point in json.loads(out)["points"]]) == (0, [3, 3])
    assert asked == [trial, sure, sure, (3, benchmark.DEFAULT_EFFORT.rounds)]
    asked.clear()
    code, *_ = run("compress", MLP, tmp_path / "o.onnx", "--target", "latency=0.5", "--round-to", "8", "--no-bench", *quick)
    assert code == 0
    assert asked.count(sure) == 1  # out of reach: the figure that is told is sure all the same


@pytest.mark.parametrize("command", [("compress", "four.onnx", "o.onnx", "--ratio", "0.5"), ("sweep", "four.onnx")])
def test_a_batch_that_the_model_does_not_take_is_refused(run, models, monkeypatch, command):
    monkeypatch.chdir(models)
    code, out, err = run(*command, "--batch", "8")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert str(models) in err or err.startswith("onnxmerge: four.onnx")  # the user's file, not the copy that a worker has
    assert "four.onnx takes exactly 4 inputs a call: --batch 8 cannot be timed" in err
    assert not (models / "o.onnx").exists()


def test_the_batch_of_options_is_timed(models):
    whole, half, four = (models / f"{name}.onnx" for name in ("whole", "half", "four"))
    assert onnxmerge.bench(whole, half, batch=8, provider="cpu").batch_size == 8
    assert [each.batch_size for each in onnxmerge.bench_batches(whole, half, (None, 2), batch=8, provider="cpu").batches] == [
        8,
        2,
    ]
    with pytest.raises(InputError, match="takes exactly 4 inputs a call: `batch` 8"):
        onnxmerge.bench(four, four, batch=8, provider="cpu")


REFUSED = {
    "batch of another size": (("four.onnx", "four.onnx", "--batch", "8"), "takes exactly 4 inputs a call: --batch 8"),
    "one of several": (("four.onnx", "four.onnx", "--batch", "4,8"), "takes exactly 4 inputs a call: --batch 8"),
    "the candidate is fixed": (("whole.onnx", "four.onnx", "--batch", "8"), "four.onnx does not run"),
    "no number": (("whole.onnx", "whole.onnx", "--batch", "1,many"), "'1,many' is no batch size"),
    "zero": (("whole.onnx", "whole.onnx", "--batch", "1,0"), "'1,0' is no batch size"),
    "TF32": (("whole.onnx", "whole.onnx", "--provider", "cpu", "--tf32"), "--tf32 can be had on CUDA only"),
    "search": (("whole.onnx", "whole.onnx", "--provider", "cpu", "--cudnn-search", "default"), "--cudnn-search can be had"),
    "graph": (("whole.onnx", "whole.onnx", "--provider", "cpu", "--cuda-graph"), "--cuda-graph can be had on CUDA only"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(run, models, monkeypatch, arguments, message):
    monkeypatch.chdir(models)
    code, out, err = run("bench", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize("command", ["verify", "compress"])
def test_settings_of_cuda_are_refused_on_the_cpu_everywhere(run, tmp_path, command):
    target = tmp_path / "out.onnx" if command == "compress" else MLP
    code, out, err = run(command, MLP, target, "--provider", "cpu", "--no-tf32")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--no-tf32 can be had on CUDA only" in err
    assert not (tmp_path / "out.onnx").exists()


def test_compress_puts_the_macs_beside_the_time(run, tmp_path):
    _, out, _ = run("compress", MLP, tmp_path / "o.onnx", "--method", "prune", "--ratio", "0.5", "--json", "--samples", "8")
    found = json.loads(out)
    assert found["latency"]["macs_ratio"] == pytest.approx(found["after"]["macs"] / found["before"]["macs"])


def test_what_ran_where_is_shown():
    placed = {"conv": "CUDAExecutionProvider", "odd": CPU}
    settings = {"use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC", "enable_cuda_graph": "0"}
    summary = LatencySummary(1.0, 1.2, 50)
    shown = LatencyComparison(
        summary, summary, 1.0, 0.9, 1.1, 1, "CUDAExecutionProvider", 2, execution=Execution("", settings, placed, placed)
    )
    stream = io.StringIO()
    show_benchmark(Console(file=stream, width=120), Benchmark("a", "b", (shown,)))
    assert "CUDA: TF32 on, cuDNN search heuristic, CUDA graph off" in stream.getvalue()
    assert "1 of 2 nodes of the candidate ran on another provider: odd" in stream.getvalue()


@pytest.mark.skipif(resolve_provider("auto").option == "cuda", reason="CUDA works here")
@pytest.mark.parametrize("command", ["bench", "verify"])
def test_a_fallback_is_said(run, command):
    code, out, _ = run(command, MLP, MLP)
    assert code == 0
    assert "on the CPU because CUDA does not work here: " in out
    _, out, _ = run(command, MLP, MLP, "--provider", "cpu")
    assert "because CUDA" not in out


def test_a_speed_that_is_too_low_fails(run, models, tmp_path):
    files = ("bench", models / "whole.onnx", models / "half.onnx", "--provider", "cpu")
    code, out, err = run(*files, "--min-speedup", "100", "--json")
    assert (code, len(json.loads(out)["batches"][0]["failures"])) == (1, 1)
    assert "is below 100x" in err
    assert run(*files, "--min-speedup", "0.001")[0] == 0
    quick = ("--ratio", "0.5", "--method", "prune", "--samples", "8")
    code, _, err = run("compress", MLP, tmp_path / "o.onnx", *quick, "--min-speedup", "100")
    assert (code, "is below 100x (nothing was written; " in err, (tmp_path / "o.onnx").exists()) == (1, True, False)


FAILING = {
    "compress": (MLP, "o.onnx", "--ratio", "0.5", "--method", "prune", "--save-plan", "p.json", "--max-macs", "0.1"),
    "verify": (MLP, MLP, "--min-fidelity", "1", "--max-params", "0.5"),
    "bench": (MLP, MLP, "--min-speedup", "100"),
}


@pytest.mark.parametrize("command", FAILING)
def test_what_fails_is_reported_and_what_is_refused_is_not(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    reports = [f"r{suffix}" for suffix in (".html", ".md", ".json")]
    given = (command, *FAILING[command], "--samples", "8", *(part for name in reports for part in ("--report", name)))
    assert run(*given, "--seed", "-1")[:2] == (2, "")
    assert not list(tmp_path.iterdir())
    code, out, _ = run(*given, "--json")
    assert (code, json.loads(out)["verdict"][:8]) == (1, "Failed: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(reports)
    assert (tmp_path / "r.md").read_text().partition("**")[2].startswith("Failed: ")
    assert '<h1 class="bad">Failed: ' in (tmp_path / "r.html").read_text()
    assert not any("o.onnx" in path for path in json.loads((tmp_path / "r.json").read_text())["sha256"])
    code, out, _ = run(*given)
    assert (code, "\nFailed: " in out, "wrote o.onnx" in out) == (1, True, False)


def test_a_size_that_is_too_large_fails(run, tmp_path):
    target = tmp_path / "o.onnx"
    quick = (MLP, target, "--ratio", "0.5", "--method", "prune", "--no-verify")
    for limit, share, what in (("--max-macs", 0.2, "MACs: "), ("--max-params", 0.2, "parameters: ")):
        code, _, err = run("compress", *quick, limit, str(share))
        assert (code, what in err, "more than 0.2 (nothing was written; " in err, target.exists()) == (1, True, True, False)
    assert run("compress", *quick, "--max-macs", "0.6", "--max-params", "0.6", "--require-smaller")[0] == 0
    verify = ("verify", MLP, target, "--min-cosine", "-1", "--samples", "8")
    assert run(*verify, "--require-smaller", "--max-macs", "0.6", "--max-params", "0.6")[0] == 0
    code, _, err = run(*verify, "--max-macs", "0.1")
    assert (code, "MACs: " in err) == (1, True)
    code, _, err = run("verify", MLP, MLP, "--require-smaller")
    assert (code, "the file is not smaller" in err) == (1, True)


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        (onnxmerge.verify, {"min_speedup": 2}),
        (onnxmerge.bench, {"min_cosine": 0.5}),
        (onnxmerge.bench, {"require_smaller": True}),
        (onnxmerge.compress, {"min_speedup": 2, "bench": False}),
        (onnxmerge.compress, {"min_speedup": 2, "verify": False}),
        (lambda model, _, **options: onnxmerge.sweep(model, **options), {"min_speedup": 2}),
    ],
)
def test_a_threshold_that_cannot_be_held_is_refused(verb, options, tmp_path):
    with pytest.raises(OptionError, match=r"min_speedup|time only|thresholds cannot be held"):
        verb(MLP, MLP if verb in (onnxmerge.verify, onnxmerge.bench) else tmp_path / "o.onnx", **options)


def test_a_model_that_is_slower_says_why(models):
    for name, channels in (("odd", 61), ("same", 128)):
        onnx.save(convolutions(channels), models / f"{name}.onnx")
    slow = replace(SLOWER, batch_size=1, macs_ratio=None)
    whole, half, few = (onnx.load(models / f"{name}.onnx") for name in ("whole", "half", "odd"))
    assert benchmark._odd_widths(whole, half) == ""
    assert "1 of 1 convolutions that shrank" in (odd := benchmark._odd_widths(whole, few))
    assert benchmark.explained(slow, 100, 50, odd).likely_reasons == (odd,)
    assert benchmark.explained(slow, 100, 100).likely_reasons == ("no MACs were saved",)
    assert benchmark.explained(LATENCY, 100, 50, odd).likely_reasons == ()


def test_calls_that_differ_too_much_to_tell_are_said_to():
    busy = replace(LATENCY, latency_ratio=1.0, latency_ratio_low=1 / 6.06, latency_ratio_high=1 / 0.13)
    assert "let nothing else run" in benchmark.explained(busy, 100, 40).likely_reasons[0]
    sure = replace(busy, latency_ratio_low=0.99, latency_ratio_high=1.01)
    assert "let nothing else run" not in " ".join(benchmark.explained(sure, 100, 40).likely_reasons)


@pytest.mark.parametrize("spread", [1.0, 1.4, 1.6, 3.0])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_interrupted_calls_are_told_where_the_model_seems_faster_too(side, spread):
    quantiles = tuple(np.interp(range(0, 101, 5), (0, 40, 60, 100), (2.0, 2.0, 2.0 * spread, 2.0 * spread)))
    summary = replace(getattr(LATENCY, side), quantiles_ms=quantiles)
    told = benchmark.explained(replace(LATENCY, **{side: summary}), 100, 50).likely_reasons
    assert ["let nothing else run" in reason for reason in told] == [True] * (spread > benchmark.WIDE_QUARTILES)
