"""Searches that time candidates, on machines that are made up: multiples that run fastest, a latency that is met."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from running import chain

from onnxmerge.execution.shapes import observe
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.graph.cost import total_macs
from onnxmerge.onnxio.model import from_proto
from onnxmerge.pipeline.compress import compress
from onnxmerge.pipeline.latency_search import LATENCY_TOLERANCE
from onnxmerge.results import LatencyComparison, LatencySummary

FAST = {"samples": 24, "threads": 1, "bench": False}
CALL = LatencySummary(1.0, 1.0, 10)


def fake_time(
    milliseconds: Callable[[int], float], told: list[tuple[int, int]] | None = None
) -> Callable[..., LatencyComparison]:
    """`time_pair` of a machine that takes so long for a model of so many multiply-accumulates."""

    def time_pair(reference: Path | bytes, candidate: Path | bytes, *_: Any, **__: Any) -> LatencyComparison:
        macs = [macs_of(model) for model in (reference, candidate)]
        if told is not None:
            told.append((macs[0], macs[1]))
        ratio = milliseconds(macs[1]) / milliseconds(macs[0])
        return LatencyComparison(CALL, CALL, ratio, 0.99 * ratio, 1.01 * ratio, 1, "CPUExecutionProvider", 1)

    return time_pair


def macs_of(model: Path | bytes) -> int:
    content = model.read_bytes() if isinstance(model, Path) else model
    feeds = {
        value.name: np.zeros((1, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])), np.float32)
        for value in onnx.ModelProto.FromString(content).graph.input
    }
    seen = observe(content, feeds, label="timed")
    return total_macs(from_proto(onnx.ModelProto.FromString(content)), {name: each.shape for name, each in seen.items()})


def stepped(step: int) -> Callable[[int], float]:
    """Fast only where all of a chain's widths, told by its MACs, are multiples."""
    sizes = {
        16 * a + a * b + b * c + 4 * c
        for a in range(step, 41, step)
        for b in range(step, 41, step)
        for c in range(step, 41, step)
    }
    return lambda macs: (1.0 if macs in sizes else 2.0) * (1000 + macs)


