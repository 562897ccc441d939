"""What compressing costs: CPU seconds as multiples of one pass over the same inputs, and peak memory as multiples of the model's
size, against depth, width, input size, number of inputs and number of groups, for a ratio, the default and a sweep.

    python benchmarks/cost.py [--full] [--only PART[,PART]] [--again]

Each run is a process of its own, on one thread, with random weights and without timing. Every axis has a fitted exponent: 1 says
that twice the depth takes twice as long. Without --full about four minutes on one core; --full adds a larger value to each axis,
a network of ResNet-50's size, and models of 1 and 3 GB. --only takes runs whose command, axis or value holds one of the parts.
Every run that is done stands in results/cost.json and is not made again without --again; the tables of RESULTS.md are written
from that file. Exits 1 where CPU time grows too fast.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import onnx
from networks import chain, resnet50, wide_perceptrons
from results import Results, Row, conditions, measured_here, table

import onnxmerge
from onnxmerge.execution.sessions import open_session
from onnxmerge.onnxio.model_files import stored_bytes
from onnxmerge.report.progress import progress_bar


@dataclass(frozen=True)
class Case:
    """A chain of convolutions, or a ResNet-50 where there is no depth, or wide perceptrons where there are blocks."""

    depth: int = 8
    width: int = 32
    extent: int = 16
    inputs: int = 64
    groups: int = 7
    blocks: int = 0


AXES: dict[str, tuple[int, ...]] = {
    "depth": (4, 8, 16, 32),
    "width": (16, 32, 64, 128),
    "extent": (8, 16, 32, 64),
    "inputs": (32, 64, 128, 512),
    "groups": (1, 3, 7),
}
"""The values of each axis, the others as in `Case()`; the last one with --full alone. Of more depth all groups shrink."""
COMMANDS: dict[str, dict[str, Any]] = {"ratio": {"ratio": 0.5}, "default": {}, "sweep": {"targets": "macs=0.75,0.5,0.25"}}
LARGE: dict[str, dict[str, Any]] = {each: {"ratio": 0.3, "method": each} for each in ("prune", "merge")}
"""For models of 1 and 3 GB, with --full; memory without that of a pass."""
KEY = ("command", "depth", "width", "extent", "inputs", "groups", "blocks")
STEEPEST = {"depth": 1.5, "width": 3.2, "extent": 2.3, "inputs": 1.3, "groups": 1.3}
"""Greatest exponent of CPU seconds: products of samples grow with the third power of the width, pixels with the second of the
extent."""
PASS_SECONDS = 0.5
"""How long passes are repeated at least, to be timed."""


def child(command: str, case: Case) -> dict[str, float]:
    """One command; CPU seconds, those of a pass, MiB beyond what importing took, and of the model."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "in.onnx"
        settings: dict[str, Any] = {"samples": case.inputs, "threads": 1, "bench": False}
        if case.blocks:
            wide_perceptrons(source, case.blocks)
        else:
            model = chain(case.depth, case.width, case.extent) if case.depth else resnet50()
            onnx.save(model, source)
        if case.groups:
            settings["include"] = tuple(node.name for node in model.graph.node if node.op_type == "Conv")[: case.groups]
        before, started = peak_mib(), time.process_time()
        if command == "sweep":
            onnxmerge.sweep(source, **COMMANDS[command], **settings)
        else:
            onnxmerge.compress(source, Path(name) / "out.onnx", **(COMMANDS | LARGE)[command], **settings)
        seconds, peak = time.process_time() - started, peak_mib()
        size = stored_bytes(source) / 2**20
        return {"seconds": seconds, "pass": pass_seconds(source, case.inputs), "mib": peak - before, "model": size}


def pass_seconds(source: Path, inputs: int) -> float:
    """CPU seconds of the model once over so many inputs."""
    session = open_session(source, optimise=True, threads=1)
    shape = [size if isinstance(size, int) else 32 for size in session.inputs[0].dims]
    feeds = {session.inputs[0].name: np.random.default_rng(0).random(shape, np.float32)}
    session.run(feeds)
    started, runs = time.process_time(), 0
    while time.process_time() - started < PASS_SECONDS:
        session.run(feeds)
        runs += 1
    return (time.process_time() - started) / runs * inputs / 32


