"""What a search promises: a fidelity kept, multiples, a latency, the same bytes twice, and stages that never go back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import built, written
from test_targets import PRUNE
from topologies import TOPOLOGIES
from topologies.net import Net

from onnxmerge.data import selection
from onnxmerge.data.selection import calibration_and_check_inputs, inputs_needed
from onnxmerge.execution.shapes import observe
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.graph.cost import total_macs
from onnxmerge.onnxio.model import from_proto
from onnxmerge.options import EXPECTED, InputOptions, PruningOptions, RuntimeOptions
from onnxmerge.pipeline import fidelity_search, predicted_work
from onnxmerge.pipeline.compress import compress
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.fidelity_search import _search
from onnxmerge.pipeline.latency_search import LATENCY_TOLERANCE
from onnxmerge.pipeline.progress import Stage, overall, tell_expected
from onnxmerge.pipeline.sweep import sweep
from onnxmerge.pipeline.time_limit import TimeLimit
from onnxmerge.pruning.budget import Allocation
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.kept_counts import fast_multiple
from onnxmerge.results import LatencyComparison, LatencySummary

FAST = {"samples": 24, "threads": 1, "bench": False}
CALL = LatencySummary(1.0, 1.0, 10)


# fidelity


SMALL_PARTS: dict[str, dict[str, Any]] = {
    "digits-mlp.onnx": {"samples": 768},
    "digits-resnet-bn.onnx": {"samples": 8, "include": ("/7/*",), "method": "reconstruct"},
}


@pytest.mark.parametrize("name", SMALL_PARTS)
def test_fidelity_is_kept_and_less_of_it_is_no_larger_model(name: str, tmp_path: Path, models_folder: Path) -> None:
    weights = []
    for fidelity in (0.9, 0.7):
        result = compress(models_folder / name, tmp_path / "o.onnx", fidelity=fidelity, bench=False, **SMALL_PARTS[name])
        assert result.fidelity is not None
        assert result.fidelity.worst.fidelity >= fidelity
        assert result.groups
        weights.append(result.after.parameters)
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] < 0.95 * result.before.parameters


def test_a_gpu_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is decided by runs is run on the CPU: here a session on CUDA would fail."""
    source = written(built(TOPOLOGIES["residual-two-blocks"]), tmp_path)
    compress(source, tmp_path / "cpu.onnx", fidelity=0.5, provider="cpu", verify=False, **FAST)
    monkeypatch.setattr("onnxmerge.execution.providers.find_problem", lambda short: None)
    compress(source, tmp_path / "cuda.onnx", fidelity=0.5, provider="cuda", verify=False, **FAST)
    assert (tmp_path / "cuda.onnx").read_bytes() == (tmp_path / "cpu.onnx").read_bytes() != source.read_bytes()


def test_same_bytes_twice(tmp_path: Path) -> None:
    contents, source = set(), written(built(TOPOLOGIES["flatten-two-layers"]), tmp_path)
    for file in (tmp_path / "a.onnx", tmp_path / "b.onnx"):
        compress(source, file, fidelity=0.5, **FAST)
        contents.add(file.read_bytes())
    assert len(contents) == 1


def test_fidelity_that_nothing_keeps(tmp_path: Path) -> None:
    source = written(built(TOPOLOGIES["conv-relu-conv"]), tmp_path)
    result = compress(source, tmp_path / "o.onnx", fidelity=0.999999, **FAST)
    assert not result.groups
    assert result.after.parameters == result.before.parameters
    assert sum("keeps a fidelity of 0.999999" in warning for warning in result.warnings) == 1


def test_channels_that_nobody_reads_go_at_any_fidelity(tmp_path: Path) -> None:
    source = written(built(TOPOLOGIES["slice-channels"]), tmp_path)
    result = compress(source, tmp_path / "o.onnx", fidelity=0.9999, round_to=1, **FAST)
    assert [group.kept for group in result.groups] == [6]
    assert not [warning for warning in result.warnings if "no smaller model" in warning]
    assert result.fidelity is not None
    assert result.fidelity.worst.fidelity > 0.9999


