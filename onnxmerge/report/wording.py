"""Names, numbers and reasons as people read them.

Node names come from strangers' files: nothing of them reaches a terminal raw.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.filesize import decimal

from onnxmerge.errors import Refusal
from onnxmerge.results import Accuracy, Execution, GroupResult, LatencyComparison, Size

MUST_STAY, LEFT, NOTES = "Must stay whole", "Left as it was", "Notes on these groups"
COMPARED = "Outputs against the reference's"
TIMED = "Latency of one call, measured in turn"
SHARES = "shares: the layers that write or read the group's channels; groups overlap"
_MANY_NODES, _NAME = 6, 36
_SETTINGS = {"use_tf32": "TF32", "enable_cuda_graph": "CUDA graph", "trt_cuda_graph_enable": "CUDA graph"}


@dataclass(frozen=True)
class SharedReason:
    """One reason, the layers that it keeps whole, and the nodes and tensors where it was met ("" where nothing was said)."""

    text: str
    layers: tuple[str, ...]
    obstacles: tuple[str, ...]

    def told(self, width: int) -> str:
        """The reason, with the only place where it was met; layers are listed apart."""
        lone = self.obstacles[0] if len(self.obstacles) == 1 and self.layers else ""
        return f"{self.text} ({shortened(lone, width)})" if lone and printable(lone) not in self.text else self.text


def printable(text: str) -> str:
    """One line without control characters."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in " ".join(text.split()))


def as_command_line(text: str) -> str:
    """Options named as the command line names them: "`round_to` and `verify=False`" -> "--round-to and --no-verify"."""

    def named(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2]
        return f"--no-{name}" if value == "False" else f"--{name} {value}" if value else f"--{name}"

    return re.sub(r"`([a-z][a-z0-9_]*)(?:=(\w+))?`", named, text)


def shortened(text: str, width: int) -> str:
    """At most `width` characters, the middle left out: the end of a node's name says more than its middle."""
    text = printable(text)
    if len(text) <= width:
        return text
    if width < 3:
        return text[:width]
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def percent(share: float, digits: int = 1) -> str:
    """0.7571 -> '75.7%'; what is not all never reads as 100 %."""
    text = f"{share:.{digits}%}"
    return f"{min(share, 0.9999):.2%}" if text == f"{1:.{digits}%}" and share < 1 else text


def closeness(value: float) -> str:
    """A number that is 1 at best: four decimals, and near 1 what is missing from it."""
    if not math.isfinite(value):
        return str(value)
    return f"1 - {1 - value:.1e}" if 0.99995 <= value < 1 else f"{value:.4f}"


def small(value: float) -> str:
    """A number that is 0 at best."""
    return "0" if value == 0 else f"{value:.4f}" if 0.001 <= value < 1000 else f"{value:.2g}"


def decibels(value: float) -> str:
    """A level, endless where nothing differs."""
    return "identical" if value == math.inf else f"{value:.1f} dB"


def milliseconds(value: float) -> str:
    """Three significant digits, for calls of microseconds as well."""
    digits = next((digits for limit, digits in ((0.01, 5), (0.1, 4), (10, 3), (100, 2)) if value < limit), 1)
    return f"{value:,.{digits}f} ms"


def file_size(count: int) -> str:
    """715293 -> '715.3 kB'."""
    return decimal(count)


def reasons(refusals: Iterable[Refusal]) -> list[SharedReason]:
    """Refusals with the same reason together, in the order they came.

    Beside refusals that name an obstacle, one without speaks of its own node, which is then one more obstacle.
    """
    return _together((refusal.where, as_command_line(refusal.text), refusal.obstacle) for refusal in refusals)


def notes(groups: Iterable[GroupResult]) -> list[SharedReason]:
    """The notes of groups, the same ones together."""
    return _together((group.name, group.note, "") for group in groups if group.note)


def _together(found: Iterable[tuple[str, str, str]]) -> list[SharedReason]:
    """(layer, reason, obstacle) by reason."""
    layers: dict[str, list[str]] = {}
    obstacles: dict[str, list[str]] = {}
    alone: dict[str, list[str]] = {}
    for where, text, obstacle in found:
        layers.setdefault(text, []).extend([where] if obstacle else [])
        obstacles.setdefault(text, []).extend([obstacle] if obstacle else [])
        alone.setdefault(text, []).extend([] if obstacle else [where])
    shared = []
    for text, stuck in layers.items():
        places = [*obstacles[text], *alone[text]] if stuck else []
        names = stuck or alone[text]
        shared.append(
            SharedReason(printable(text), tuple(dict.fromkeys(filter(None, names))), tuple(dict.fromkeys(filter(None, places))))
        )
    return shared


