"""How much faster smaller models are, and how much of the saved work became time: every model of models/ and ../shared; with
--large also a network of ResNet-50's size with random weights.

`--provider cuda` needs a GPU, and runs the settings of CUDA as well. `--write` puts the table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from digits import MODELS, ROOT
from networks import resnet50

import onnxmerge
from onnxmerge.evaluation.benchmark import bench_batches
from onnxmerge.execution.processor import processor_name
from onnxmerge.execution.providers import Provider, provider_of
from onnxmerge.report.progress import progress_bar
from onnxmerge.report.wording import milliseconds, percent
from onnxmerge.results import LatencyComparison

SHARED = ROOT.parent / "shared" / "models"
FOLDER = ROOT / "build" / "speed"
LARGE = FOLDER / "resnet50-random.onnx"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
HEADERS = (
    "model",
    "removed",
    "settings",
    "MACs left",
    "batch",
    "before",
    "after",
    "times as fast",
    "95 % interval",
    "realised",
    "elsewhere",
)
VARIANTS = {
    "": {},
    "no TF32": {"tf32": False},
    "cuDNN search heuristic": {"cudnn_search": "heuristic"},
    "CUDA graph": {"cuda_graph": True},
}


def main() -> None:
    """A row a model, setting and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--provider", default="auto")
    parser.add_argument("--ratio", default="0.3,0.5", help="removed from every group; 0.3 leaves about half of the MACs")
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", default="", metavar="PART[,PART]", help="models whose name contains one of these")
    parser.add_argument("--large", action="store_true", help="also a network of ResNet-50's size, 100 MB")
    parser.add_argument("--write", action="store_true", help="into benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    options = {"provider": arguments.provider, "threads": arguments.threads}
    try:
        provider = provider_of(onnxmerge.RuntimeOptions(**options))
    except onnxmerge.OnnxMergeError as error:
        sys.exit(f"speed.py: {error}")
    batches = [int(part) for part in arguments.batch.split(",")]
    FOLDER.mkdir(parents=True, exist_ok=True)
    parts = arguments.only.split(",")
    found = [path for path in _models(arguments.large) if any(part in path.stem for part in parts)]
    rows = []
    with progress_bar() as progress:
        for number, path in enumerate(found):
            progress(path.stem, number / len(found))
            for ratio in map(float, arguments.ratio.split(",")):
                rows += _rows(path, options, provider, batches, ratio)
    text = "\n".join([_conditions(provider, rows[0][1]), "", *table(HEADERS, 3, [row for row, _ in rows])])
    print(text)
    if not SHARED.is_dir():
        print(f"\nonly the project's own models: {SHARED} is not there")
    if arguments.write:
        write_block(provider.option, text)


def _models(large: bool) -> list[Path]:
    if large:
        onnx.save(resnet50(), LARGE)
    return [*sorted(MODELS.glob("*.onnx")), *sorted(SHARED.glob("*.onnx")), *[LARGE] * large]


def _rows(
    path: Path, options: dict[str, Any], provider: Provider, batches: list[int], ratio: float
) -> list[tuple[tuple[str, ...], LatencyComparison]]:
    smaller = FOLDER / f"smaller-{path.name}"
    onnxmerge.compress(path, smaller, ratio=ratio, round_to=1, method="prune", verify=False, provider="cpu")
    found = []
    for settings, changed in VARIANTS.items() if provider.option == "cuda" else [("", {})]:
        for each in bench_batches(path, smaller, batches, **options, **changed).batches:
            found.append(((path.stem, percent(ratio, 0), *_row(settings, each)), each))
    return found


def _row(settings: str, each: LatencyComparison) -> tuple[str, ...]:
    places = each.execution.candidate_providers if each.execution is not None else {}
    elsewhere = sum(where != each.provider for where in places.values())
    return (
        settings or "default",
        "-" if each.macs_ratio is None else percent(each.macs_ratio),
        str(each.batch_size),
        milliseconds(each.reference.median_ms),
        milliseconds(each.candidate.median_ms),
        f"{each.speedup:.2f}",
        "{:.2f} to {:.2f}".format(*each.speedup_interval),
        "-" if each.realised_saving is None else percent(each.realised_saving, 0),
        f"{elsewhere} of {len(places)}",
    )


def _conditions(provider: Provider, first: LatencyComparison) -> str:
    versions = f"onnxmerge {onnxmerge.__version__}, ONNX Runtime {onnxruntime.__version__}, Python {platform.python_version()}"
    return f"{provider.name}, {processor_name(gpu=provider.option != 'cpu')}, {first.threads} threads; {versions}."


def table(headers: tuple[str, ...], words: int, rows: list[tuple[str, ...]]) -> list[str]:
    """The lines of a table in Markdown; the first `words` columns are words, the others numbers."""
    lines = [headers, ("---",) * words + ("---:",) * (len(headers) - words), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def write_block(name: str, text: str) -> None:
    """Between two marks of RESULTS.md."""
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    written, count = block.subn(lambda match: f"{match[1]}{text}\n{match[2]}", RESULTS.read_text(encoding="utf-8"))
    if count != 1:
        sys.exit(f"{RESULTS} has no place for {name}")
    RESULTS.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
