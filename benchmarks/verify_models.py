"""`make verify`: compress, verify and time every model in models/. Exit 1 where one fails or loses too much accuracy."""

from __future__ import annotations

import argparse
import sys

from digits import ROOT, DigitsModel, digits_accuracy, models
from rich.console import Console
from rich.text import Text

import onnxmerge
from onnxmerge.report.progress import progress_bar
from onnxmerge.report.tables import Column, fitted
from onnxmerge.report.wording import closeness, percent

HEADERS = ("model", "params", "MACs", "fidelity", "speed", "accuracy", "after", "")


def main() -> None:
    """A row a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratio", type=float, help="default: what the program does when nothing is asked of it")
    parser.add_argument("--most-points-lost", type=float, default=2.0, help="accuracy on the real digits")
    arguments = parser.parse_args()
    asked = "default options" if arguments.ratio is None else f"--ratio {arguments.ratio}"
    folder = ROOT / "build" / "verify"
    folder.mkdir(parents=True, exist_ok=True)
    rows, found = [], models()
    with progress_bar() as progress:
        for number, model in enumerate(found):
            progress(model.path.stem, number / len(found))
            rows.append(_row(model, arguments.ratio, arguments.most_points_lost))
    console = Console()
    columns = [
        Column(header, cells, name=header == "model", left=header in ("model", ""))
        for header, cells in zip(HEADERS, zip(*rows, strict=True), strict=True)
    ]
    console.print(Text(f"{asked}: what is left of parameters and MACs; accuracy on real digits", style="bold"))
    console.print(fitted(columns, console.width))
    sys.exit(any(row[-1] != "ok" for row in rows))


def _row(model: DigitsModel, ratio: float | None, most_lost: float) -> tuple[str, ...]:
    target = ROOT / "build" / "verify" / model.path.name
    result = onnxmerge.compress(model.path, target, ratio=ratio, **model.pixels)
    verification = onnxmerge.verify(model.path, target, **model.pixels)
    latency = onnxmerge.bench(model.path, target, **model.pixels)
    before, after = digits_accuracy(model, model.path), digits_accuracy(model, target)
    lost = 100 * (before - after)
    verdict = "outputs differ" if not verification.passed else f"{-lost:+.1f} points" if lost > most_lost else "ok"
    return (
        model.path.stem.removeprefix("digits-"),
        percent(result.after.parameters / result.before.parameters),
        percent(result.after.macs / result.before.macs),
        closeness(verification.fidelity.worst.fidelity),
        f"{latency.speedup:.2f}x",
        percent(before, 2),
        percent(after, 2),
        verdict,
    )


if __name__ == "__main__":
    main()
