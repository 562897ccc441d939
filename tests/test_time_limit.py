"""A time limit gives the best result so far that keeps what was asked for, or none; by a clock that moves with candidates."""

from pathlib import Path
from typing import Any

import pytest

from onnxmerge import compress, sweep
from onnxmerge.cli import app as cli
from onnxmerge.errors import OptionError, VerificationError
from onnxmerge.options import PruningOptions
from onnxmerge.pipeline.candidate_builder import CandidateBuilder
from onnxmerge.report.verdict import verdict_of

MLP = Path(__file__).resolve().parents[1] / "models" / "digits-mlp.onnx"
SETTINGS = {"threads": 1, "bench": False}
SECONDS = {"quick_candidate": 10.0, "candidate": 60.0, "pruned_candidate": 0.0, "measure_latency": 5.0}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was built, each of it in `SECONDS`."""
    told, inside, now = list[str](), [False], [0.0]
    monkeypatch.setattr("onnxmerge.pipeline.time_limit.clock", lambda: now[0])
    for name, seconds in SECONDS.items():
        original = getattr(CandidateBuilder, name)

        def timed(
            self: CandidateBuilder, *given: Any, _name: str = name, _original: Any = original, _s: float = seconds, **more: Any
        ) -> Any:
            outermost, inside[0] = not inside[0], True
            result = _original(self, *given, **more)
            if outermost:
                now[0], inside[0] = now[0] + _s, False
                told.append(_name)
            return result

        monkeypatch.setattr(CandidateBuilder, name, timed)
    return told


def cut(warnings: tuple[str, ...]) -> list[str]:
    return [warning for warning in warnings if "time limit" in warning]


@pytest.mark.parametrize(
    ("limit", "fidelity", "expected"),
    [
        (5, 0.5, ["quick_candidate"]),
        (25, 0.42, ["quick_candidate", "quick_candidate"]),
    ],
)
def test_a_fidelity_search_ends_with_the_best_so_far(
    limit: float, fidelity: float, expected: list[str], built: list[str], tmp_path: Path
) -> None:
    result = compress(MLP, tmp_path / "o.onnx", fidelity=fidelity, samples=256, time_limit=limit, **SETTINGS)
    assert built == expected
    (warning,) = cut(result.warnings)
    assert result.fidelity is not None
    assert result.fidelity.worst.fidelity >= fidelity
    assert f"{limit} s cut the search short: the best of {len(built)} keeps" in warning
    assert f"{fidelity} was asked for; its layers are solved on 32 inputs, and those of its plan on all" in warning
    assert result.after.parameters < result.before.parameters


MISSED = {
    "fidelity": {"fidelity": 0.97},
    "two candidates": {"fidelity": 0.9, "time_limit": 25},
    "one of them in full": {"fidelity": 0.9, "time_limit": 115},
    "decisions": {"max_changed_decisions": "1%"},
    "decisions by default": {},
    "both": {"fidelity": 0.5, "max_changed_decisions": 0.01},
}


@pytest.mark.parametrize("asked", MISSED.values(), ids=MISSED)
def test_what_the_outputs_must_keep_is_a_bound(asked: dict[str, Any], built: list[str], tmp_path: Path) -> None:
    """Where no candidate has kept it by then nothing is written, unless nothing is to be checked."""
    given = {"samples": 256, "time_limit": 5, **SETTINGS, **asked}
    with pytest.raises(VerificationError, match=r"was asked for \(nothing was written; more time may find") as told:
        compress(MLP, tmp_path / "o.onnx", **given)
    assert not list(tmp_path.iterdir())
    assert told.value.result.failures == tuple(cut(told.value.result.failures))
    assert not cut(told.value.result.warnings)
    result = compress(MLP, tmp_path / "o.onnx", verify=False, **given)
    assert cut(result.warnings)
    assert (tmp_path / "o.onnx").exists()


def test_the_command_ends_with_exit_code_1(built: list[str], run: Any, tmp_path: Path) -> None:
    given = "--fidelity", "0.97", "--time-limit", "5s", "--samples", "256", "--no-bench"
    code, out, err = run("compress", MLP, tmp_path / "o.onnx", *given)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("onnxmerge: verification failed: the time limit of 5 s cut the search short: the best of 1 keeps")
    assert " Failed: the time limit of 5 s cut the search short: the best of 1 keeps a fidelity of" in " ".join(out.split())


def test_a_point_of_a_sweep_that_keeps_too_little_is_none(built: list[str]) -> None:
    result = sweep(MLP, "fidelity=0.97", samples=256, time_limit="5s", **SETTINGS)
    assert result.points[0].after is None
    assert result.points[0].failure.endswith("a fidelity of 0.97 was asked for")  # without the cures of `compress`


def test_a_size_that_was_asked_for_is_an_aim(built: list[str], tmp_path: Path) -> None:
    result = compress(MLP, tmp_path / "o.onnx", target="macs=0.001", samples=32, **SETTINGS)
    assert "macs=0.001 cannot be reached: at least" in result.unreached
    assert verdict_of(result).text.startswith(f"Target missed: {result.unreached}; smaller by")


def test_enough_time_changes_nothing(built: list[str], tmp_path: Path) -> None:
    results = [
        compress(MLP, tmp_path / f"{number}.onnx", fidelity=0.9, samples=256, time_limit=limit, **SETTINGS)
        for number, limit in enumerate((None, "1h"))
    ]
    assert not cut(results[1].warnings)
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()
    assert built[: len(built) // 2] == built[len(built) // 2 :]


def test_a_result_is_found_however_short_the_time(built: list[str], tmp_path: Path) -> None:
    sized = compress(MLP, tmp_path / "o.onnx", target="macs=0.5", samples=32, time_limit=1e-3, **SETTINGS)
    assert sized.after.macs <= 0.5 * sized.before.macs
    timed = compress(MLP, tmp_path / "o.onnx", target="latency=0.5", method="prune", time_limit=1e-3, **SETTINGS)
    assert timed.groups
    assert built == ["candidate", "measure_latency", "measure_latency", "candidate"]


def test_a_sweep_begins_no_further_point(built: list[str]) -> None:
    result = sweep(MLP, "macs=0.75,0.5,0.25", samples=32, time_limit="90s", **SETTINGS)
    assert [bool(point.after) for point in result.points] == [True, True, False]
    assert result.points[2].failure == "not begun: the time limit of 90 s had run out"
    assert built == ["candidate", "candidate"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("300", 300.0), ("90s", 90.0), ("5m", 300.0), ("1.5h", 5400.0), (" 2 m ", 120.0), (7, 7)]
)
def test_times_are_read(text: str | float, seconds: float) -> None:
    assert PruningOptions(time_limit=text).time_limit == seconds  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0", "-1", "5d", "m", "", "nan", "inf", "1e400"])
def test_no_times_are_refused(text: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(OptionError, match="time above 0"):
        PruningOptions(time_limit=text)  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as ending:
        cli.main(["compress", str(MLP), str(tmp_path / "o.onnx"), "--time-limit", text])
    assert ending.value.code == 2
    assert "--time-limit must be a time above 0, such as 300 (seconds), 90s, 5m or 1h" in capsys.readouterr().err
