"""One sentence about a result: how much smaller, how much faster or slower, how close, measured on what, and what to do next."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from onnxmerge.errors import Reason
from onnxmerge.report.sentences import sweep_title, total_line
from onnxmerge.report.threshold_wording import held_texts, is_told, limit_text, missed_elsewhere
from onnxmerge.report.wording import closeness, counted, file_size, percent, printable, shortened, two_digits
from onnxmerge.results import (
    Benchmark,
    Compression,
    Fidelity,
    Inspection,
    LatencyComparison,
    Size,
    Sweep,
    SweepPoint,
    ThresholdCheck,
    Verification,
)

HARDLY_SMALLER = 0.02  # share of the parameters and of the MACs below which a model is not called smaller
DOUBTFUL_FIDELITY = 0.5  # below it less than half of an output's variance is explained
USEFUL_INPUTS = 100  # of which enough are held back where a fidelity is searched
MADE_UP = "synthetic inputs can mislead: compare on real ones with `onnxmerge verify` before you use it"
GIVE_REAL = "synthetic inputs can mislead: `calibration` gives real ones"
_NAME_WIDTH = 40  # characters of the name of a processor


@dataclass(frozen=True)
class Verdict:
    """What a reader must know first.

    Attributes
    ----------
    claim : str
        What came out, without a full stop.
    basis : str
        What it was measured on; may be empty.
    advice : str
        What to do next where something is in the way, as whole sentences; may be empty.
    tone : str
        "good", "bad", "warn" or "".
    """

    claim: str
    basis: str = ""
    advice: str = ""
    tone: str = ""

    @property
    def text(self) -> str:
        """All of it on one line, options as Python names them."""
        return " ".join(filter(None, [f"{'; '.join(filter(None, [self.claim, self.basis]))}.", self.advice]))


def verdict_of(result: Inspection | Compression | Verification | Benchmark | Sweep) -> Verdict:
    """The verdict on a result of any verb."""
    if isinstance(result, Compression):
        return _compression(result)
    if isinstance(result, Verification):
        return _verification(result)
    if isinstance(result, Benchmark):
        return _benchmark(result)
    return _sweep(result) if isinstance(result, Sweep) else _inspection(result)


def speed_text(latency: LatencyComparison) -> str:
    """`1.50x as fast [1.45, 1.54]`, or that it is slower, or that no difference could be measured."""
    low, high = latency.speedup_interval
    interval = f"[{low:.2f}, {high:.2f}]{_least_speedup(latency)}"
    if latency.verdict == "not measurable":
        return f"no measurable difference in speed {interval}"
    return f"{'slower: ' * (latency.verdict == 'slower')}{latency.speedup:.2f}x as fast {interval}"


def _least_speedup(latency: LatencyComparison) -> str:
    """` (at least 1.2x)` where that was asked for and kept."""
    least = latency.min_speedup
    return "" if least is None or latency.speedup < least else f" (at least {least:g}x)"


def _compression(result: Compression) -> Verdict:
    latency, fidelity = result.latency, result.fidelity
    size, is_smaller = _size_text(result.before, result.after)
    speed = "" if latency is None else speed_text(latency)
    untimed = "" if latency is not None else "neither compared nor timed" if fidelity is None else "not timed"
    close = "" if fidelity is None else _fidelity_text(fidelity, result.thresholds)
    close = ", ".join(filter(None, [close, *held_texts(result.thresholds)]))
    is_slower = latency is not None and latency.verdict == "slower"
    claim = _sentence([speed, size, close, untimed] if is_slower and is_smaller else [size, speed, close, untimed])
    if result.failures:
        return Verdict(f"{_failed(result.failures)}; {claim[:1].lower()}{claim[1:]}", _basis(fidelity, latency), tone="bad")
    is_doubtful = fidelity is not None and _is_doubtful(fidelity)
    is_measured = latency is None or latency.verdict == "faster"
    is_bad = is_slower or result.after.file_bytes > result.before.file_bytes
    is_less = bool(result.unreached) or is_doubtful or not is_measured or not is_smaller
    tone = "bad" if is_bad else "warn" if is_less else "good" if latency else ""
    if result.unreached:
        claim = f"Target missed: {result.unreached}; {claim[:1].lower()}{claim[1:]}"
    return Verdict(claim, _basis(fidelity, latency), _advice(result, is_smaller), tone)


def _size_text(before: Size, after: Size) -> tuple[str, bool]:
    """What went, and whether the model can be called smaller."""
    shares = [("parameters", before.parameters, after.parameters), ("MACs", before.macs, after.macs)]
    saved = [(what, 1 - own / whole) for what, whole, own in shares if whole]
    if (after.parameters, after.macs) == (before.parameters, before.macs):
        return "nothing was removed", False
    if after.file_bytes > before.file_bytes:
        return f"the file grew from {file_size(before.file_bytes)} to {file_size(after.file_bytes)}", False
    if all(share <= 0 for _, share in saved):
        return "nothing was removed", False
    text = " and ".join(f"{percent(share)} of the {what}" for what, share in saved)
    if max(share for _, share in saved) < HARDLY_SMALLER:
        return f"hardly smaller, by {text}", False
    return f"smaller by {text}", True


def _fidelity_text(fidelity: Fidelity, checks: Sequence[ThresholdCheck] = ()) -> str:
    """`fidelity 0.9876 [0.9812, 0.9920], changed decisions 1.2% [0.7%, 2.1%]`; a fidelity below 0 in words.

    Where their thresholds are among the checks they stand behind them.

    On real inputs a user can count the best classes that change, toss-ups among them: that count stands beside. Synthetic inputs
    are no draw of the user's, so that their interval, which tables have, would be taken for more than it is.
    """
    output, decided = fidelity.worst, fidelity.most_changed
    made_up = "synthetic" in fidelity.input_description
    if output.unmeasured:
        return ""  # which fails, and the failure says it
    interval = "" if made_up else _interval(output.fidelity_low, output.fidelity_high, closeness)
    constant = "outputs further off than a constant: " * (output.fidelity < 0)
    limits = {(check.measure, check.output): f" {limit_text(check)}" for check in checks if is_told(check)}
    text = f"{constant}fidelity {closeness(output.fidelity)}{interval}{limits.get(('fidelity', output.name), '')}"
    if decided is None or decided.changed_decisions is None:
        return text
    known = _interval(decided.changed_decisions_low, decided.changed_decisions_high, two_digits)
    is_counted = not known or decided.top1_agreement is None or any(check.measure == "top-1 agreement" for check in checks)
    same = "" if is_counted else f", same best class {percent(decided.top1_agreement or 0.0)}"
    limit = limits.get(("changed decisions", decided.name), "")
    return f"{text}, changed decisions {two_digits(decided.changed_decisions)}{known}{limit}{same}"


def _interval(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
    return "" if low is None or high is None else f" [{text(low)}, {text(high)}]"


def _advice(result: Compression, is_smaller: bool) -> str:
    """The one thing to do next that matters most: for outputs that are far off, what stays whole, speed, made-up inputs."""
    latency, fidelity = result.latency, result.fidelity
    if is_smaller and fidelity is not None and _is_doubtful(fidelity):
        return _sentences(["most of what makes the outputs differ from input to input is lost: let more stay"])
    if not is_smaller:
        return _sentences(_cures(result))
    slow = () if latency is None else latency.likely_reasons[:1]
    made_up = fidelity is not None and "synthetic" in fidelity.input_description
    return _sentences(slow or ([MADE_UP] if made_up else []))


def _cures(result: Compression) -> list[str]:
    """What lets more go."""
    cures = []
    if result.fidelity is not None and "synthetic" in result.fidelity.input_description:
        believed = "and the figures can be believed: `calibration=DIR`"
        cures.append(f"with {USEFUL_INPUTS} inputs of yours more may go, {believed}")
    if any(refusal.reason is Reason.ALL_KEPT for refusal in result.refusals):
        cures.append("nothing smaller keeps what is asked for; where the outputs may differ more, more goes: `fidelity=0.9`")
    return cures or ([] if result.groups else ["the reasons are listed by layer"])


def _is_doubtful(fidelity: Fidelity) -> bool:
    """Whether less than half of the variance of an output is explained; NaN too."""
    return not fidelity.worst.fidelity >= DOUBTFUL_FIDELITY


def _verification(result: Verification) -> Verdict:
    sizes = [_size_text(result.before, result.after)[0]] if result.before and result.after else []
    accuracy = result.fidelity.accuracy
    right = [] if accuracy is None else [f"right before {percent(accuracy.reference, 2)}, after {percent(accuracy.candidate, 2)}"]
    close = _fidelity_text(result.fidelity, result.thresholds)
    others = missed_elsewhere(result.thresholds, result.fidelity.worst.name)
    claim = ", ".join(filter(None, [close, *others, *held_texts(result.thresholds), *right, *sizes]))
    missed = [check.measure for check in result.thresholds if not check.passes and not check.is_required]
    if result.passed and (missed or result.fidelity.worst.fidelity < 0):
        made_up = "synthetic" in result.fidelity.input_description
        option = "max_changed_decisions" if "changed decisions" in missed else "min_fidelity"
        advice = _sentences([GIVE_REAL if made_up else f"give `{option}` to have such a model fail"])
        return Verdict(f"No threshold was missed, but {claim}", _basis(result.fidelity, None), advice, "warn")
    if result.passed:
        return Verdict(f"Passed: {claim}", _basis(result.fidelity, None), tone="good")
    return Verdict(f"{_failed(result.failures)}; {claim}", _basis(result.fidelity, None), tone="bad")


def _failed(failures: Iterable[str]) -> str:
    return f"Failed: {printable('; '.join(failures))}"


def _benchmark(result: Benchmark) -> Verdict:
    first, batches = result.batches[0], result.batches
    slower = [each for each in batches if each.verdict == "slower"]
    tone = "bad" if slower else "good" if all(each.verdict == "faster" for each in batches) else "warn"
    advice = _sentences(next((each.likely_reasons[:1] for each in (*slower, *batches) if each.likely_reasons), ()))
    macs = "" if first.macs_ratio is None else f"with {percent(first.macs_ratio)} of the MACs"
    failures = [failure for each in batches for failure in each.failures]
    if failures:
        return Verdict(_failed(failures), _place(first), advice, "bad")
    if len(batches) == 1:
        return Verdict(_sentence([speed_text(first), macs]), _basis(None, first), advice, tone)
    claim = f"{_each_batch(batches)}{' ' * bool(macs)}{macs}{_least_speedup(first)}"
    return Verdict(claim, _place(first), advice, tone)


def _each_batch(batches: Iterable[LatencyComparison]) -> str:
    """`Batch 1: faster (1.50x), batch 8: slower (0.83x)`."""
    return _sentence(f"batch {each.batch_size}: {each.verdict} ({each.speedup:.2f}x)" for each in batches)


def _sweep(result: Sweep) -> Verdict:
    slower = [point.target for point in result.points if point.latency is not None and point.latency.verdict == "slower"]
    best, title = result.recommended, sweep_title(result)
    if not any(point.after for point in result.points):
        return Verdict("Failed: no target gave a model", tone="bad")
    marked = f", {', '.join(slower)} slower than the original" if slower else ""
    timed = next((point.latency for point in result.points if point.latency is not None), None)
    basis = "; ".join(filter(None, [_inputs(result.input_description), "" if timed is None else _call(timed)]))
    if best is None or best.fidelity is None or best.after is None:
        need = "both faster than the original and close to it" if timed is not None else "close to the original"
        return Verdict(f"{title}, none of them {need}{marked}", basis, tone="warn")
    speed = "" if best.latency is None else speed_text(best.latency)
    size, close = _size_text(result.before, best.after)[0], _point_text(best, made_up="synthetic" in result.input_description)
    what = ", ".join(filter(None, [size, speed, close]))
    return Verdict(f"{title}; take {best.target}: {what}{marked}", basis, tone="" if slower else "good")


def _point_text(point: SweepPoint, *, made_up: bool) -> str:
    """As `_fidelity_text`, of a point of a sweep."""
    interval = "" if made_up else _interval(point.fidelity_low, point.fidelity_high, closeness)
    text = f"fidelity {closeness(point.fidelity or 0.0)}{interval}"
    if point.changed_decisions is None:
        return text
    known = _interval(point.changed_decisions_low, point.changed_decisions_high, two_digits)
    return f"{text}, changed decisions {two_digits(point.changed_decisions)}{known}"


def _inspection(result: Inspection) -> Verdict:
    if not result.groups:
        return Verdict("No channel group can be compressed", advice=_sentences(["the reasons are listed by layer"]), tone="warn")
    removable = sum(group.removable for group in result.groups)
    channels = f"{removable:,} channels in {counted(len(result.groups), 'group')}"
    advice = _sentences(["how many of them the outputs can do without, onnxmerge compress measures"])
    return Verdict(f"Up to {total_line(result.groups)} can go, with {channels}", advice=advice)


def _basis(fidelity: Fidelity | None, latency: LatencyComparison | None) -> str:
    """Inputs, provider, batch, threads, processor."""
    inputs = "" if fidelity is None else _inputs(fidelity.input_description)
    place = _call(latency) if latency is not None else "" if fidelity is None else fidelity.provider
    return "; ".join(filter(None, [inputs, place]))


def _inputs(description: str) -> str:
    return f"on {printable(description)}" if description else ""


def _call(latency: LatencyComparison) -> str:
    return f"batch {latency.batch_size}, {_place(latency)}"


def _place(latency: LatencyComparison) -> str:
    processor = shortened(latency.processor, _NAME_WIDTH)
    return ", ".join(filter(None, [latency.provider, counted(latency.threads, "thread"), processor]))


def _sentence(parts: Iterable[str]) -> str:
    """The parts with commas between, the first letter large."""
    text = ", ".join(filter(None, parts))
    return text[:1].upper() + text[1:]


def _sentences(clauses: Iterable[str]) -> str:
    return " ".join(f"{_sentence([each])}." for each in clauses)