def peak_mib() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def measured(command: str, case: Case) -> Row:
    """`child` in a process of its own."""
    words = [sys.executable, __file__, "--child", command, *map(str, astuple(case))]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: float(f"{value:.4g}") for name, value in found.items()} | measured_here({})


def runs() -> Iterator[tuple[str, str, str, Case, bool]]:
    """Every run: command, axis, value, the case, and whether it takes --full."""
    for command in COMMANDS:
        for axis, values in AXES.items():
            for value in values:
                case = replace(Case(), **{axis: value})
                case = replace(case, groups=case.depth - 1) if axis == "depth" else case
                yield command, axis, str(value), case, axis != "groups" and value == values[-1]
        yield command, "ResNet-50's size", "224 x 224", Case(0, 0, 224, 64, 0), True
    for command in LARGE:
        for blocks in (4, 12):
            yield command, "wide perceptrons", f"{blocks} blocks", Case(0, 0, 0, 256, 0, blocks), True


def key(command: str, case: Case) -> tuple[Any, ...]:
    """What tells a row from others; several axes share a run."""
    return (command, *astuple(case))


def rendered(rows: list[Row]) -> str:
    """The tables of RESULTS.md."""
    known = {tuple(row[name] for name in KEY): row for row in rows}
    told = [
        (command, axis, value, known[key(command, case)])
        for command, axis, value, case, _ in runs()
        if key(command, case) in known
    ]
    fits = [(command, axis, *(f"{slope:.2f}" for slope in slopes)) for (command, axis), slopes in exponents(rows).items()]
    headers = ("command", "axis", "value", "CPU seconds", "in passes", "MiB", "in model sizes")
    axes = table(("command", "axis", "exponent of CPU seconds", "of memory"), 2, fits)
    return "\n".join([conditions(rows, "1 thread"), "", *axes, "", *table(headers, 2, [_cells(*each) for each in told])])


def _cells(command: str, axis: str, value: str, row: Row) -> tuple[str, ...]:
    passes, sizes = row["seconds"] / row["pass"], row["mib"] / row["model"]
    size = f", {row['model'] / 1024:.3g} GiB" if axis == "wide perceptrons" else ""
    return command, axis, value + size, f"{row['seconds']:.1f}", f"{passes:.0f}", f"{row['mib']:.0f}", f"{sizes:.3g}"


def exponents(rows: list[Row]) -> dict[tuple[str, str], tuple[float, float]]:
    """By command and axis: the slopes of lines through the logarithms of CPU seconds and of memory."""
    known = {tuple(row[name] for name in KEY): row for row in rows}
    points: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for command, axis, value, case, _ in runs():
        row = known.get(key(command, case))
        if row is not None and axis in AXES:
            points.setdefault((command, axis), []).append((float(value), row["seconds"], max(row["mib"], 1e-3)))
    logs = {which: np.log(found).T for which, found in points.items() if len(found) > 1}
    return {which: (_slope(x, seconds), _slope(x, mib)) for which, (x, seconds, mib) in logs.items()}


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.polyfit(x, y, 1)[0])


def main() -> int:
    """Exit code 1 where CPU time grows faster than `STEEPEST`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="", metavar="PART[,PART]")
    parser.add_argument("--again", action="store_true", help="make runs that are there once more")
    options = parser.parse_args()
    found, parts = Results("cost", KEY, again=options.again), options.only.split(",")
    wanted = {
        key(command, case): (command, axis, value, case)
        for command, axis, value, case, full in runs()
        if (options.full or not full) and any(part in f"{command} {axis} {value}" for part in parts)
    }
    with progress_bar() as progress, found.told(rendered):
        for number, (which, (command, axis, value, case)) in enumerate(wanted.items()):
            progress(f"{command} {axis} {value}", number / len(wanted))
            print(*_cells(command, axis, value, found.row(*which, make=partial(measured, command, case))), sep=" | ", flush=True)
    return int(any(seconds > STEEPEST[axis] for (_, axis), (seconds, _) in exponents(found.rows).items()))


if __name__ == "__main__":
    if "--child" in sys.argv:
        at = sys.argv.index("--child")
        print(json.dumps(child(sys.argv[at + 1], Case(*map(int, sys.argv[at + 2 :])))))
    else:
        sys.exit(main())
