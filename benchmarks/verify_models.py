"""`make verify`: compress, verify and time every model in models/, on the CPU and where it works on CUDA.

Exit 1 where outputs differ too much, a file is not smaller, accuracy falls, or a result is measurably slower.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from digits import MODELS, ROOT, digits_accuracy, models
from rich.text import Text

import onnxmerge
from onnxmerge.execution.providers import resolve_provider
from onnxmerge.report.progress import progress_bar
from onnxmerge.report.sentences import speedup_text
from onnxmerge.report.tables import Column, fitted
from onnxmerge.report.terminal import print_shown
from onnxmerge.report.wording import closeness, percent
from onnxmerge.results import LatencyComparison

DIGITS = {model.path: model for model in models()}
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}  # of the other models: see models/README.md
HEADERS = ("model", "params", "MACs", "fidelity", "on", "batch", "as fast", "accuracy", "")


def main() -> None:
    """A row for each model, provider and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratio", type=float, help="default: what the program does when nothing is asked of it")
    parser.add_argument("--batch", default="1,16")
    parser.add_argument("--most-points-lost", type=float, default=2.0, help="accuracy on the real digits")
    parser.add_argument("--only", default="", metavar="PART", help="models whose name contains this")
    arguments = parser.parse_args()
    providers = ["cpu", *(["cuda"] if resolve_provider("auto").option == "cuda" else [])]
    batches = [int(part) for part in arguments.batch.split(",")]
    folder = ROOT / "build" / "verify"
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, ...]] = []
    found = [path for path in sorted(MODELS.glob("*.onnx")) if arguments.only in path.stem]
    with progress_bar() as progress:
        for number, path in enumerate(found):
            progress(path.stem, number / len(found))
            rows += _rows(path, folder / path.name, arguments.ratio, arguments.most_points_lost, providers, batches)
    columns = [
        Column(header, cells, name=header == "model", left=header in ("model", "on", ""))
        for header, cells in zip(HEADERS, zip(*rows, strict=True), strict=True)
    ]
    asked = "default options" if arguments.ratio is None else f"--ratio {arguments.ratio}"
    title = Text(f"{asked}: what is left of parameters and MACs; accuracy on real digits", style="bold")
    print_shown(lambda console: console.print(title, fitted(columns, console.width), sep="\n"))
    failures = [f"{row[0]}: {row[-1]}" for row in rows if row[-1] != "ok"]
    sys.exit("\n".join(failures) or 0)


def _rows(
    path: Path, target: Path, ratio: float | None, most_lost: float, providers: list[str], batches: list[int]
) -> list[tuple[str, ...]]:
    digits = DIGITS.get(path)
    pixels: dict[str, Any] = CIFAR if digits is None else digits.pixels
    result = onnxmerge.compress(path, target, ratio=ratio, bench=False, provider="cpu", **pixels)
    accuracy, lost = "-", 0.0
    if digits is not None:
        before, after = digits_accuracy(digits, path), digits_accuracy(digits, target)
        accuracy, lost = f"{percent(before, 2)} to {percent(after, 2)}", 100 * (before - after)
    rows: list[tuple[str, ...]] = []
    for provider in providers:
        options: dict[str, Any] = {"provider": provider, **pixels}
        limits: dict[str, Any] = {} if ratio is None else {"min_cosine": 0.9}  # a ratio keeps no fidelity
        verification = onnxmerge.verify(path, target, require_smaller=True, **limits, **options)
        for latency in onnxmerge.bench_batches(path, target, batches, **options).batches:
            failures = [*verification.failures, *_slower(latency), *([f"{-lost:+.1f} points"] if lost > most_lost else [])]
            rows.append(
                (
                    path.stem,
                    percent(result.after.parameters / result.before.parameters),
                    percent(result.after.macs / result.before.macs),
                    closeness(verification.fidelity.worst.fidelity),
                    provider,
                    str(latency.batch_size),
                    speedup_text(latency),
                    accuracy,
                    "; ".join(failures) or "ok",
                )
            )
    return rows


def _slower(latency: LatencyComparison) -> list[str]:
    if latency.verdict != "slower":
        return []
    why = f" ({latency.likely_reasons[0]})" if latency.likely_reasons else ""
    return [f"slower at batch {latency.batch_size} on {latency.provider}{why}"]


if __name__ == "__main__":
    main()
