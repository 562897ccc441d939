"""`make fuzz`: thousands of random graphs, and for each that fails the command that reproduces it, with the model made smaller.

make fuzz                                              2,000 graphs for pruning, and fewer for the slower checks
make fuzz ARGS="--check merge --seeds 5000:9000"       other ones
make fuzz ARGS="--check prune --seeds 17"              one: shrunk, and printed
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from random_graphs import generate
from random_graphs.faults import OUTCOMES, Outcome
from random_graphs.shrink import described, shrunk

DEFAULT_COUNTS = {"prune": 2000, "merge": 1000, "reconstruct": 300, "limit": 200}
"""Graphs for each check: about five CPU minutes."""


def outcome_of(check: str, seed: int) -> Outcome:
    """What became of one graph."""
    with tempfile.TemporaryDirectory() as folder:
        return OUTCOMES[check](generate(seed), Path(folder))


def print_shrunk(check: str, seed: int) -> None:
    """The smallest model that fails in the same way."""
    with tempfile.TemporaryDirectory() as folder:
        kind = OUTCOMES[check](generate(seed), Path(folder)).kind
        graph = shrunk(generate(seed), lambda candidate: OUTCOMES[check](candidate, Path(folder)).kind == kind)
        print(f"shrunk: {OUTCOMES[check](graph, Path(folder)).text}\n{described(graph.model)}", flush=True)


def main(arguments: list[str]) -> int:
    """Exit code 1 where a graph fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", choices=OUTCOMES, help="one check; all of them by default")
    parser.add_argument("--seeds", help="one seed, or a range FIRST:LAST; by default seeds that no test has")
    given = parser.parse_args(arguments)
    first, _, last = (given.seeds or "").partition(":")
    failures = 0
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for check in [given.check] if given.check else OUTCOMES:
            start = int(first or 10_000)
            seeds = range(start, int(last) if last else start + (1 if first else DEFAULT_COUNTS[check]))
            began, kinds, faults = time.perf_counter(), Counter[str](), []
            for seed, outcome in zip(seeds, pool.map(outcome_of, [check] * len(seeds), seeds, chunksize=4), strict=True):
                kinds[outcome.kind] += 1
                if outcome.is_fault:
                    faults.append(seed)
                    print(f"{check} {seed}: {outcome.kind}: {outcome.text}", flush=True)
                    print(f'    make fuzz ARGS="--check {check} --seeds {seed}"', flush=True)
            print(f"{check}: {dict(kinds)}, {len(seeds) / (time.perf_counter() - began):.1f} graphs a second", flush=True)
            failures += len(faults)
            if faults:
                print_shrunk(check, faults[0])
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
