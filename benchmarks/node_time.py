"""Predicted against measured time: models in random sizes, each ratio of times to the whole model, and the constants fitted anew.

    python benchmarks/node_time.py [MODEL.onnx ...]

Without arguments the models of the project, and those beside it where they are. One thread, one input, the least of twelve
interleaved rounds. The constants of `onnxmerge.graph.node_time` are nonnegative least squares of relative errors; those shown
are of a fit to all other models, so that none predicts itself.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from accuracy import SHARED
from digits import MODELS

from onnxmerge.execution.processor import channel_block
from onnxmerge.execution.sessions import Session, open_session
from onnxmerge.graph.analysed_model import AnalysedModel, analyse_model
from onnxmerge.graph.node_time import CPU, Constants, node_time
from onnxmerge.options import PruningOptions
from onnxmerge.pipeline.candidates import Candidate, candidate_of
from onnxmerge.pruning.decision import decide
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.kept_counts import smallest_count

SIZES = 8
ROUNDS, SECONDS = 12, 0.02
PRUNE = PruningOptions(ratio=0.0, method="prune")


def random_size(analysed: AnalysedModel, number: int, rng: np.random.Generator) -> Candidate:
    """The model with random counts: multiples of 4, 8 or 16 channels."""
    counts = {}
    for group in prunable_groups(analysed.channels, PRUNE)[0]:
        step = np.lcm((4, 8, 16)[number % 3], int(group.conv_groups.max()) + 1)
        count = int(step * max(1, round(rng.uniform(0.3, 1.0) * group.size / step)))
        counts[group.name] = min(group.size, max(count, smallest_count(group)))
    return candidate_of(analysed, decide(analysed, PRUNE, None, counts))


def work(model: AnalysedModel) -> np.ndarray:
    """(constants,) how often each constant enters the predicted time."""
    block, names = channel_block(), Constants._fields
    units = [Constants(*(float(name == other) for other in names)) for name in names]
    return np.array([sum(node_time(n, model.shapes, block, unit).total for n in model.model.graph.nodes) for unit in units])


def least_times(sessions: list[Session], feeds: dict[str, np.ndarray]) -> np.ndarray:
    """(sessions,) seconds of one call."""
    calls = max(1, int(SECONDS / max(1e-6, seconds(sessions[0], feeds, 2))))
    return np.min([[seconds(session, feeds, calls) for session in sessions] for _ in range(ROUNDS)], axis=0)


def seconds(session: Session, feeds: dict[str, np.ndarray], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        session.run(feeds)
    return (time.perf_counter() - started) / calls


def fit(terms: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """(constants,) nonnegative least squares of relative errors, by coordinate descent."""
    relative = terms / measured[:, None]
    scale = np.maximum(np.linalg.norm(relative, axis=0), 1e-300)
    gram, target = (relative / scale).T @ (relative / scale), (relative / scale).sum(0)
    found = np.zeros(len(scale))
    for _ in range(2000):
        for at in np.flatnonzero(gram.diagonal()):
            found[at] = max(0.0, found[at] + (target[at] - gram[at] @ found) / gram[at, at])
    return found / scale


def measure(path: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Work (1 + SIZES, constants) and seconds (1 + SIZES,) of a model and of random sizes of it."""
    analysed, rng = analyse_model(path), np.random.default_rng(0)
    files = [path]
    for number in range(SIZES):
        content = random_size(analysed, number, rng).content
        files.append(folder / f"{path.stem}-{number}.onnx")
        files[-1].write_bytes(content if isinstance(content, bytes) else Path(content.path).read_bytes())
    feeds = analysed.random_feeds(analysed.observed)
    times = least_times([open_session(file, optimise=True, threads=1) for file in files], feeds)
    return np.stack([work(analyse_model(file)) for file in files]), times


def main() -> None:

    given = [Path(name) for name in sys.argv[1:]]
    paths = given or [*sorted(MODELS.glob("*.onnx")), *sorted((SHARED / "models").glob("*.onnx"))]
    with tempfile.TemporaryDirectory() as folder:
        found = {path.stem: measure(path, Path(folder)) for path in paths}
    names = [name for name in found for _ in found[name][1]]
    terms, measured = (np.concatenate([each[part] for each in found.values()]) for part in (0, 1))
    print(f"{'model':24} {'time':>9}  ratio to the whole model, measured/predicted without this model   |error|")
    for name, (own, times) in found.items():
        others = np.array([each != name for each in names])
        predicted = own @ (fit(terms[others], measured[others]) if others.any() else np.array(CPU))
        ratios, expected = times[1:] / times[0], predicted[1:] / predicted[0]
        pairs = " ".join(f"{a:.2f}/{b:.2f}" for a, b in zip(ratios, expected, strict=True))
        print(f"{name:24} {1e3 * times[0]:6.3f} ms  {pairs}  {np.mean(np.abs(expected / ratios - 1)):.1%}", flush=True)
    constants = Constants(*(1e9 * fit(terms, measured)))
    print(" ".join(f"{name}={value:.3g}" for name, value in constants._asdict().items()))


if __name__ == "__main__":
    main()
