"""What `reconstruct` costs: seconds against depth, peak memory against the number of inputs, and a network of ResNet-50's size.
Every compression runs in a process of its own; all weights are random.

    python benchmarks/reconstruction_cost.py [--full]

Without --full in under two minutes on two cores: fewer depths and inputs, no ResNet-50. Exits 1 where seconds per layer grow with
depth, or memory with the number of inputs, by more than is asked of them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx
from networks import chain, residual, resnet50

from onnxmerge import compress
from onnxmerge.execution.threads import default_threads

GROWTH_ALLOWED = 1.5  # seconds a layer, deepest against shallowest
MEMORY_ALLOWED_MIB = 1536  # more memory for sixteen times the inputs: the budget of what is held, and some
NETWORKS = {"chain": chain, "residual": residual, "resnet50": lambda depth: resnet50()}


def child(kind: str, depth: int, samples: int) -> None:
    """One compression; prints seconds and peak memory as JSON."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "in.onnx", Path(name) / "out.onnx"
        onnx.save(NETWORKS[kind](depth), source)
        before = peak_mib()
        started = time.perf_counter()
        compress(source, target, method="reconstruct", ratio=0.5, round_to=1, samples=samples, verify=False)
        print(json.dumps({"seconds": time.perf_counter() - started, "before_mib": before, "peak_mib": peak_mib()}))


def peak_mib() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def measured(kind: str, depth: int, samples: int) -> tuple[float, float]:
    """(seconds, peak MiB) of one compression in a process of its own."""
    words = [sys.executable, __file__, "--child", kind, str(depth), str(samples)]
    result = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return result["seconds"], result["peak_mib"]


def depths(full: bool) -> bool:
    """Whether a layer costs as much in a deep network as in a shallow one."""
    print("network   layers  inputs  seconds  seconds/layer  peak MiB")
    good = True
    for kind in ("chain", "residual"):
        each = []
        for depth in (8, 16, 32, 64) if full else (8, 32):
            seconds, peak = measured(kind, depth, 64)
            each.append(seconds / depth)
            print(f"{kind:9} {depth:6} {64:7} {seconds:8.1f} {seconds / depth:14.3f} {peak:9.0f}", flush=True)
        good &= each[-1] < GROWTH_ALLOWED * each[0]
    return good


def memory(full: bool) -> bool:
    """Whether memory is bounded whatever the number of inputs."""
    peaks = []
    for samples in (64, 256, 1024) if full else (64, 512):
        seconds, peak = measured("residual", 8, samples)
        peaks.append(peak)
        print(f"{'residual':9} {8:6} {samples:7} {seconds:8.1f} {seconds / 8:14.3f} {peak:9.0f}", flush=True)
    return peaks[-1] < peaks[0] + MEMORY_ALLOWED_MIB


def main(full: bool) -> int:
    """Exit code 1 where cost grows as it should not."""
    print(f"reconstruct, half of every group, {default_threads()} threads")
    good = [depths(full), memory(full)]
    if full:
        seconds, peak = measured("resnet50", 50, 64)
        print(f"{'resnet50':9} {53:6} {64:7} {seconds:8.1f} {seconds / 53:14.3f} {peak:9.0f}  (224 x 224)", flush=True)
    return int(not all(good))


if __name__ == "__main__":
    if "--child" in sys.argv:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.exit(main("--full" in sys.argv))