def groups_title(groups: Sequence[GroupResult], *, compressed: bool) -> str:
    """How many groups there are, or that there is none."""
    if not groups:
        return "No channel group was made smaller." if compressed else "No channel group can shrink."
    named = f"{len(groups)} channel group{'s' * (len(groups) != 1)}"
    return f"{named} made smaller" if compressed else f"{named} can shrink"


def sensitivity_line(inputs: str) -> str:
    """What the columns of removed shares hold, and on what they were measured."""
    return (
        f"25 %, 50 %, 75 %: fidelity of the worst output with so much of one group removed, the others whole; only "
        f"what reads it repaired, so mostly a lower bound; measured on {printable(inputs)}"
    )


def size_line(size: Size) -> str:
    """What a model weighs."""
    return f"{size.parameters:,} parameters, {size.macs:,} MACs for one input, {file_size(size.file_bytes)}"


def speed_interval(latency: LatencyComparison) -> tuple[float, float]:
    """How many times as fast, low and high."""
    return 1 / latency.latency_ratio_high, 1 / latency.latency_ratio_low


def verdict_of(latency: LatencyComparison) -> str:
    """What the interval allows to say."""
    low, high = speed_interval(latency)
    return "faster" if low > 1 else "slower" if high < 1 else "no difference that can be measured"


def speed_line(latency: LatencyComparison) -> str:
    """The ratio, its interval and the verdict."""
    low, high = speed_interval(latency)
    return f"{latency.speedup:.2f}x as fast, 95 % interval {low:.2f}x to {high:.2f}x: {verdict_of(latency)}"


def work_line(latency: LatencyComparison) -> str | None:
    """How much of the work that was saved became time; None where it was not counted or none was saved."""
    if latency.macs_ratio is None or latency.realised_saving is None:
        return None
    saved = f"{percent(1 - latency.macs_ratio)} of the MACs and {percent(1 - latency.latency_ratio)} of the time saved"
    return f"{saved}: {percent(latency.realised_saving, 0)} of what was possible if time followed the MACs"


def macs_line(latency: LatencyComparison) -> str | None:
    """What `realised` speaks of."""
    if latency.macs_ratio is None:
        return None
    return f"{percent(1 - latency.macs_ratio)} of the MACs saved; realised: the share of them that became time saved"


def timing_lines(latency: LatencyComparison) -> list[str]:
    """What was timed, where, and after how much warm-up."""
    threads = f"{latency.threads} thread{'s' * (latency.threads != 1)}"
    lines = [f"timed: {latency.candidate.runs:,} calls of each, batch {latency.batch_size}, {latency.provider}, {threads}"]
    if latency.warm_up_runs:
        rounds = f"{latency.rounds} round{'s' * (latency.rounds != 1)}"
        lines.append(f"in {rounds} of freshly opened sessions, warmed up until stable: {latency.warm_up_runs} calls")
    return lines


def execution_lines(execution: Execution | None) -> list[str]:
    """A fallback and what was set of the provider."""
    if execution is None:
        return []
    fallback = f"on the CPU because CUDA does not work here: {printable(execution.fallback_reason)}"
    stated = [_setting(key, value) for key, value in execution.provider_settings.items()]
    return [*([fallback] if execution.fallback_reason else []), *([f"CUDA: {', '.join(stated)}"] if stated else [])]


def elsewhere_lines(execution: Execution | None, provider: str) -> list[str]:
    """Nodes that ran on another provider, for each model that has some."""
    if execution is None:
        return []
    lines = []
    for side, placed in (("reference", execution.reference_providers), ("candidate", execution.candidate_providers)):
        elsewhere = [node for node, where in placed.items() if where != provider]
        names = listed(elsewhere, _MANY_NODES, _NAME)
        lines += [f"{len(elsewhere)} of {len(placed)} nodes of the {side} ran elsewhere: {names}"] if elsewhere else []
    return lines


def accuracy_line(accuracy: Accuracy) -> str:
    """Before and after, by the user's labels."""
    points = f"{100 * (accuracy.candidate - accuracy.reference):+.2f} points"
    return f"accuracy by the labels: {percent(accuracy.reference, 2)} before, {percent(accuracy.candidate, 2)} after ({points})"


def _setting(key: str, value: str) -> str:
    if key in _SETTINGS:
        return f"{_SETTINGS[key]} {'on' if value in ('1', 'True', 'true') else 'off'}"
    return f"cuDNN search {value.lower()}" if key == "cudnn_conv_algo_search" else f"{key} {value}"


def listed(names: Iterable[str], most: int, width: int) -> str:
    """Names with commas between, long ones shortened, those beyond `most` counted."""
    names = list(names)
    shown = ", ".join(shortened(name, width) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
