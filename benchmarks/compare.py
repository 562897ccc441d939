"""Accuracy without fine-tuning: the program beside other methods and packages, on the same weights, images and kept widths.

    python benchmarks/compare.py [--only PART[,PART]] [--again]

Every row that is done stands in benchmarks/results/compare.json with its settings, versions and processor; a row that is there is
not made again without --again. The tables of benchmarks/RESULTS.md and the plots are written from that file alone. Networks are
those of ../shared and models/, and those that models/train_paper.py trains; one that is absent has a row that says how it is
made. Needs `pip install onnxmerge[rivals]`; a method that cannot run says why. --only takes rows whose model, share or method
holds one of the parts; --tables writes the tables and the plots afresh.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from digits import ROOT
from results import FOLDER, Row, measured_here, save, write_block
from rivals.cases import CASES, Case, NotRun, widths
from rivals.methods import DRAWS, METHODS, Method
from rivals.tables import headline, plots, rendered
from trained_networks import Trained

from onnxmerge import RuntimeOptions
from onnxmerge.evaluation.latency import compare_latency
from onnxmerge.execution.providers import provider_of
from onnxmerge.execution.sessions import open_pair
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.report.progress import progress_bar

FOUND = FOLDER / "compare.json"
README = ROOT / "README.md"
TIME_LIMIT = 1200  # seconds of one row
BATCH, TIMED_SECONDS, ROUNDS, MIN_RUNS = 16, 1.0, 6, 5  # of the latency of a row: enough for two digits
PACKAGES = ("numpy", "onnx")
DISTRIBUTIONS = {"torch_pruning": "torch-pruning"}


def main() -> None:
    """Make the rows that are missing, and write the tables and the plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="PART[,PART]")
    parser.add_argument("--again", action="store_true", help="make rows that are there once more")
    parser.add_argument("--tables", action="store_true", help="write the tables and the plots alone")
    arguments = parser.parse_args()
    found = read()
    wanted = [
        (case, method)
        for case in CASES
        for method in METHODS
        if method.is_for(case)
        and any(part in f"{case.path.stem} {case.share} {method.name}" for part in arguments.only.split(","))
    ]
    try:
        if not arguments.tables:
            _make(found, wanted, again=arguments.again)
    finally:  # interrupted too: the tables are those of the file
        save(FOUND, ordered(found))
        write_block("compare", rendered(ordered(found)))
        write_block("headline", headline(ordered(found)), README)
        for model, text in plots(ordered(found)).items():
            (FOLDER / f"compare-{model}.svg").write_text(text, encoding="utf-8")


def _make(found: dict[str, Any], wanted: list[tuple[Case, Method]], *, again: bool) -> None:
    """Make the rows that are missing and write each into the file."""
    wanted = [(case, method) for case, method in wanted if case.is_needed]
    for path, network in {case.path: case.network for case, _ in wanted if not case.is_present}.items():
        made_by = f"; {network.command}" if isinstance(network, Trained) else ""
        print(f"not run: {path} or its images are absent{made_by}", flush=True)
    wanted = [(case, method) for case, method in wanted if case.is_present]
    with progress_bar() as progress, tempfile.TemporaryDirectory() as folder:
        for number, (case, method) in enumerate(wanted):
            progress(f"{case.path.stem} {case.share} {method.name}", number / len(wanted))
            if again or found["rows"].get(key(case, method), {"again": True}).get("again"):
                _refer(found, case)
                found["rows"][key(case, method)] = row = _row(case, method, Path(folder) / "out.onnx")
                save(FOUND, ordered(found))
                print(_told(row), flush=True)


def read() -> dict[str, Any]:
    """What was found so far: facts of the models, and rows by their key."""
    stored = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {"references": {}, "rows": []}
    return {**stored, "rows": {_key_of(row): row for row in stored["rows"]}}


def ordered(found: dict[str, Any]) -> dict[str, Any]:
    """Rows in the order of the cases and methods (those of earlier methods go), and what makes the networks that are absent."""
    keys = [key(case, method) for case in CASES for method in METHODS]
    rows = [found["rows"][each] for each in keys if each in found["rows"]]
    references = {row["model"]: found["references"][row["model"]] for row in rows}
    networks = [case.network for case in CASES if case.instead_of is None and case.path.stem not in references]
    absent = {network.model: network.command for network in networks if isinstance(network, Trained)}
    return {"references": references, "absent": absent, "rows": rows}


def key(case: Case, method: Method) -> str:
    """What tells a row from others."""
    return " | ".join((case.path.stem, case.share, method.name, method.chooser, str(method.calibration)))


