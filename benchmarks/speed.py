"""How much faster the program makes models, what they still tell, and how much of the saved work became time.

    python benchmarks/speed.py [--only PART[,PART]] [--ways macs=0.5,ratio=0.3] [--batch 1,16] [--again]
    python benchmarks/speed.py MODEL.onnx ...     # other models than those of models/ and ../shared: prints the table alone

Each smaller model is made for the batch and the threads that it is timed with, on 128 real images where there are some.
`--provider cuda` needs a GPU, and runs the settings of CUDA as well. Every row that is done stands in results/speed-PROVIDER.json
and is not made again without --again; the table of RESULTS.md is written from that file. `--large` adds a network of ResNet-50's
size with random weights.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import onnx
from digits import MODELS, ROOT
from networks import resnet50
from results import Results, Row, conditions, measured_here, table
from trained_networks import CIFAR, FOLDED, LENET, RESNET, SHARED, VGG, Network

import onnxmerge
from onnxmerge.evaluation.benchmark import bench_batches
from onnxmerge.execution.providers import Provider, provider_of
from onnxmerge.report.progress import progress_bar
from onnxmerge.report.wording import milliseconds, percent

FOLDER = ROOT / "build" / "speed"
LARGE = FOLDER / "resnet50-random.onnx"
KEY = ("model", "asked", "settings", "batch", "threads")
HEADERS = (
    "model",
    "asked",
    "settings",
    "threads",
    "batch",
    "MACs left",
    "fidelity",
    "right",
    "before",
    "after",
    "times as fast",
    "95 % interval",
    "realised",
    "elsewhere",
)
SUMMARY = ("asked", "settings", "threads", "batch", "results", "faster", "slower", "times as fast, median", "realised, median")
WAYS = ("macs=0.7", "params=0.6", "ratio=0.3", "default")
IMAGES = 128
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no TF32": {"tf32": False},
    "cuDNN search heuristic": {"cudnn_search": "heuristic"},
    "CUDA graph": {"cuda_graph": True},
}


def main() -> None:
    """Make the rows that are missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="auto")
    parser.add_argument("models", nargs="*", type=Path, help="other models than those of the project and beside it")
    parser.add_argument("--ways", default=",".join(WAYS), help="what is asked of the program: default, ratio=R, or a target")
    parser.add_argument("--batch", default="1,16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", metavar="PART[,PART]", help="models whose name contains one of these")
    parser.add_argument("--large", action="store_true", help="also a network of ResNet-50's size, 100 MB")
    parser.add_argument("--again", action="store_true", help="make rows that are there once more")
    arguments = parser.parse_args()
    options = {"provider": arguments.provider, "threads": arguments.threads}
    try:
        provider = provider_of(onnxmerge.RuntimeOptions(**options))
    except onnxmerge.OnnxMergeError as error:
        sys.exit(f"speed.py: {error}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    parts = arguments.only.split(",")
    paths = arguments.models or [path for path in _models(arguments.large) if any(part in path.stem for part in parts)]
    asked = [(way, int(batch)) for way in arguments.ways.split(",") for batch in arguments.batch.split(",")]
    found = Results(f"speed-{provider.option}", KEY, again=arguments.again)
    made = []
    with progress_bar() as progress, nullcontext() if arguments.models else found.told(rendered):
        for number, (path, way, batch) in enumerate((path, *each) for path in paths for each in asked):
            progress(f"{path.stem} {way} {batch}", number / (len(paths) * len(asked)))
            measure = _measure(path, way, batch, options, provider)
            for settings in VARIANTS if provider.option == "cuda" else ("default",):
                key = (path.stem, way, settings, batch, arguments.threads)
                made.append(dict(zip(KEY, key, strict=True)) | measure(settings) if arguments.models
                            else found.row(*key, make=partial(measure, settings)))  # fmt: skip
    print(rendered(made))


def _models(large: bool) -> list[Path]:
    if large:
        onnx.save(resnet50(), LARGE)
    return [*sorted(MODELS.glob("*.onnx")), *sorted((SHARED / "models").glob("*.onnx")), *[LARGE] * large]


def _network(path: Path) -> Network | None:
    """The images of a model, None where there are none."""
    known = {network.model: network for network in (LENET, RESNET, FOLDED, VGG)}
    network = Network(path.stem, VGG.images, CIFAR) if path.stem.startswith("cifar-") else known.get(path.stem)
    return network if network is not None and network.has_images else None


def _asked(way: str, batch: int) -> dict[str, Any]:
    """Options of the program; the time of a batch is predicted where more than a ratio is asked for."""
    name, _, value = way.partition("=")
    if name == "ratio":
        return {"ratio": float(value)}
    return {"batch": batch} if way == "default" else {"batch": batch, "target": way}


def _measure(path: Path, way: str, batch: int, options: dict[str, Any], provider: Provider) -> Callable[[str], Row]:
    """Measures one of VARIANTS; the smaller model is made when the first one is measured."""
    smaller, network = FOLDER / f"smaller-{path.name}", _network(path)

    @cache
    def made() -> Row:
        inputs = {"samples": IMAGES} if network is None else {"calibration": network.inputs("calibration", IMAGES)}
        result = onnxmerge.compress(path, smaller, bench=False, **_asked(way, batch), **inputs, **options)
        fidelity = None if result.fidelity is None else round(result.fidelity.worst.fidelity, 5)
        right = None if network is None else [round(network.accuracy(each), 3) for each in (path, smaller)]
        return {"fidelity": fidelity, "right": right}

    def measure(settings: str) -> Row:
        about = made()
        (each,) = bench_batches(path, smaller, [batch], **options, **VARIANTS[settings]).batches
        places = each.execution.candidate_providers if each.execution is not None else {}
        return {
            **about,
            "provider": provider.name,
            "macs_left": None if each.macs_ratio is None else round(each.macs_ratio, 5),
            "before_ms": float(f"{each.reference.median_ms:.5g}"),
            "after_ms": float(f"{each.candidate.median_ms:.5g}"),
            "speedup": round(each.speedup, 4),
            "interval": [round(end, 4) for end in each.speedup_interval],
            "realised": None if each.realised_saving is None else round(each.realised_saving, 4),
            "elsewhere": [sum(where != each.provider for where in places.values()), len(places)],
            **measured_here({"Python": platform.python_version()}, gpu=provider.option != "cpu"),
        }

    return measure


def rendered(rows: list[Row]) -> str:
    """The tables of RESULTS.md."""
    rows = sorted(rows, key=lambda row: (row["model"], row["threads"], *_place(row)))
    groups = sorted({_group(row) for row in rows}, key=lambda group: (group[2], *_place(dict(zip(GROUP, group, strict=True)))))
    summaries = [_summary([row for row in rows if _group(row) == group], group) for group in groups]
    lines = table(HEADERS, 3, [_cells(row) for row in rows])
    return "\n".join(
        [conditions(rows, *dict.fromkeys(row["provider"] for row in rows)), "", *table(SUMMARY, 2, summaries), "", *lines]
    )


GROUP = ("asked", "settings", "threads", "batch")


def _group(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in GROUP)


def _place(row: Row) -> tuple[Any, ...]:
    """Where a row stands among those of its model."""
    return (
        WAYS.index(row["asked"]) if row["asked"] in WAYS else len(WAYS),
        row["asked"],
        row["batch"],
        list(VARIANTS).index(row["settings"]),
    )


def _summary(rows: list[Row], group: tuple[Any, ...]) -> tuple[str, ...]:
    faster, slower = (
        sum(is_so(*row["interval"]) for row in rows) for is_so in (lambda low, _: low > 1, lambda _, high: high < 1)
    )
    realised = [row["realised"] for row in rows if row["realised"] is not None]
    times = f"{median(row['speedup'] for row in rows):.2f}"
    return (*map(str, group), str(len(rows)), str(faster), str(slower), times, percent(median(realised), 0) if realised else "-")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row["model"],
        row["asked"],
        row["settings"],
        str(row["threads"]),
        str(row["batch"]),
        "-" if row["macs_left"] is None else percent(row["macs_left"]),
        "-" if row["fidelity"] is None else f"{row['fidelity']:.3f}",
        "-" if row["right"] is None else " -> ".join(f"{right:.1f}" for right in row["right"]),
        milliseconds(row["before_ms"]),
        milliseconds(row["after_ms"]),
        f"{row['speedup']:.2f}",
        "{:.2f} to {:.2f}".format(*row["interval"]),
        "-" if row["realised"] is None else percent(row["realised"], 0),
        "{} of {}".format(*row["elsewhere"]),
    )


if __name__ == "__main__":
    main()