def test_channels_that_only_seem_to_be_of_no_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing passes the end of the front is measured before it is taken."""
    of_the_model = fidelity_search._allocations
    monkeypatch.setattr(fidelity_search, "_allocations", lambda *given: of_the_model(*given)[:-1])
    source = written(built(TOPOLOGIES["conv-relu-conv"]), tmp_path)
    result = compress(source, tmp_path / "o.onnx", fidelity=0.999999, **FAST)
    assert not result.groups
    assert result.fidelity is not None
    assert result.fidelity.worst.fidelity == 1.0


def test_a_search_ends_where_predictions_are_hopeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def failing(best: object, builder: object, index: int, *quickly: bool) -> float:
        tried.append(index)
        return 10.0

    monkeypatch.setattr(fidelity_search, "HOPELESS", 1e9)
    monkeypatch.setattr(fidelity_search._Best, "measure", failing)
    compress(written(built(TOPOLOGIES["residual-two-blocks"]), tmp_path), tmp_path / "o.onnx", fidelity=0.9, round_to=1, **FAST)
    assert len(tried) == 1


@settings(max_examples=100, deadline=None)
@given(
    losses=st.lists(st.sampled_from([0.1, 2.0, 3.0, 6.0, 50.0]), min_size=1, max_size=40),
    prediction=st.floats(0.01, 100.0),
    saved=st.floats(0.0001, 0.5),
)
def test_no_full_candidate_where_the_least_removal_fails_by_far(losses: list[float], prediction: float, saved: float) -> None:
    """Only there, and only where it was predicted; whatever comes first, the least removal is tried third at the latest."""
    losses, count = sorted(losses, reverse=True), len(losses)
    front = [Allocation({"at": at}, 1.0 - saved * (1.0 - at / count), prediction * (1.0 - at / count)) for at in range(count + 1)]
    tried: list[int] = []

    class Best(fidelity_search._Best):
        def measure(self, builder: Any, index: int, candidate: Any, quickly: bool = False) -> float:
            tried.append(index)
            self.count += 1
            return losses[index]

    builder, best, search = SimpleNamespace(quick_loss=1.0, quick_candidate=id, limit=TimeLimit()), Best(), _search(front, 1.0)
    assert not fidelity_search._search_quickly(builder, search, front, best)  # type: ignore[arg-type]
    worth = [at for at in range(count) if front[at].share <= 1.0 - fidelity_search.WORTH_REMOVING]
    assert not set(tried) - set(worth)
    if best.is_hopeless:
        assert tried[-1] == worth[-1]
        assert min(losses[worth[-1]], front[worth[-1]].loss) > fidelity_search.FAR
    elif worth and tried and prediction / count > fidelity_search.FAR < min(losses[at] for at in worth):
        raise AssertionError(tried)
    if worth and losses[worth[-1]] > fidelity_search.FAR:
        assert len(tried) <= 3


# multiples

WAYS = {"ratio": {"ratio": 0.4}, "target": {"target": ("macs", 0.6)}, "fidelity": {"fidelity": 0.3}}
MULTIPLES = {
    "chain": ("gemm-relu-gemm-transb1", 4),
    "more than a group": ("residual-two-blocks", 32),
    "stream": ("residual-two-blocks", 2),
    "groups of a convolution": ("grouped-conv", 8),
    "not a divisor": ("resnext-block", 3),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "multiple"), MULTIPLES.values(), ids=MULTIPLES.keys())
def test_groups_that_shrink_are_multiples(name: str, multiple: int, way: str, tmp_path: Path) -> None:
    source = written(built(TOPOLOGIES[name]), tmp_path)
    result = compress(source, tmp_path / "o.onnx", round_to=multiple, method="prune", **FAST, **WAYS[way])
    groups, _ = prunable_groups(analyse_model(source).channels, PRUNE)
    conv_groups = {group.name: len(np.unique(group.conv_groups)) for group in groups}
    for group in result.groups:
        assert group.kept % multiple == 0
        assert group.kept % conv_groups[group.name] == 0
        assert group.kept < group.channels
    if multiple == 32:
        assert all(group.kept == 0 for group in result.groups)  # branches alone


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


def chain(folder: Path, widths: tuple[int, ...] = (40, 40, 40)) -> Path:
    net = Net(np.random.default_rng(0))
    y, before = net.input("x", 16), 16
    for number, width in enumerate(widths):
        y, before = net.relu(net.gemm(y, f"fc_{number}", before, width)), width
    net.output(net.gemm(y, "out", before, 4), 4)
    return written(net.model(), folder)


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


@pytest.mark.usefixtures("multiples_of_8")
@pytest.mark.parametrize("way", [{"ratio": 0.4}, {"target": "macs=0.5"}, {"fidelity": 0.5}], ids=["ratio", "target", "fidelity"])
def test_multiples_of_8_by_default(way: dict[str, Any], tmp_path: Path) -> None:
    result = compress(chain(tmp_path, (64, 64, 24)), tmp_path / "o.onnx", method="prune", **FAST, **way)
    assert result.groups
    assert all(group.kept % 8 == 0 for group in result.groups)
    if "target" in way:
        assert 0.475 * result.before.macs <= result.after.macs <= 0.5 * result.before.macs


@pytest.mark.usefixtures("multiples_of_8")
@pytest.mark.parametrize(("widths", "target"), [((64, 64), "macs=0.05"), ((32,), "params=0.95")], ids=["small", "one group"])
def test_what_multiples_of_8_do_not_come_close_to_takes_finer_ones(widths: tuple[int, ...], target: str, tmp_path: Path) -> None:
    result = compress(chain(tmp_path, widths), tmp_path / "o.onnx", method="prune", target=target, **FAST)
    share = float(target.partition("=")[2])
    reached = result.after.macs / result.before.macs if "macs" in target else result.after.parameters / result.before.parameters
    assert 0.9 * share <= reached <= share
    assert not [warning for warning in result.warnings if "cannot be reached" in warning]


@pytest.mark.usefixtures("multiples_of_8")
@pytest.mark.parametrize("way", [{"ratio": 0.5}, {"target": "params=0.5"}], ids=["ratio", "target"])
def test_grouped_convolutions_shrink_by_default(way: dict[str, Any], tmp_path: Path) -> None:
    """40 channels in five groups of a convolution: 8 and 5 have no common multiple below 40."""
    assert (fast_multiple(48, 3), fast_multiple(40, 5)) == (8, 4)
    net = Net(np.random.default_rng(0))
    y = net.relu(net.conv(net.input("x", 3, 6, 6), "first", 3, 40))
    y = net.relu(net.conv(y, "grouped", 40, 40, group=5))
    net.output(net.conv(y, "last", 40, 4), 4, 6, 6)
    result = compress(written(net.model(), tmp_path), tmp_path / "o.onnx", method="prune", **FAST, **way)
    assert len(result.groups) == 2
    assert "ratio" not in way or {group.kept for group in result.groups} == {20}
    assert 0.4 * result.before.parameters < result.after.parameters < 0.6 * result.before.parameters or "ratio" in way


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


# inputs


@pytest.mark.parametrize(("width", "extent", "expected"), [(16, 2, 384), (256, 2, 576), (256, 4, 384), (256, 1, 576)])
def test_small_maps_take_more_inputs(
    width: int, extent: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as give the widest consumer a sample an unknown: width * 9 unknowns, extent * extent samples an input."""
    net = Net(np.random.default_rng(0))
    y = net.relu(net.conv(net.input("x", 3, extent, extent), "first", 3, width))
    net.output(net.conv(y, "second", width, 8), 8, extent, extent)
    source = written(net.model(), tmp_path)
    settings = InputOptions(), RuntimeOptions(), PruningOptions()
    analysed = analyse_model(source)
    monkeypatch.setattr(selection, "CHEAP_MACS", 0.0)
    solving, checking = calibration_and_check_inputs(source, analysed, *settings)
    assert (solving.count, checking.count) == (expected, 256)
    monkeypatch.setattr(selection, "CHEAP_MACS", 1000.0 * analysed.size.macs)
    assert inputs_needed(analysed) == max(expected, min(1000, 16 * width * 9 // extent**2))


@pytest.mark.parametrize("batch", ["N", "3"])
@pytest.mark.parametrize("length", [2, 32])
def test_rows_of_all_inputs_in_one_axis_are_as_many_samples(batch: str, length: int, tmp_path: Path) -> None:
    """A dense layer of (inputs * length, width) gives as many samples an input as one of (inputs, length, width)."""
    width, wide, draw = 64, 1000, np.random.default_rng(0).normal
    ends = {
        "rows": "r = Reshape(x, rows) a = Gemm(r, first, b) c = Relu(a) d = Gemm(c, second) y = Reshape(d, back)",
        "three": "p = MatMul(x, first) a = Add(p, b) c = Relu(a) y = MatMul(c, second)",
    }
    needed = []
    for end in ends.values():
        model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
            g (float[{batch}, {length}, {width}] x) => (float[{batch}, {length}, {width}] y)
            <int64[2] rows = {{-1, {width}}}, int64[3] back = {{-1, {length}, {width}}}> {{ {end} }}""")
        for name, shape in (("first", (width, wide)), ("b", (wide,)), ("second", (wide, width))):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(draw(size=shape)), name))
        needed.append(inputs_needed(analyse_model(written(model, tmp_path))))
    assert needed[0] == needed[1] >= (500 if length == 2 else 384)


# latency


def test_latency_is_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = lambda macs: 500.0 + macs  # noqa: E731
    source = chain(tmp_path)
    monkeypatch.setattr("onnxmerge.pipeline.candidate_builder.time_pair", fake_time(milliseconds))
    for share in (0.9, 0.7, 0.4):
        result = compress(source, tmp_path / "o.onnx", target=("latency", share), method="prune", **FAST)
        reached = milliseconds(result.after.macs) / milliseconds(result.before.macs)
        assert abs(reached / share - 1.0) <= LATENCY_TOLERANCE
        assert not any("latency" in warning for warning in result.warnings)


def test_a_latency_between_two_multiples_takes_the_next_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = lambda macs: 500.0 + macs  # noqa: E731
    monkeypatch.setattr("onnxmerge.pipeline.candidate_builder.time_pair", fake_time(milliseconds))
    monkeypatch.setattr("onnxmerge.pipeline.latency_search.fastest_multiple", lambda *_: 32)
    source, options = chain(tmp_path, (64, 64, 64)), {"target": ("latency", 0.8), "round_to": "measured", "method": "prune"}
    result = compress(source, tmp_path / "o.onnx", **options, **FAST)
    assert abs(milliseconds(result.after.macs) / milliseconds(result.before.macs) / 0.8 - 1.0) <= LATENCY_TOLERANCE
    assert {group.kept % 16 for group in result.groups} == {0}
    assert {group.kept % 32 for group in result.groups} != {0}


def test_latency_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time is not work: the best found is the smallest model, and its ratio is told."""
    milliseconds = lambda macs: 40_000.0 + macs  # noqa: E731
    monkeypatch.setattr("onnxmerge.pipeline.candidate_builder.time_pair", fake_time(milliseconds))
    result = compress(chain(tmp_path), tmp_path / "o.onnx", target=("latency", 0.5), method="prune", **FAST)
    reached = milliseconds(result.after.macs) / milliseconds(result.before.macs)
    assert result.after.macs < 0.1 * result.before.macs
    assert [warning for warning in result.warnings if "latency" in warning] == [
        f"latency=0.5 was not reached within 5%: it takes {reached:.2f} of the time"
    ]


# stages

PLAN = [Stage("inputs", 1.0), Stage("statistics", 2.0), Stage("reconstruction", 3.0, 2.0), Stage("checking", 4.0)]
RUNS = {
    "once each": [(stage.name, share / 4) for stage in PLAN for share in range(5)],
    "several solves": [("reconstruction", share / 3) for _ in range(9) for share in range(1, 4)],
    "solves of one step": [("reconstruction", 1.0) for _ in range(9)],
    "a search": [("inputs", 0.0), ("statistics", 1.0), ("something else", 0.5), ("something else", 1.0)]
    + [("reconstruction", share) for _ in range(5) for share in (0.1, 0.6, 1.0)]
    + [("checking", 0.0), ("checking", 1.0)],
}


@pytest.mark.parametrize("told", RUNS.values(), ids=RUNS.keys())
def test_stages_never_go_back(told: list[tuple[str, float]]) -> None:
    seen: list[float] = []
    progress = overall(lambda stage, share: seen.append(share), PLAN)
    for stage, share in told:
        progress(stage, share)
    assert all(0.0 <= share <= 1.0 for share in seen)
    assert seen == sorted(seen)
    assert (seen[-1] == 1.0) == (told[-1] == ("checking", 1.0))


def test_progress_is_the_share_of_the_predicted_work() -> None:
    seen: list[float] = []
    progress = overall(lambda stage, share: seen.append(share), PLAN)
    for stage, share in RUNS["once each"]:
        progress(stage, share)
    assert seen[:9] == pytest.approx([0, 1 / 52, 2 / 52, 3 / 52, 1 / 13, 1 / 13, 1.5 / 13, 2 / 13, 2.5 / 13])
    assert seen[14] == pytest.approx(6 / 13)  # the second run is still expected
    assert seen[15:] == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])  # it was not needed


