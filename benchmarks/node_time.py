"""Predicted against measured time: models in random sizes, each ratio of times to the whole model, and the constants fitted anew.

    python benchmarks/node_time.py [MODEL.onnx ...]

Without arguments the models of the project, and those beside it where they are. One thread, one input and eight, the least of
twelve interleaved rounds. The constants of `onnxmerge.graph.node_time` are nonnegative least squares of relative errors; those
shown are of a fit to all other models, so that none predicts itself.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from digits import MODELS
from trained_networks import SHARED

from onnxmerge.errors import OnnxMergeError
from onnxmerge.execution.processor import channel_block
from onnxmerge.execution.sessions import Session, open_session
from onnxmerge.graph.analysed_model import AnalysedModel, analyse_model
from onnxmerge.graph.layouts import layouts
from onnxmerge.graph.node_time import CPU, Constants, change_time, node_time
from onnxmerge.onnxio.model_saving import save
from onnxmerge.options import PruningOptions
from onnxmerge.pipeline.candidates import Candidate, candidate_of
from onnxmerge.pruning.decision import decide
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.kept_counts import smallest_count

SIZES = 8
BATCHES = (1, 8)
"""Inputs that are run at once: tensors that caches hold, and larger ones."""
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


def work(model: AnalysedModel, repeats: float) -> np.ndarray:
    """(constants,) how often each constant enters the predicted time of a batch that is so many times the analysed one."""
    block, names, nodes, shapes = channel_block(), Constants._fields, model.model.graph.nodes, model.shapes
    laid_out = layouts(nodes, shapes, block)

    def time(cost: Constants) -> float:
        changes = sum(change_time(tensor, shapes, repeats, cost) for tensor in laid_out.changes)
        return changes + sum(node_time(node, shapes, laid_out, block, repeats, cost).total for node in nodes)

    return np.array([time(Constants(*(float(name == other) for other in names))) for name in names])


def least_times(sessions: list[Session], feeds: dict[str, np.ndarray]) -> np.ndarray:
    """(sessions,) seconds of one call."""
    calls = max(1, int(SECONDS / max(1e-6, seconds(sessions[0], feeds, 2))))
    return np.asarray(np.min([[seconds(session, feeds, calls) for session in sessions] for _ in range(ROUNDS)], axis=0))


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
    return np.asarray(found / scale)


def measure(path: Path, folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each batch that runs: work (1 + SIZES, constants) and seconds (1 + SIZES,) of a model and of random sizes of it."""
    analysed, rng = analyse_model(path), np.random.default_rng(0)
    files = [path]
    for number in range(SIZES):
        files.append(folder / f"{path.stem}-{number}.onnx")
        save(random_size(analysed, number, rng).model, files[-1])
    sessions, feeds = [open_session(file, optimise=True, threads=1) for file in files], analysed.random_feeds(analysed.observed)
    models, found = [analyse_model(file) for file in files], []
    for repeats in BATCHES:
        batch = {name: np.repeat(value, repeats, 0) if value.ndim else value for name, value in feeds.items()}
        try:
            times = least_times(sessions, batch)
        except OnnxMergeError:
            continue  # a fixed batch
        found.append((np.stack([work(model, repeats) for model in models]), times))
    return found


def main() -> None:
    given = [Path(name) for name in sys.argv[1:]]
    paths = given or [*sorted(MODELS.glob("*.onnx")), *sorted((SHARED / "models").glob("*.onnx"))]
    with tempfile.TemporaryDirectory() as folder:
        found = {path.stem: measure(path, Path(folder)) for path in paths}
    rows = [(name, *each) for name, batches in found.items() for each in batches]
    names = np.array([name for name, _, times in rows for _ in times])
    terms, measured = (np.concatenate([row[part] for row in rows]) for part in (1, 2))
    print(f"{'model':24} {'time':>9}  ratio to the whole model, measured/predicted without this model   |error|")
    for name, own, times in rows:
        others = names != name
        predicted = own @ (fit(terms[others], measured[others]) if others.any() else np.array(CPU))
        ratios, expected = times[1:] / times[0], predicted[1:] / predicted[0]
        pairs = " ".join(f"{a:.2f}/{b:.2f}" for a, b in zip(ratios, expected, strict=True))
        print(f"{name:24} {1e3 * times[0]:6.3f} ms  {pairs}  {np.mean(np.abs(expected / ratios - 1)):.1%}", flush=True)
    constants = Constants(*(1e9 * fit(terms, measured)))
    print(" ".join(f"{name}={value:.3g}" for name, value in constants._asdict().items()))


if __name__ == "__main__":
    main()
