"""The commands. Each imports what it runs when it runs, so that --help does not wait for numpy, ONNX and rich."""

from pathlib import Path
from typing import Any

import click

import onnxmerge
from onnxmerge.cli import options as opt
from onnxmerge.cli.options import FILE, combined
from onnxmerge.errors import OptionError, VerificationError


@click.command("inspect", short_help="List the channel groups of a model, and why other layers must stay whole.")
@click.argument("model", type=FILE)
@click.option("--sensitivity", is_flag=True, help="Also measure the fidelity with 25, 50 and 75 % of each group removed.")
@combined(opt.METHOD, opt.GROUPS, opt.INPUTS, opt.RUNTIME, opt.REPORT, opt.JSON)
def inspect_command(model: Path, reports: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """List the channel groups of MODEL, what shrinks with each of them, and why other layers must stay whole.

    --scope, --include and --exclude choose among the groups. The other options say how --sensitivity measures, always on the CPU.
    """
    from onnxmerge.cli import output

    output.check_report_paths(reports, _files(options, model=model), [model])
    with output.progress_bar() as progress:
        result = onnxmerge.inspect(model, progress=progress, **_given(options))
    output.show(result, as_json, reports)


@click.command("compress", short_help="Write a smaller model, compared with the original and timed.")
@click.argument("model", type=FILE)
@click.argument("output", type=FILE)
@combined(opt.SIZE, opt.METHOD, opt.GROUPS, opt.INPUTS, opt.RUNTIME)
@click.option("--save-plan", type=FILE, metavar="FILE.json", help="Write which channels of which group stayed, for --plan.")
@click.option("--in-place", is_flag=True, help="OUTPUT may be MODEL itself, which is then replaced.")
@combined(opt.VERIFY, opt.BENCH, opt.BATCH, opt.CUDA_GRAPH)
@combined(opt.THRESHOLDS, opt.SIZE_LIMITS, opt.MIN_SPEEDUP, opt.REPORT, opt.JSON)
def compress_command(model: Path, output: Path, reports: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Remove channels of MODEL, repair the layers behind them, compare the outputs, and write OUTPUT.

    Exit code 1, and no OUTPUT, where the result misses a threshold.
    """
    from onnxmerge.cli import output as out

    out.check_report_paths(reports, _files(options, model=model, output=output), [model])
    with out.progress_bar() as progress:
        result = onnxmerge.compress(model, output, progress=progress, **_given(options))
    out.show(result, as_json, reports)


@click.command("sweep", short_help="Compress a model to several sizes: the curve of size and speed against fidelity.")
@click.argument("model", type=FILE)
@combined(opt.SWEEP, opt.MINIMIZE, opt.METHOD, opt.GROUPS, opt.INPUTS, opt.RUNTIME)
@combined(opt.BENCH, opt.BATCH, opt.CUDA_GRAPH, opt.REPORT, opt.JSON)
def sweep_command(
    model: Path, out: Path | None, dask: str | None, reports: tuple[Path, ...], as_json: bool, **options: Any
) -> None:
    """Compress MODEL once for each target, and measure the fidelity and the latency of every result.

    A target is params, macs or latency and the share of it that may remain, fidelity and its least value, or ratio and the share
    of channels to remove: macs=0.75,0.5,params=0.5. Exit code 1 where no target gave a model.
    """
    from onnxmerge.cli import output
    from onnxmerge.parallel.dask import executor_at

    output.check_report_paths(reports, _files(options, model=model), [model])
    if dask is not None and options["jobs"] is not None:
        raise OptionError("`jobs` and `dask` both say where the points are made: drop one of the two")
    with output.progress_bar() as progress, executor_at(dask) as executor:
        result = onnxmerge.sweep(model, folder=out, executor=executor, progress=progress, **_given(options))
    output.show(result, as_json, reports)
    if not any(point.after for point in result.points):
        raise VerificationError(f"no target gave a model; {result.points[0].target}: {result.points[0].failure}")


@click.command("verify", short_help="Measure how close the outputs of one model are to those of another.")
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@combined(opt.INPUTS)
@click.option("--labels", type=FILE, help="Also report the accuracy of both: .npy or .npz, a class for each calibration input.")
@click.option("--layers", is_flag=True, help="Also compare layer by layer, and name the first one that differs.")
@click.option("--save-worst", type=FILE, metavar="FILE.npz", help="Write the input that differs most, for --calibration.")
@combined(opt.RUNTIME, opt.THRESHOLDS, opt.SIZE_LIMITS, opt.REPORT, opt.JSON)
def verify_command(reference: Path, candidate: Path, reports: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Compare the outputs of CANDIDATE with those of REFERENCE on the same inputs.

    Exit code 1 where a threshold is missed, or where NaN or infinity appear. Without a threshold of the outputs a mean cosine
    similarity of 0.9 is needed, and between models of the same layer sizes outputs that are equal but for rounding. --layers also
    fails where a weight changed its sign, and between models of the same layer sizes at any difference beyond rounding.
    """
    from onnxmerge.cli import output

    output.check_report_paths(reports, _files(options, reference=reference, candidate=candidate), [reference, candidate])
    with output.progress_bar() as progress:
        progress("comparing outputs", 0.0)
        result = onnxmerge.verify(reference, candidate, **_given(options))
    output.show(result, as_json, reports)
    if not result.passed:
        raise VerificationError("; ".join(result.failures))


@click.command("bench", short_help="Measure how much faster one model is than another.")
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@combined(opt.INPUTS, opt.RUNTIME, opt.BATCHES, opt.CUDA_GRAPH, opt.MIN_SPEEDUP, opt.REPORT, opt.JSON)
def bench_command(
    reference: Path, candidate: Path, batch: tuple[int, ...] | None, reports: tuple[Path, ...], as_json: bool, **options: Any
) -> None:
    """Measure latency and throughput of REFERENCE and CANDIDATE, called in turn.

    Exit code 1 where CANDIDATE misses --min-speedup.
    """
    from onnxmerge.cli import output

    output.check_report_paths(reports, _files(options, reference=reference, candidate=candidate), [reference, candidate])
    with output.progress_bar() as progress:
        progress("timing both models", 0.0)
        result = onnxmerge.bench_batches(reference, candidate, batch or (None,), **_given(options))
    output.show(result, as_json, reports)
    failures = [failure for each in result.batches for failure in each.failures]
    if failures:
        raise VerificationError("; ".join(failures))


COMMANDS = (inspect_command, compress_command, sweep_command, verify_command, bench_command)
"""In the order in which they are used, and listed by --help."""

_FILE_NAMES = {
    "model": "the model",
    "output": "the output",
    "reference": "the reference",
    "candidate": "the candidate",
    "calibration": "the calibration inputs",
    "labels": "the labels",
    "plan": "the plan",
    "save_plan": "the plan to be saved",
    "save_worst": "the worst input",
}
"""Argument or option that names a file -> what messages call it."""


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, so that the defaults of the Python API hold for the others."""
    return {name: value for name, value in options.items() if value is not None}


def _files(options: dict[str, Any], **arguments: Path | None) -> dict[str, Path | None]:
    """What a file is -> its path, for all that a command reads or writes: no report may overwrite one of them."""
    given = {**options, **arguments}
    return {what: given[name] for name, what in _FILE_NAMES.items() if name in given}
