"""How much faster the program makes models, what they still tell, and how much of the saved work became time: every model of
models/ and ../shared, and those that are named; with --large also a network of ResNet-50's size with random weights.

Each smaller model is made for the batch and the threads that it is timed with, on 128 real images where there are some.
`--provider cuda` needs a GPU, and runs the settings of CUDA as well. `--write` puts the table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import re
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from accuracy import CIFAR, FOLDED, LENET, RESNET, VGG, Network
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
    "asked",
    "settings",
    "MACs left",
    "fidelity",
    "right",
    "batch",
    "before",
    "after",
    "times as fast",
    "95 % interval",
    "realised",
    "elsewhere",
)
WAYS: dict[str, dict[str, Any]] = {
    "macs=0.7": {"target": "macs=0.7"},
    "params=0.6": {"target": "params=0.6"},
    "ratio=0.3": {"ratio": 0.3},
    "default": {},
}
IMAGES = 128
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "no TF32": {"tf32": False},
    "cuDNN search heuristic": {"cudnn_search": "heuristic"},
    "CUDA graph": {"cuda_graph": True},
}


def main() -> None:
    """A row a model, setting and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--provider", default="auto")
    parser.add_argument("models", nargs="*", type=Path, help="other models than those of the project and beside it")
    parser.add_argument("--ways", default=",".join(WAYS), help="what is asked of the program")
    parser.add_argument("--batch", default="1,16")
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
    found = arguments.models or [path for path in _models(arguments.large) if any(part in path.stem for part in parts)]
    rows = []
    with progress_bar() as progress:
        for number, path in enumerate(found):
            progress(path.stem, number / len(found))
            for way, batch in itertools.product(arguments.ways.split(","), batches):
                rows += _rows(path, options, provider, batch, way)
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


def _network(path: Path) -> Network | None:
    """The images of a model, None where there are none."""
    known = {network.model: network for network in (LENET, RESNET, FOLDED, VGG)}
    network = Network(path.stem, VGG.images, CIFAR) if path.stem.startswith("cifar-") else known.get(path.stem)
    return network if SHARED.is_dir() else None


def _rows(
    path: Path, options: dict[str, Any], provider: Provider, batch: int, way: str
) -> list[tuple[tuple[str, ...], LatencyComparison]]:
    smaller, network, asked = FOLDER / f"smaller-{path.name}", _network(path), WAYS[way]
    inputs = {"samples": IMAGES} if network is None else {"calibration": network.inputs("calibration", IMAGES)}
    result = onnxmerge.compress(path, smaller, batch=batch, bench=False, **asked, **inputs, **options)
    close = "-" if result.fidelity is None else f"{result.fidelity.worst.fidelity:.3f}"
    right = "-" if network is None else " -> ".join(f"{network.accuracy(each):.1f}" for each in (path, smaller))
    found = []
    for settings, changed in VARIANTS.items() if provider.option == "cuda" else {"": VARIANTS[""]}.items():
        for each in bench_batches(path, smaller, [batch], **options, **changed).batches:
            found.append(((path.stem, way, *_row(settings, each, close, right)), each))
    return found


def _row(settings: str, each: LatencyComparison, close: str, right: str) -> tuple[str, ...]:
    places = each.execution.candidate_providers if each.execution is not None else {}
    elsewhere = sum(where != each.provider for where in places.values())
    return (
        settings or "default",
        "-" if each.macs_ratio is None else percent(each.macs_ratio),
        close,
        right,
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


def write_block(name: str, text: str, page: Path = RESULTS) -> None:
    """Between two marks of a page."""
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    written, count = block.subn(lambda match: f"{match[1]}{text}\n{match[2]}", page.read_text(encoding="utf-8"))
    if count != 1:
        sys.exit(f"{page} has no place for {name}")
    page.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
