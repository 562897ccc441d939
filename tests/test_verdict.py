"""The sentence that a reader sees first, and that no figure, word or colour beside it says otherwise."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from samples import BENCHMARK, COMPRESSION, FIDELITY, INSPECTION, LATENCY, OUTPUT, PROVENANCE, SLOWER, SWEEP, VERIFICATION
from test_runtime_latency import FEEDS, FakeClock, FakeSession

from onnxmerge.errors import Reason, refusal
from onnxmerge.evaluation import latency as timing
from onnxmerge.evaluation.benchmark import explained
from onnxmerge.report.columns import batch_columns, latency_columns, sweep_columns
from onnxmerge.report.documents import document
from onnxmerge.report.html import page
from onnxmerge.report.sentences import savings_line, speedup_text
from onnxmerge.report.terminal import show_sweep, show_verdict
from onnxmerge.report.verdict import speed_text, verdict_of
from onnxmerge.report.wording import as_command_line
from onnxmerge.results import Accuracy, LatencyComparison, Size, ThresholdCheck

WORDS = ("faster", "slower", "not measurable")


def measured(seed: int) -> LatencyComparison:
    """Two models of random speed on a machine with random noise, timed as the program does; sessions keep a factor for life."""
    generator = np.random.default_rng(seed)
    usual = 10 ** generator.uniform(-5, -1)
    ratio, session_noise, noise = generator.choice([0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0]), *generator.choice([0.0, 0.03, 0.4], 2)
    clock = FakeClock()

    def calls(seconds: float):
        while True:
            factor = np.exp(session_noise * generator.standard_normal())
            for _ in range(12):
                yield seconds * factor * np.exp(noise * abs(generator.standard_normal()))

    pair = [FakeSession(clock, 0.0, calls(seconds)) for seconds in (usual, usual * ratio)]
    found = timing.compare_latency(*pair, FEEDS, seconds=100 * usual, seed=seed, clock=clock)
    macs = int(generator.choice([300, 900, 996, 1000, 1100]))
    return explained(found, 1000, macs)


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*\.?\d*", text)]


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_texts_never_contradict_each_other(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)
    seen = set()
    for seed in range(start, start + 20):
        found = measured(seed)
        seen.add(found.verdict)
        (_, before, after, left), _, throughput = zip(*(column.cells for column in latency_columns(found)), strict=True)
        (before_ms,), (after_ms,), (share,) = numbers(before), numbers(after), numbers(left)
        assert after_ms / before_ms == pytest.approx(share / 100, rel=0.015)  # three digits of each
        assert numbers(throughput[3])[0] == pytest.approx(100 * found.speedup, rel=0.01)
        speedup, low, high = numbers(speedup_text(found))
        assert low <= speedup <= high
        assert found.verdict == ("faster" if low > 1 else "slower" if high < 1 else "not measurable")
        if found.verdict != "not measurable":
            assert (share < 100, speedup > 1, after_ms <= before_ms) == (found.verdict == "faster",) * 3
        for text in (speed_text(found), verdict_of(replace(BENCHMARK, batches=(found,))).text):
            assert [word for word in ("slower", "no measurable difference") if word in text.lower()] == [
                {"slower": "slower"}.get(found.verdict, "no measurable difference")
            ] * (found.verdict != "faster")
        savings = savings_line(found)
        assert savings is None or (found.verdict == "faster" and found.macs_ratio < 1 and min(numbers(savings)) >= 0)
        assert bool(found.likely_reasons) <= (found.verdict != "faster")
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.9, 0.9949, "faster"), (0.9, 0.9951, "not measurable"), (1.0049, 1.2, "not measurable"), (1.0052, 1.2, "slower")],
)
def test_an_interval_that_touches_1_after_rounding_says_nothing(low: float, high: float, word: str) -> None:
    assert replace(LATENCY, latency_ratio_low=low, latency_ratio_high=high).verdict == word


SIZE = COMPRESSION.before
DOUBTFUL = replace(FIDELITY, outputs=(replace(OUTPUT, fidelity=0.3),))
REAL = replace(FIDELITY, input_description="32 of 96 calibration inputs from images")
FAR_OFF = replace(COMPRESSION, fidelity=replace(FIDELITY, outputs=(replace(OUTPUT, fidelity=-0.4),)))
MANY = replace(SLOWER, batch_size=1, likely_reasons=("3 of 4 groups keep odd counts: try `round_to=measured`",))
SLOW = replace(COMPRESSION, latency=MANY)
UNCLEAR = replace(COMPRESSION, latency=replace(LATENCY, latency_ratio_high=1.01))
NOTHING = replace(COMPRESSION, after=SIZE, groups=())
WHOLE = replace(NOTHING, fidelity=REAL, refusals=(refusal("conv", Reason.ALL_KEPT),))
SURE = replace(OUTPUT, fidelity_low=0.9765, fidelity_high=0.9901)
LABELLED = replace(FIDELITY, accuracy=Accuracy(0.9, 0.89))
HARDLY = replace(COMPRESSION, after=Size(25_400_000, 4_080_000_000, 102_000_000))
DECIDED = replace(FIDELITY, outputs=(replace(OUTPUT, changed_decisions=0.012),))
FIDELITY_KEPT = ThresholdCheck("fidelity", 0.98764, 0.95, True, output=OUTPUT.name)
BY_DEFAULT = (
    ThresholdCheck("fidelity", 0.98764, 0.94, True, is_default=True, output=OUTPUT.name, is_required=False),
    ThresholdCheck("changed decisions", 0.012, 0.02, False, is_default=True, output=OUTPUT.name, is_required=False),
)
SIZED = replace(VERIFICATION, before=SIZE, after=COMPRESSION.after)
VERDICTS = {
    "good": (COMPRESSION, "good", r"^Smaller by 51.7% of the parameters and 69.8% of the MACs, 1.50x as fast .1.45, 1.54., fid"),
    "its basis": (
        COMPRESSION,
        "good",
        r"; batch 4, CPUExecutionProvider, 2 threads\. Synthetic inputs can mislead: .* verify",
    ),
    "an interval of real inputs": (
        replace(COMPRESSION, fidelity=replace(REAL, outputs=(SURE,))),
        "good",
        r"fidelity 0\.9876 \[0\.9765, 0\.9901\]; on 32 of 96",
    ),
    "none of made-up ones": (replace(COMPRESSION, fidelity=replace(FIDELITY, outputs=(SURE,))), "good", r"fidelity 0\.9876; on"),
    "real inputs need no warning": (replace(COMPRESSION, fidelity=REAL), "good", r"2 threads\.$"),
    "slower": (SLOW, "bad", r"^Slower: 0.83x as fast \[0.77, 0.91\], smaller"),
    "why it is slower": (SLOW, "bad", r" 3 of 4 groups keep odd counts: try --round-to measured\.$"),
    "not measurable": (UNCLEAR, "warn", r"MACs, no measurable difference in speed"),
    "grew": (replace(COMPRESSION, after=Size(1, 1, 10**9)), "bad", r"^The file grew from 102.4 MB to 1.0 GB, "),
    "nothing": (NOTHING, "warn", r"^Nothing was removed, .*threads\. With 100 inputs of yours more may go, .* DIR\.$"),
    "nothing, real inputs": (replace(NOTHING, fidelity=REAL), "warn", r"threads\. The reasons are listed by layer\.$"),
    "nothing that is worth it": (
        WHOLE,
        "warn",
        r"threads\. Nothing smaller keeps what is asked for; .*, more goes: --fidelity 0\.9\.$",
    ),
    "hardly": (HARDLY, "warn", r"^Hardly smaller, by 0.6%.* With 100 inputs of yours more may go, .*: --calibration DIR\.$"),
    "slower and not smaller": (replace(NOTHING, latency=MANY), "bad", r"^Nothing was removed, slower: "),
    "doubtful": (replace(COMPRESSION, fidelity=DOUBTFUL), "warn", r"fidelity 0.3000.*: let more stay\.$"),
    "far off": (FAR_OFF, "warn", r"1.54\], outputs further off than a constant: fidelity -0.4000; on"),
    "not compared": (replace(COMPRESSION, fidelity=None, latency=None), "", r"MACs, neither compared nor timed\.$"),
    "not timed": (replace(COMPRESSION, latency=None), "", r"fidelity 0.9876, not timed; on"),
    "verified": (SIZED, "good", r"^Passed: fidelity 0.9876, smaller by 51.7%"),
    "asked for": (
        replace(SIZED, thresholds=(FIDELITY_KEPT, ThresholdCheck("MACs", 0.302, 0.625, False))),
        "good",
        r"^Passed: fidelity 0.9876 \(at least 0.95\), 30.2% of the MACs left \(at most 62.5%\), smaller by",
    ),
    "kept as by default": (
        replace(VERIFICATION, fidelity=DECIDED, thresholds=(*BY_DEFAULT, replace(BY_DEFAULT[0], output="another", limit=0.97))),
        "good",
        r"^Passed: fidelity 0.9876, changed decisions 1.2%; on",
    ),
    "less kept than by default": (
        replace(VERIFICATION, fidelity=DECIDED, thresholds=(BY_DEFAULT[0], replace(BY_DEFAULT[1], limit=0.01))),
        "warn",
        r"^No threshold was missed, but fidelity 0.9876, changed decisions 1.2% \(compress: at most 1% by default\); on",
    ),
    "less kept by an output that is not the worst": (
        replace(VERIFICATION, thresholds=(BY_DEFAULT[0], replace(BY_DEFAULT[0], value=0.961, limit=0.97, output="another"))),
        "warn",
        r"^No threshold .* fidelity 0.9876, fidelity 0.9610 of 'another' \(compress: at least 0.97 by default\); on",
    ),
    "less kept on synthetic inputs": (
        replace(
            VERIFICATION,
            thresholds=(replace(BY_DEFAULT[0], limit=0.99),),
            fidelity=replace(FIDELITY, input_description="8 synthetic images"),
        ),
        "warn",
        r"^No threshold .* fidelity 0.9876 \(compress: at least 0.99 by default\); on .*: --calibration gives real ones\.$",
    ),
    "only rounding may differ": (
        replace(VERIFICATION, thresholds=(ThresholdCheck("mean relative L2", 2.1e-7, 1e-4, False, is_default=True),)),
        "good",
        r"mean relative L2 2.1e-07 \(at most 0.0001 by default\); on",
    ),
    "asked for of a compression": (
        replace(
            COMPRESSION,
            thresholds=(ThresholdCheck("top-1 agreement", 0.953, 0.9, True),),
            latency=replace(LATENCY, min_speedup=1.2),
        ),
        "good",
        r"^Smaller by .*, 1.50x as fast .* \(at least 1.2x\), fidelity 0.9876, same best class 95.3% \(at least 90%\); on",
    ),
    "asked for of a benchmark": (
        replace(BENCHMARK, batches=(replace(LATENCY, min_speedup=1.2),)),
        "good",
        r"^1.50x as fast \[1.45, 1.54\] \(at least 1.2x\), with 50",
    ),
    "missed": (
        replace(VERIFICATION, failures=("it is",), thresholds=(ThresholdCheck("fidelity", 0.98764, 0.99, True),)),
        "bad",
        r"^Failed: it is; fidelity 0.9876; on",
    ),
    "target missed": (
        replace(COMPRESSION, unreached="macs=0.1 cannot be reached: at least 30.2% must stay"),
        "warn",
        r"^Target missed: macs=0.1 cannot be reached: at least 30.2% must stay; smaller by 51.7%",
    ),
    "passed far off": (
        replace(VERIFICATION, fidelity=FAR_OFF.fidelity),
        "warn",
        r"^No threshold was missed, but outputs further off than a constant: fidelity -0.4000; .*--calibration gives real ones",
    ),
    "passed far off on real inputs": (
        replace(VERIFICATION, fidelity=replace(FAR_OFF.fidelity, input_description="128 inputs from x.npy")),
        "warn",
        r"^No threshold was missed, but outputs further off than a constant: fidelity -0.4000; .*--min-fidelity",
    ),
    "labels": (
        replace(SIZED, fidelity=LABELLED),
        "good",
        r"^Passed: fidelity 0.9876, right before 90.00%, after 89.00%",
    ),
    "failed": (replace(VERIFICATION, failures=("output 'y' is bad",)), "bad", r"^Failed: output 'y' is bad; fidelity"),
    "batches": (replace(BENCHMARK, batches=(LATENCY, MANY)), "bad", r"^Batch 4: faster .1.50x., batch 1: slower .0.83x. with 50"),
    "groups": (
        INSPECTION,
        "",
        r"^Up to 33% of the parameters, 48% of the MACs and 40% of the predicted time can go, with 1,.* How many of",
    ),
    "no groups": (replace(INSPECTION, groups=()), "warn", r"^No channel group can be compressed\. The reasons"),
    "recommended": (SWEEP, "good", r"^3 of 4 targets gave a model; take macs=0.75: smaller by 24.9%"),
}


@pytest.mark.parametrize(("result", "tone", "said"), VERDICTS.values(), ids=VERDICTS.keys())
def test_the_verdict_says_what_matters(result, tone: str, said: str) -> None:
    found = verdict_of(result)
    assert re.search(said, as_command_line(found.text))
    assert found.tone == tone
    assert document(result, PROVENANCE)["verdict"] == found.text  # options as Python names them, as in `warnings`
    assert "--" not in found.text
    text = page(result, PROVENANCE)
    assert ('<h1 class="bad">' in text) is (tone == "bad")
    stream = io.StringIO()
    show_verdict(Console(file=stream, width=1000, force_terminal=True), result)
    assert ("\x1b[1;31m" in stream.getvalue()) is (tone == "bad")


def test_a_sweep_marks_slower_points_and_never_recommends_them() -> None:
    slow = replace(SLOWER, latency_ratio=1.2)
    points = tuple(replace(point, latency=slow, fidelity=0.99) for point in SWEEP.points[:2])
    sweep = replace(SWEEP, points=points)
    assert sweep.recommended is None
    assert "none of them both faster than the original and close to it, macs=0.75, macs=0.5 slower than the original" in (
        verdict_of(sweep).text
    )
    assert sweep_columns(sweep)[-1].tones == ["bad", "bad"]
    assert "0.83x [0.77, 0.91] slower" in sweep_columns(sweep)[-1].cells[0]
    assert page(sweep, PROVENANCE).count('class="kept bad"') == 4  # in two charts
    stream = io.StringIO()
    show_sweep(Console(file=stream, width=120, force_terminal=True), sweep)
    assert stream.getvalue().count("\x1b[31m0.83x") == 2
    assert replace(sweep, points=(points[0], replace(points[1], latency=LATENCY))).recommended.target == "macs=0.5"
    untimed = replace(sweep, points=tuple(replace(point, latency=None) for point in points))
    assert untimed.recommended.target == "macs=0.5"
    asked = replace(points[0], target="fidelity=0.9", fidelity=0.9375, latency=None)
    assert replace(sweep, points=(asked,)).recommended == asked
    assert replace(sweep, points=(replace(asked, target="macs=0.9"),)).recommended is None


def test_realised_is_not_told_of_what_is_not_faster() -> None:
    assert batch_columns([LATENCY, SLOWER])[-1].cells == ["67%", "-"]


def test_options_of_two_numbers_are_told_as_they_are_typed() -> None:
    told = as_command_line("read with `input_range=0,255` and `mean=0.5,0.4,0.3`, without `input_range`")
    assert told == "read with --input-range 0 255 and --mean 0.5,0.4,0.3, without --input-range"
