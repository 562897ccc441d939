"""What a search tells of its way: stages that never go back, and the work that is predicted."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from running import built, written
from topologies import TOPOLOGIES

from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import EXPECTED
from onnxmerge.pipeline.compress import compress
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.predicted_work import compress_stages
from onnxmerge.pipeline.progress import Stage, overall, tell_expected
from onnxmerge.pipeline.sweep import sweep

FAST = {"samples": 24, "threads": 1, "bench": False}
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


def test_predicted_work_grows_with_what_is_kept_and_with_pairs_of_layers(tmp_path: Path) -> None:
    """Products of the kept channels; pairs add, and channels that are chosen once more on real inputs."""
    np.save(tmp_path / "given.npy", np.zeros((1, 3, 8, 8), np.float32))
    kept = [{"ratio": 0.7}, {"ratio": 0.3}, {"ratio": 0.3, "calibration": tmp_path / "given.npy"}]
    for topology, rises in (("conv-relu-conv", [True, True]), ("depthwise", [True, True]), ("grouped-conv", [True, False])):
        found = analyse_model(written(built(TOPOLOGIES[topology]), tmp_path))
        options = [CompressOptions.from_keywords(each, verify=False) for each in kept]
        work = [sum(stage.work for stage in compress_stages(found, each) if stage.name == "reconstruction") for each in options]
        assert [more > less for less, more in pairwise(work)] == rises


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
