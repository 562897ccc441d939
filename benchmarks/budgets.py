"""Allocated against uniform: at equal parameters and at equal MACs, without data and with unlabelled images; a row a budget.

    python benchmarks/budgets.py [no-data] [data] [NAME ...]

NAME: lenet, resnet, folded, vgg or a model of the project; without one those of the project, in about two minutes. The
reconstruction is the same for both; only how many channels each group keeps differs. Uniform: one ratio for every group, and for
networks with residual streams also one for the groups that a single layer writes. Test images chose nothing.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import FOLDED, LENET, RESNET, SHARED, VGG
from accuracy import Network as SharedNetwork
from digits import FACTS, MODELS, models

from onnxmerge.data.selection import calibration_and_check_inputs
from onnxmerge.execution.sessions import ModelSource, open_session
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.pipeline.candidate_builder import CandidateBuilder
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.model_measurements import ModelMeasurements
from onnxmerge.pipeline.progress import overall
from onnxmerge.pruning.kept_counts import kept_count

SHARES = (0.75, 0.5, 0.35)
CALIBRATION = 500
BISECTIONS = 30
OWN = tuple(model.path.stem for model in models())


@dataclass(frozen=True)
class Subject:
    """A network with inputs to solve on and test inputs with labels."""

    name: str
    path: Path
    pixels: dict[str, Any]
    calibration: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray

    def judged(self, content: ModelSource) -> tuple[float, np.ndarray]:
        """Percent right, and the outputs."""
        session = open_session(content, optimise=False)
        name, step = session.inputs[0].name, 100
        parts = [next(iter(session.run({name: self.inputs[i : i + step]}).values())) for i in range(0, len(self.inputs), step)]
        outputs = np.concatenate(parts)
        return 100.0 * float((outputs.argmax(1) == self.labels).mean()), outputs


def subjects() -> Iterator[Subject]:
    """The project's models, then those beside the project where they are."""
    with np.load(MODELS / FACTS["data"]["file"], allow_pickle=False) as archive:
        data = dict(archive)
    for model in models():
        mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (model.mean, model.std))
        given, seen = ((data[part].astype(np.float32) / np.float32(255) - mean) / std for part in ("calibration", "images"))
        yield Subject(model.path.stem, model.path, model.pixels, given, seen, data["labels"])
    if SHARED.is_dir():
        for name, network in {"lenet": LENET, "resnet": RESNET, "folded": FOLDED, "vgg": VGG}.items():
            yield _shared(name, network)


def _shared(name: str, network: SharedNetwork) -> Subject:
    labels = np.load(SHARED / "data" / f"{network.images}_test.npz")["labels"]
    given = network.inputs("calibration", CALIBRATION), network.inputs("test")
    return Subject(name, network.path, {}, *given, labels)


def rows(subject: Subject, calibration: Path | None) -> Iterator[str]:
    """For each budget: what is left, then fidelity and accuracy, allocated and uniform."""
    options = CompressOptions.from_keywords(subject.pixels if calibration is None else {"calibration": calibration})
    analysed = analyse_model(subject.path)
    solving, checking = calibration_and_check_inputs(subject.path, analysed, options.inputs, options.runtime, options.pruning)
    measured = ModelMeasurements(subject.path, analysed, options, solving, checking, overall(None, []))
    builder = CandidateBuilder(measured, options)
    _, reference = subject.judged(subject.path)
    for kind in ("params", "macs"):
        for share in SHARES:
            found: dict[str, Mapping[str, int]] = {"allocated": builder.budget.counts_for(kind, share).counts}
            found |= {way: counts for way, counts in _uniform(builder, kind, share).items() if counts is not None}
            told = []
            for way, counts in found.items():
                accuracy, outputs = subject.judged(builder.candidate(counts).content)
                lost = np.square(outputs - reference).sum() / np.square(reference - reference.mean(0)).sum()
                left = _share(builder, counts, kind)
                told.append(f"{way} {left:5.1%} {1 - lost:6.3f} {accuracy:6.2f} %")
            yield f"{subject.name:18} {'data' if calibration else 'no data':7} {kind}={share:<4} | " + " | ".join(told)


def _share(builder: CandidateBuilder, counts: Mapping[str, int], kind: str) -> float:
    """The share of the model that kept counts leave."""
    return builder.budget.costs[kind].total([counts[group.name] for group in builder.groups])


def _uniform(builder: CandidateBuilder, kind: str, share: float) -> dict[str, Mapping[str, int] | None]:
    """The same cost by one ratio: for all groups, and for those that one layer writes where others are there too."""
    ways = {"uniform": {group.name for group in builder.groups}}
    inner = {group.name for group in builder.groups if len(group.producers) == 1}
    if inner != ways["uniform"]:
        ways["uniform inside"] = inner
    return {way: _by_ratio(builder, kind, share, names) for way, names in ways.items()}


def _by_ratio(builder: CandidateBuilder, kind: str, share: float, names: set[str]) -> Mapping[str, int] | None:
    def at(ratio: float) -> dict[str, int]:
        return {group.name: kept_count(group, ratio) if group.name in names else group.size for group in builder.groups}

    low, high = 0.0, 0.99
    if _share(builder, at(high), kind) > share:
        return None
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if _share(builder, at(middle), kind) <= share else (middle, high)
    return at(high)


def main() -> None:
    """Print the rows of what the command line names."""
    parts = [part for part in ("no-data", "data") if part in sys.argv[1:]] or ["no-data", "data"]
    names = [name for name in sys.argv[1:] if name not in ("no-data", "data")]
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects():
            if subject.name not in (names or OWN):
                continue
            np.save(Path(folder) / "calibration.npy", subject.calibration)
            print(f"{subject.name:18} reference {subject.judged(subject.path)[0]:6.2f} %", flush=True)
            for part in parts:
                for row in rows(subject, Path(folder) / "calibration.npy" if part == "data" else None):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