@pytest.mark.parametrize("way", [{"ratio": 0.4}, {"target": ("macs", 0.5)}], ids=["ratio", "target"])
def test_measured_takes_the_multiples_that_run_fastest(
    way: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxmerge.pipeline.candidate_builder.time_pair", fake_time(stepped(8)))
    result = compress(chain(tmp_path), tmp_path / "o.onnx", round_to="measured", method="prune", **FAST, **way)
    assert result.groups
    assert all(group.kept % 8 == 0 for group in result.groups)


@pytest.mark.parametrize("way", [{"ratio": 0.4}, {"target": ("macs", 0.5)}], ids=["ratio", "target"])
def test_measured_never_takes_what_is_slower(way: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewer the faster, and the interval of rounded counts holds 1: no rounding is sure to be faster."""
    monkeypatch.setattr("onnxmerge.pipeline.candidate_builder.time_pair", fake_time(lambda macs: 1e6))
    source = chain(tmp_path)
    results = [
        compress(source, tmp_path / "o.onnx", round_to=rounding, method="prune", **FAST, **way) for rounding in ("measured", 1)
    ]
    assert results[0].groups == results[1].groups


ODD, SHORT, GPU = "try `round_to=measured`", "calls this short", "a GPU mostly waits"
REASONS = {
    "odd counts": ("CPUExecutionProvider", 1, 9.0, 0.3, (ODD,)),
    "odd counts and a GPU": ("CUDAExecutionProvider", 1, 9.0, 0.3, (ODD, GPU)),
    "a GPU": ("CUDAExecutionProvider", 1, 0.1, 0.4, (GPU,)),
    "a GPU that is kept busy": ("CUDAExecutionProvider", 8, 9.0, 0.4, ()),
    "short calls": ("CPUExecutionProvider", 1, 0.1, 0.4, (SHORT,)),
    "unknown": ("CPUExecutionProvider", 1, 9.0, 0.4, ()),
    "short calls of a batch that was chosen": ("CPUExecutionProvider", 8, 0.1, 0.4, ()),
}


@pytest.mark.usefixtures("multiples_of_8")
@pytest.mark.parametrize(("provider", "batch", "median", "ratio", "told"), REASONS.values(), ids=REASONS.keys())
def test_a_model_that_is_not_faster_says_why(
    provider: str, batch: int, median: float, ratio: float, told: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = LatencySummary(median, median, 10)
    found = LatencyComparison(call, call, 1.1, 1.0, 1.2, batch, provider, 1)
    monkeypatch.setattr("onnxmerge.pipeline.compress.time_pair", lambda *_, **__: found)
    result = compress(chain(tmp_path), tmp_path / "o.onnx", ratio=ratio, round_to=1, method="prune", samples=24, threads=1)
    reasons = result.latency.likely_reasons
    assert [reason for reason in (ODD, SHORT, GPU) if reason in " ".join(reasons)] == sorted(told, key=(ODD, SHORT, GPU).index)
    assert len(reasons) == len(told)


def test_latency_is_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = lambda macs: 500.0 + macs  # noqa: E731
    source = chain(tmp_path)
    monkeypatch.setattr("onnxmerge.pipeline.candidate_builder.time_pair", fake_time(milliseconds))
    for share in (0.9, 0.7, 0.4):
        result = compress(source, tmp_path / "o.onnx", target=("latency", share), method="prune", **FAST)
        reached = milliseconds(result.after.macs) / milliseconds(result.before.macs)
        assert abs(reached / share - 1.0) <= LATENCY_TOLERANCE
        assert not result.unreached


def test_a_latency_between_two_multiples_takes_the_next_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = lambda macs: 500.0 + macs  # noqa: E731
    monkeypatch.setattr("onnxmerge.pipeline.candidate_builder.time_pair", fake_time(milliseconds))
    monkeypatch.setattr("onnxmerge.pipeline.latency_search.fastest_multiple", lambda *_: 32)
    source, options = chain(tmp_path, (64, 64, 64)), {"target": ("latency", 0.8), "round_to": "measured", "method": "prune"}
    result = compress(source, tmp_path / "o.onnx", **options, **FAST)
    assert abs(milliseconds(result.after.macs) / milliseconds(result.before.macs) / 0.8 - 1.0) <= LATENCY_TOLERANCE
    assert {group.kept % 16 for group in result.groups} == {0}
    assert {group.kept % 32 for group in result.groups} != {0}


def test_a_model_that_is_faster_than_asked_misses_no_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = chain(tmp_path)
    whole = analyse_model(source).size.macs
    monkeypatch.setattr(
        "onnxmerge.pipeline.candidate_builder.time_pair", fake_time(lambda macs: 820.0 if macs < whole else 1000.0)
    )
    result = compress(source, tmp_path / "o.onnx", target=("latency", 0.9), method="prune", **FAST)
    assert not result.unreached
    assert "latency=0.9 was asked for, and the closest model found takes 0.82 of the time" in result.warnings


def test_latency_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time is not work: the best found is the smallest model, and its ratio is told."""
    milliseconds = lambda macs: 40_000.0 + macs  # noqa: E731
    monkeypatch.setattr("onnxmerge.pipeline.candidate_builder.time_pair", fake_time(milliseconds))
    result = compress(chain(tmp_path), tmp_path / "o.onnx", target=("latency", 0.5), method="prune", **FAST)
    reached = milliseconds(result.after.macs) / milliseconds(result.before.macs)
    assert result.after.macs < 0.1 * result.before.macs
    assert result.unreached == f"latency=0.5 was not reached within 5%: it takes {reached:.2f} of the time"
