"""`make demo`: compress a trained model, then judge it on real labelled digits. `--model` and `--target` try other ones."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from digits import FACTS, ROOT, DigitsModel, digits_accuracy, models
from rich.console import Console
from rich.text import Text

import onnxmerge
from onnxmerge.report.progress import progress_bar
from onnxmerge.report.sentences import speedup_text
from onnxmerge.report.tables import Column, fitted
from onnxmerge.report.terminal import print_shown, show_compression, show_verdict
from onnxmerge.report.wording import counted, file_size, milliseconds, percent
from onnxmerge.results import Compression, LatencyComparison

BATCH = 64


def main() -> None:
    """Compress, show the report of the program, then size, speed and accuracy side by side."""
    known = {model.path.stem: model for model in models()}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(known), default="digits-resnet-bn")
    parser.add_argument("--target", default="macs=0.5")
    arguments = parser.parse_args()
    model = known[arguments.model]
    source, target = Path(os.path.relpath(model.path)), Path(os.path.relpath(ROOT / "build" / "demo" / model.path.name))
    target.parent.mkdir(parents=True, exist_ok=True)
    command = Text(f"$ {_command(model, source, target, arguments.target)}\n", style="bold")
    print_shown(lambda console: console.print(command))
    with progress_bar() as progress:
        result = onnxmerge.compress(
            source, target, target=arguments.target, round_to=8, bench=False, progress=progress, **model.pixels
        )
    print_shown(lambda console: show_compression(console, result))
    print_shown(lambda console: show_verdict(console, result))
    with progress_bar() as progress:
        progress("timing both models", 0.0)
        latencies = [onnxmerge.bench(model.path, target, batch=batch, **model.pixels) for batch in (1, BATCH)]
    accuracies = digits_accuracy(model, model.path), digits_accuracy(model, target)
    print_shown(lambda console: _show_judgement(console, latencies[0], _table(result, latencies, accuracies)))


def _show_judgement(console: Console, timed: LatencyComparison, table: list[Column]) -> None:
    console.print(Text(f"\nOn {FACTS['data']['test_images']} real labelled digits that neither saw", style="bold"))
    console.print(fitted(table, console.width))
    how = f"timed on {timed.provider}, {counted(timed.threads, 'thread')}; [low, high]: 95 % interval"
    console.print(Text(how, style="dim"))


def _command(model: DigitsModel, source: Path, target: Path, budget: str) -> str:
    words = [
        "--target",
        budget,
        "--round-to",
        "8",
        "--mean",
        ",".join(map(str, model.mean)),
        "--std",
        ",".join(map(str, model.std)),
    ]
    return f"onnxmerge compress {source} \\\n      {target} \\\n      {shlex.join([*words, '--no-bench'])}"


def _table(result: Compression, latencies: list[LatencyComparison], accuracies: tuple[float, float]) -> list[Column]:
    before, after = result.before, result.after
    rows = [
        (
            "parameters",
            f"{before.parameters:,}",
            f"{after.parameters:,}",
            f"{percent(after.parameters / before.parameters)} left",
        ),
        ("MACs", f"{before.macs:,}", f"{after.macs:,}", f"{percent(after.macs / before.macs)} left"),
        (
            "file",
            file_size(before.file_bytes),
            file_size(after.file_bytes),
            f"{percent(after.file_bytes / before.file_bytes)} left",
        ),
        *(_latency_row(latency) for latency in latencies),
        ("accuracy", *(percent(value, 2) for value in accuracies), f"{100 * (accuracies[1] - accuracies[0]):+.2f} points"),
    ]
    cells = list(zip(*rows, strict=True))
    return [Column(header, cells[index], left=index == 0) for index, header in enumerate(("", "before", "after", ""))]


def _latency_row(latency: LatencyComparison) -> tuple[str, str, str, str]:
    medians = milliseconds(latency.reference.median_ms), milliseconds(latency.candidate.median_ms)
    return (f"latency, batch {latency.batch_size}", *medians, speedup_text(latency))


if __name__ == "__main__":
    main()
