"""`decompose` against a loop over pairs of channels, the way the published neuron-merging code works. Prints the ratio.

The loop goes over removed channels, kept channels and the quantities of each pair, each of them one numpy call; its result is
checked against the vectorised one. Both on one thread, since the loop can use no more. Fails where the ratio is below what is
asked of it.

    python benchmarks/decomposition_speed.py [channels] [weights]
"""

from __future__ import annotations

import os
import sys
import time

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np

from onnxmerge.algorithms.criteria import CRITERIA, keep_best
from onnxmerge.algorithms.decomposition import decompose

THRESHOLD = 0.0
RATIO_NEEDED = 20.0


def loop_scaling(rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Z (n, k), one pair of channels at a time."""
    scaling = np.zeros((rows.shape[0], kept.size))
    for channel in range(rows.shape[0]):
        if channel in kept:
            scaling[channel, np.flatnonzero(kept == channel)] = 1.0
            continue
        similarities, scales = [], []
        for candidate in kept:
            own, other = np.linalg.norm(rows[channel]), np.linalg.norm(rows[candidate])
            similarities.append(rows[channel] @ rows[candidate] / (own * other))
            scales.append(own / other)
        best = int(np.argmax(similarities))
        if similarities[best] > THRESHOLD:
            scaling[channel, best] = scales[best]
    return scaling


def main(channels: int = 512, weights: int = 4608) -> int:
    """Exit code 1 below RATIO_NEEDED."""
    rows = np.random.default_rng(0).normal(size=(channels, weights))
    kept = keep_best(CRITERIA["l2-norm"](rows), channels // 2)
    decompose(rows, kept, THRESHOLD)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        vectorised = decompose(rows, kept, THRESHOLD)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    looped = loop_scaling(rows, kept)
    loop_seconds = time.perf_counter() - start
    np.testing.assert_allclose(vectorised, looped, rtol=1e-9)
    ratio = loop_seconds / float(np.median(seconds))
    print(f"{channels} x {weights}, half removed: loop {loop_seconds * 1e3:.0f} ms, vectorised {np.median(seconds) * 1e3:.1f} ms")
    print(f"ratio {ratio:.0f} (needed {RATIO_NEEDED:.0f})")
    return int(ratio < RATIO_NEEDED)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
