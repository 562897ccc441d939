"""`make cuda`: all that is claimed of CUDA, in one run of at most ten minutes; correctness first, then speed.

For every model of models/ and ../shared, a network of ResNet-50's size with random weights, and a smaller version of each: the
outputs on CUDA without TF32 against those on the CPU, and the share of its nodes that ran on CUDA. Then how many times as fast
the smaller version is, at several batch sizes, with TF32 and without. Exit 1 where an output differs by more than rounding.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from digits import MODELS, ROOT
from networks import resnet50
from results import table
from trained_networks import SHARED

import onnxmerge
from onnxmerge.data.selection import inputs_for
from onnxmerge.evaluation.benchmark import bench_batches
from onnxmerge.execution.first_run import first_observations
from onnxmerge.execution.placement import placement
from onnxmerge.execution.processor import processor_name
from onnxmerge.execution.providers import CPU, Provider, provider_of
from onnxmerge.execution.sessions import open_session
from onnxmerge.graph.analysed_model import shapes_of
from onnxmerge.report.wording import milliseconds

FOLDER = ROOT / "build" / "cuda"
MOST_DIFFERENCE = 1e-5  # of |y - y'| / |y|: what the order of float32 sums explains in networks of this depth
CHECKED = 16  # inputs that are compared
CORRECT_HEADERS = ("model", "version", "largest relative difference", "nodes on the provider", "")
SPEED_HEADERS = ("model", "TF32", "batch", "before", "after", "as fast", "95 % interval", "verdict")


def main() -> None:
    """Two tables, printed row by row so that what was measured stays if the time runs out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--provider", default="cuda", help="another one in the place of CUDA, to try the script")
    parser.add_argument("--batch", default="1,16,64")
    parser.add_argument("--ratio", type=float, default=0.3, help="removed from every group of the smaller versions")
    parser.add_argument("--only", default="", metavar="PART", help="models whose name contains this")
    parser.add_argument("--minutes", type=float, default=9.0, help="no timing begins later; what is left out is said")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    try:
        provider = provider_of(onnxmerge.RuntimeOptions(provider=arguments.provider))
    except onnxmerge.OnnxMergeError as error:
        sys.exit(f"cuda.py: {error}")
    gpu = provider.name != CPU.name
    print(f"{provider.name}, {processor_name(gpu)}; onnxmerge {onnxmerge.__version__}, ONNX Runtime {onnxruntime.__version__}\n")
    FOLDER.mkdir(parents=True, exist_ok=True)
    pairs = {path: FOLDER / f"smaller-{path.name}" for path in _models() if arguments.only in path.stem}
    for path, smaller in pairs.items():
        onnxmerge.compress(path, smaller, ratio=arguments.ratio, method="prune", verify=False, provider="cpu")
    wrong = 0
    print("\n".join(table(CORRECT_HEADERS, 2, [])))
    for version, path in ((what, path) for pair in pairs.items() for what, path in zip(("whole", "smaller"), pair, strict=True)):
        difference, here, nodes = compared(path, provider)
        is_right = difference <= MOST_DIFFERENCE and here > 0
        wrong += not is_right
        _print_row(
            path.stem.removeprefix("smaller-"), version, f"{difference:.1e}", f"{here} of {nodes}", "ok" if is_right else "WRONG"
        )
    print("\n" + "\n".join(table(SPEED_HEADERS, 2, [])))
    batches = [int(part) for part in arguments.batch.split(",")]
    left_out = [path.stem for path, smaller in pairs.items() if not _timed(path, smaller, arguments.provider, gpu, batches, end)]
    print(f"\nnot timed, or not whole, within {arguments.minutes:g} minutes: {', '.join(left_out)}" if left_out else "")
    sys.exit(f"{wrong} models give other outputs than on the CPU, or did not run on {provider.name}" if wrong else 0)


def _models() -> Iterator[Path]:
    yield from (*sorted(MODELS.glob("*.onnx")), *sorted((SHARED / "models").glob("*.onnx")))
    large = FOLDER / "resnet50-random.onnx"
    onnx.save(resnet50(), large)
    yield large


def compared(path: Path, provider: Provider) -> tuple[float, int, int]:
    """The largest relative difference of an output from the CPU's, and how many nodes of how many ran on the provider."""
    reference, candidate = (open_session(path, each, optimise=False) for each in (CPU, provider))
    inputs = inputs_for(
        reference, shapes_of(first_observations(path, label=str(path)).first), onnxmerge.InputOptions(), count=CHECKED
    )
    feeds = inputs.repeated(CHECKED)
    expected, outputs = reference.run(feeds), candidate.run(feeds)
    differences = [np.linalg.norm(outputs[name] - y) / np.linalg.norm(y) for name, y in expected.items()]
    places = list(placement(candidate).values())
    return float(max(differences)), places.count(provider.name), len(places)


def _timed(path: Path, smaller: Path, provider: str, gpu: bool, batches: list[int], end: float) -> bool:
    """Print a row for each setting and batch size; False where the time was over before all were timed."""
    for tf32 in (True, False) if gpu else (None,):
        for batch in batches:
            if time.monotonic() > end:
                return False
            (found,) = bench_batches(path, smaller, (batch,), provider=provider, tf32=tf32).batches
            low, high = found.speedup_interval
            times = [milliseconds(each.median_ms) for each in (found.reference, found.candidate)]
            setting = "-" if tf32 is None else "on" if tf32 else "off"
            interval = f"{low:.2f} to {high:.2f}"
            _print_row(path.stem, setting, str(found.batch_size), *times, f"{found.speedup:.2f}", interval, found.verdict)
    return True


def _print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