@pytest.mark.parametrize(("seconds", "ends"), [(59, ""), (61, " 2 minutes on one core"), (1800, " 30 minutes on one core")])
@pytest.mark.parametrize("can_end_early", [True, False])
def test_long_work_is_told_of_before_it_begins(seconds: float, ends: str, can_end_early: bool) -> None:
    told: list[str] = []
    stages = [Stage("inputs", seconds / 3), Stage("reconstruction", seconds / 3, 2.0)]
    tell_expected(lambda stage, share: told.append(stage), stages, can_end_early=can_end_early)
    cure = "; `time_limit=2m` ends the search then, with the best model so far" * can_end_early
    assert told == [f"{EXPECTED}{ends}{cure}"] * bool(ends)


@pytest.mark.parametrize("affordable", [40, 10_000])
def test_as_many_inputs_are_predicted_as_are_used(affordable: int, models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "INPUT_ELEMENTS", 64 * affordable)
    source, options = models_folder / "digits-mobile.onnx", CompressOptions.from_keywords({"target": "macs=0.5"})
    analysed = analyse_model(source)
    used, _ = calibration_and_check_inputs(source, analysed, options.inputs, options.runtime, options.pruning)
    assert predicted_work._work(analysed, options)[3] == used.count


def test_a_sweep_moves_within_a_point(models_folder: Path) -> None:
    told: list[tuple[str, float]] = []
    sweep(models_folder / "digits-mlp.onnx", "macs=0.5,0.25", **FAST, progress=lambda *each: told.append(each))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert max(np.diff(shares)) < 0.35
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert [stage for stage in stages if "statistics" in stage] == ["0 of 2 points: statistics"]
    assert "1 of 2 points: reconstruction" in stages


def test_compress_tells_its_way_to_the_end(tmp_path: Path) -> None:
    seen: list[float] = []
    source = written(built(TOPOLOGIES["residual-two-blocks"]), tmp_path)
    compress(source, tmp_path / "o.onnx", fidelity=0.5, **FAST, progress=lambda stage, share: seen.append(share))
    assert seen == sorted(seen)
    assert seen[0] == 0.0
    assert seen[-1] == 1.0
