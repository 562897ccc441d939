"""Allocated against uniform: at equal parameters and at equal MACs, without data and with unlabelled images; a row a budget.

    python benchmarks/budgets.py [--only PART[,PART]] [--again]

The models of the project in about two minutes, those beside it (lenet, resnet, folded, vgg) in half an hour; --only takes those
whose name holds one of the parts. The reconstruction is the same for both; only how many channels each group keeps differs.
Uniform: one ratio for every group, and for networks with residual streams also one for the groups that a single layer writes.
Test images chose nothing. Every row that is done stands in results/budgets.json and is not made again without --again; the table
of RESULTS.md is written from that file.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from digits import FACTS, MODELS, models
from results import Results, Row, conditions, measured_here, table
from trained_networks import FOLDED, LENET, RESNET, SHARED, VGG, Network

from onnxmerge.data.selection import calibration_and_check_inputs
from onnxmerge.execution.sessions import ModelSource, open_session
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.pipeline.candidate_builder import CandidateBuilder
from onnxmerge.pipeline.compress_options import CompressOptions
from onnxmerge.pipeline.model_measurements import ModelMeasurements
from onnxmerge.pipeline.progress import overall
from onnxmerge.pruning.kept_counts import kept_count
from onnxmerge.report.progress import progress_bar

SHARES = (0.75, 0.5, 0.35)
CALIBRATION = 500
BISECTIONS = 30
KEY = ("network", "inputs", "budget")
WAYS = ("allocated", "uniform", "uniform inside the blocks")


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


def _shared(name: str, network: Network) -> Subject:
    return Subject(name, network.path, {}, network.inputs("calibration", CALIBRATION), network.inputs("test"), network.labels())


def measure(subject: Subject, calibration: Path | None) -> Callable[[str, float], Row]:
    """Measures one budget: for each way what is left, fidelity and percent right; what all share is made for the first one."""

    @cache
    def prepared() -> tuple[CandidateBuilder, float, np.ndarray]:
        options = CompressOptions.from_keywords(subject.pixels if calibration is None else {"calibration": calibration})
        analysed = analyse_model(subject.path)
        given = calibration_and_check_inputs(subject.path, analysed, options.inputs, options.runtime, options.pruning)
        measured = ModelMeasurements(subject.path, analysed, options, *given, overall(None, []))
        return CandidateBuilder(measured, options), *subject.judged(subject.path)

    def row(kind: str, share: float) -> Row:
        builder, right, reference = prepared()
        found = {WAYS[0]: builder.budget.counts_for(kind, share).counts, **_uniform(builder, kind, share)}
        ways = {}
        for way, counts in found.items():
            if counts is not None:
                accuracy, outputs = subject.judged(builder.candidate(counts).content)
                lost = np.square(outputs - reference).sum() / np.square(reference - reference.mean(0)).sum()
                left, fidelity = _share(builder, counts, kind), 1.0 - float(lost)
                ways[way] = {"left": round(left, 5), "fidelity": round(fidelity, 5), "accuracy": round(accuracy, 4)}
        return {
            "reference": round(right, 4),
            "calibration": len(subject.calibration) if calibration else 0,
            "ways": ways,
        } | measured_here({})

    return row


def rendered(rows: list[Row]) -> str:
    """The table of RESULTS.md."""
    order = {kind: at for at, kind in enumerate(dict.fromkeys((row["network"], row["inputs"]) for row in rows))}
    lines = []
    for row in sorted(rows, key=lambda row: order[row["network"], row["inputs"]]):
        found = [row["ways"].get(way) for way in WAYS]
        cells = [f"{each['left']:.1%}, {each['fidelity']:.3f}, {each['accuracy']:.2f} %" if each else "-" for each in found]
        lines.append((row["network"], f"{row['reference']:.2f} %", str(row["calibration"] or "none"), row["budget"], *cells))
    return "\n".join([conditions(rows), "", *table(("network", "right before", "images", "budget", *WAYS), 7, lines)])


def _share(builder: CandidateBuilder, counts: Mapping[str, int], kind: str) -> float:
    """The share of the model that kept counts leave."""
    return builder.budget.costs[kind].total([counts[group.name] for group in builder.groups])


def _uniform(builder: CandidateBuilder, kind: str, share: float) -> dict[str, Mapping[str, int] | None]:
    """The same cost by one ratio: for all groups, and for those that one layer writes where others are there too."""
    ways = {WAYS[1]: {group.name for group in builder.groups}}
    inner = {group.name for group in builder.groups if len(group.producers) == 1}
    if inner != ways[WAYS[1]]:
        ways[WAYS[2]] = inner
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
    """Make the rows that are missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="PART[,PART]")
    parser.add_argument("--again", action="store_true", help="make rows that are there once more")
    arguments = parser.parse_args()
    results, parts = Results("budgets", KEY, again=arguments.again), arguments.only.split(",")
    wanted = [subject for subject in subjects() if any(part in subject.name for part in parts)]
    with progress_bar() as progress, results.told(rendered), tempfile.TemporaryDirectory() as folder:
        for number, subject in enumerate(wanted):
            given = Path(folder) / "calibration.npy"
            np.save(given, subject.calibration)
            for inputs, calibration in (("no data", None), ("data", given)):
                measured = measure(subject, calibration)
                for kind, share in itertools.product(("params", "macs"), SHARES):
                    progress(f"{subject.name} {inputs} {kind}={share}", number / len(wanted))
                    results.row(subject.name, inputs, f"{kind}={share}", make=partial(measured, kind, share))


if __name__ == "__main__":
    main()
