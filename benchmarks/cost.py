"""What compressing costs: CPU seconds as multiples of one pass over the same inputs, and peak memory as multiples of the model's
size, against depth, width, input size, number of inputs and number of groups, for a ratio, the default and a sweep.

    python benchmarks/cost.py [--full] [--write]

Each run is a process of its own, on one thread, with random weights and without timing. Every axis has a fitted exponent: 1 says
that twice the depth takes twice as long. Without --full about four minutes on one core; --full adds a larger value to each axis,
a network of ResNet-50's size, and models of 1 and 3 GB. `--write` puts the tables into benchmarks/RESULTS.md. Exits 1 where CPU
time grows too fast.
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
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import onnx
from networks import chain, resnet50, wide_perceptrons
from speed import table, write_block

import onnxmerge
from onnxmerge.execution.processor import processor_name
from onnxmerge.execution.sessions import open_session
from onnxmerge.onnxio.model_files import stored_bytes


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


def measured(command: str, case: Case, known: dict[tuple[str, Case], dict[str, float]]) -> dict[str, float]:
    """`child` in a process of its own."""
    if (command, case) not in known:
        words = [sys.executable, __file__, "--child", command, *map(str, astuple(case))]
        known[command, case] = json.loads(
            subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
    return known[command, case]


def row(command: str, axis: str, value: str, found: dict[str, float]) -> tuple[str, ...]:
    passes, sizes = found["seconds"] / found["pass"], found["mib"] / found["model"]
    return command, axis, value, f"{found['seconds']:.1f}", f"{passes:.0f}", f"{found['mib']:.0f}", f"{sizes:.3g}"


def exponent(values: list[int], quantity: list[float]) -> float:
    """The slope of a line through the logarithms."""
    return float(np.polyfit(np.log(values), np.log(np.maximum(quantity, 1e-3)), 1)[0])


def main() -> int:
    """Exit code 1 where CPU time grows faster than `STEEPEST`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    known: dict[tuple[str, Case], dict[str, float]] = {}
    rows, fits, good = list[tuple[str, ...]](), list[tuple[str, ...]](), True
    for command in COMMANDS:
        for axis, every in AXES.items():
            values = list(every if options.full or axis == "groups" else every[:-1])
            cases = [replace(Case(), **{axis: value}) for value in values]
            cases = [replace(case, groups=case.depth - 1) if axis == "depth" else case for case in cases]
            found = [measured(command, case, known) for case in cases]
            rows += [row(command, axis, str(value), each) for value, each in zip(values, found, strict=True)]
            seconds, mib = (exponent(values, [each[what] for each in found]) for what in ("seconds", "mib"))
            fits.append((command, axis, f"{seconds:.2f}", f"{mib:.2f}"))
            good &= seconds <= STEEPEST[axis]
            print(*rows[-len(values) :], fits[-1], sep="\n", flush=True)
        if options.full:
            large = measured(command, Case(0, 0, 224, 64, 0), known)
            rows.append(row(command, "ResNet-50's size", "224 x 224", large))
            print(rows[-1], flush=True)
    for command, blocks in [(command, blocks) for command in LARGE for blocks in (4, 12) if options.full]:
        found_large = measured(command, Case(0, 0, 0, 256, 0, blocks), known)
        rows.append(row(command, "wide perceptrons", f"{blocks} blocks, {found_large['model'] / 1024:.3g} GiB", found_large))
        print(rows[-1], flush=True)
    place = f"{processor_name(gpu=False)}, 1 thread; onnxmerge {onnxmerge.__version__}."
    lines = table(("command", "axis", "exponent of CPU seconds", "of memory"), 2, fits)
    headers = ("command", "axis", "value", "CPU seconds", "in passes", "MiB", "in model sizes")
    text = "\n".join([place, "", *lines, "", *table(headers, 2, rows)])
    if options.write:
        write_block("cost", text)
    return int(not good)


if __name__ == "__main__":
    if "--child" in sys.argv:
        at = sys.argv.index("--child")
        print(json.dumps(child(sys.argv[at + 1], Case(*map(int, sys.argv[at + 2 :])))))
    else:
        sys.exit(main())