def _key_of(row: Row) -> str:
    return " | ".join((row["model"], row["share"], row["method"], row["chooser"], str(row["calibration"])))


def _refer(found: dict[str, Any], case: Case) -> None:
    if case.path.stem not in found["references"]:
        size, (images, kind) = case.analysed.size, case.network.decided
        accuracy = round(case.network.accuracy(case.path), 4)
        facts = {"accuracy": accuracy, "images": images, "kind": kind, "parameters": size.parameters, "macs": size.macs}
        found["references"][case.path.stem] = facts


def _told(row: Row) -> str:
    what = f"{row['accuracy']:6.2f} %" if "accuracy" in row else f"not run: {row['reason']}"
    return f"{row['model']:20} {row['share']:12} {row['method']:26} {row['chooser']:34} {row['calibration']:5} {what}"


def _row(case: Case, method: Method, target: Path) -> Row:
    """Make one model, each step in a process of its own, and measure it."""
    row: Row = {"model": case.path.stem, "share": case.share, "method": method.name, "chooser": method.chooser}
    row |= {"family": method.family, "calibration": method.calibration}
    first, *others = method.settings()
    settings = first
    for step in ("choose", "make") if others else ("make",):
        told = _in_child(step, case, method, settings, target)
        if "reason" in told:
            return row | told
        settings = told.pop("settings", settings)
        row |= told
    size, before = analyse_model(target).size, case.analysed.size
    draws = [case.network.accuracy(target)]
    row |= {
        "settings": settings,
        "parameters_left": round(size.parameters / before.parameters, 5),
        "macs_left": round(size.macs / before.macs, 5),
        "same_widths": sorted(widths(target)) == _expected_widths(case, target.with_name("prune.onnx")),
        **_latency(case, target),
        **measured_here(_versions(method)),
    }
    for seed in range(1, DRAWS if method.is_random else 1):
        told = _in_child("make", case, method, {**settings, "seed": seed}, target)
        if "reason" in told:
            return {**row, **told}
        draws.append(case.network.accuracy(target))
    return row | {"accuracy": round(fmean(draws), 4), "draws": [round(each, 4) for each in draws]}


@cache
def _expected_widths(case: Case, pruned: Path) -> list[tuple[int, ...]]:
    next(each for each in METHODS if each.name == "prune").write(case, {"method": "prune"}, pruned)
    return sorted(widths(pruned))


def _latency(case: Case, target: Path) -> dict[str, Any]:
    pair = open_pair(case.path, target, provider_of(RuntimeOptions(provider="cpu")), optimise=True, threads=1)
    feeds = {pair[0].inputs[0].name: case.inputs(BATCH)}
    found = compare_latency(*pair, feeds, seconds=TIMED_SECONDS, min_runs=MIN_RUNS, rounds=ROUNDS)
    interval = [round(found.latency_ratio_low, 4), round(found.latency_ratio_high, 4)]
    return {"latency_ratio": round(found.latency_ratio, 4), "latency_interval": interval}


def _versions(method: Method) -> dict[str, str]:
    names = (*PACKAGES, *(DISTRIBUTIONS.get(each, each) for each in method.needs))
    return {name: metadata.version(name) for name in names}


def _in_child(step: str, case: Case, method: Method, settings: dict[str, Any], target: Path) -> dict[str, Any]:
    words = [sys.executable, __file__, "--child", step, key(case, method), json.dumps(settings), str(target)]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return {"reason": f"took more than {TIME_LIMIT} seconds", "again": True}
    if done.returncode:
        sys.exit(f"{key(case, method)} failed:\n{done.stderr}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _child(step: str, case: Case, method: Method, settings: dict[str, Any], target: Path) -> dict[str, Any]:
    """The settings (step "choose"), or what making the model cost, without loading the libraries."""
    try:
        for name in method.needs:
            import_module(name)
    except ImportError as error:
        return {"reason": f"{error.name} is not installed", "again": True}
    before, seconds = _peak_mib(), _cpu_seconds()
    try:
        if step == "choose":
            return {"settings": method.chosen(case, target)}
        method.write(case, settings, target)
    except NotRun as error:
        return {"reason": str(error)}
    return {"cpu_seconds": round(_cpu_seconds() - seconds, 2), "memory_mib": round(_peak_mib() - before, 1)}


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return float(sum(usage.ru_utime + usage.ru_stime for usage in usages))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    if "--child" in sys.argv:
        step, asked, settings, target = sys.argv[sys.argv.index("--child") + 1 :]
        case, method = next(each for each in itertools.product(CASES, METHODS) if key(*each) == asked)
        print(json.dumps(_child(step, case, method, json.loads(settings), Path(target))))
    else:
        main()
