"""The commands. Each imports what it runs when it runs, so that --help does not wait for numpy, ONNX and rich."""

from pathlib import Path
from typing import Any

import click

import onnxmerge
from onnxmerge.cli import options as opt
from onnxmerge.cli.command import Command
from onnxmerge.cli.options import FILE, combined
from onnxmerge.errors import OptionError, VerificationError


@click.command(
    "inspect",
    cls=Command,
    short_help="List the channel groups of a model, and why other layers must stay whole.",
    examples=(
        "inspect model.onnx",
        "inspect model.onnx --scope chains --json",
        "inspect model.onnx --sensitivity --calibration images/ --report groups.html",
    ),
)
@click.argument("model", type=FILE)
@combined(opt.GROUPS, opt.SENSITIVITY, opt.METHOD, opt.INPUTS, opt.RUNNING_ON_CPU, opt.OUTPUT)
def inspect_command(model: Path, **options: Any) -> None:
    """List the channel groups of MODEL, what shrinks with each of them, and why other layers must stay whole.

    --scope, --whole-heads, --include and --exclude choose among the groups, --calibration and --input-shape give sizes. The other
    options say how --sensitivity measures, always on the CPU.
    """
    from onnxmerge.cli.output import Output

    shown = Output.taken_from(options, [model], model=model)
    with shown.progress() as progress:
        result = onnxmerge.inspect(model, progress=progress, **_given(options))
    shown.show(result)


@click.command(
    "compress",
    cls=Command,
    short_help="Write a smaller model, compared with the original and timed.",
    examples=(
        "compress model.onnx smaller.onnx --calibration images/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
        "compress model.onnx smaller.onnx --target macs=50% --min-fidelity 0.8 --report report.html",
        "compress model.onnx smaller.onnx --ratio 0.5 --exclude '/head/*' --save-plan plan.json",
    ),
)
@click.argument("model", type=FILE)
@click.argument("output", type=FILE)
@combined(opt.SIZE, opt.GROUPS, opt.METHOD, opt.INPUTS, opt.RUNNING, opt.CHECKS, opt.SAVING, opt.OUTPUT, opt.CUDA_TIMING)
def compress_command(model: Path, output: Path, **options: Any) -> None:
    """Remove channels of MODEL, repair the layers behind them, compare the outputs, and write OUTPUT.

    Exit code 1, and no OUTPUT, where the result misses a threshold.
    """
    from onnxmerge.cli.output import Output

    shown = Output.taken_from(options, [model], model=model, output=output)
    try:
        with shown.progress() as progress:
            result = onnxmerge.compress(model, output, progress=progress, **_given(options))
    except VerificationError as error:
        if error.result is not None:
            shown.show(error.result)
        raise
    shown.show(result)


@click.command(
    "sweep",
    cls=Command,
    short_help="Compress a model to several sizes: the curve of size and speed against fidelity.",
    examples=(
        "sweep model.onnx --calibration images/ --report curve.html",
        "sweep model.onnx --targets macs=0.75,0.5,fidelity=0.9 --out curve",
        "sweep model.onnx --targets params=50%,25% --jobs 4 --threads 1 --no-bench",
    ),
)
@click.argument("model", type=FILE)
@combined(
    opt.SWEEP,
    opt.SWEEP_WORK,
    opt.GROUPS,
    opt.METHOD,
    opt.INPUTS,
    opt.RUNNING,
    opt.TIMING,
    opt.PROVENANCE,
    opt.OUTPUT,
    opt.CUDA_TIMING,
)
def sweep_command(model: Path, out: Path | None, dask: str | None, **options: Any) -> None:
    """Compress MODEL once for each target, and measure the fidelity and the latency of every result.

    A target is params, macs or latency and the share of it that may remain, fidelity and its least value, max-changed-decisions
    and the greatest share of them, or ratio and the share of channels to remove: macs=0.75,0.5,params=0.5. Exit code 1 where no
    target gave a model.
    """
    from onnxmerge.cli.output import Output
    from onnxmerge.parallel.dask import executor_at

    shown = Output.taken_from(options, [model], model=model)
    if dask is not None and options["jobs"] is not None:
        raise OptionError("`jobs` and `dask` both say where the points are made: drop one of the two")
    with shown.progress() as progress, executor_at(dask) as executor:
        result = onnxmerge.sweep(model, folder=out, executor=executor, progress=progress, **_given(options))
    shown.show(result)
    if not any(point.after for point in result.points):
        raise VerificationError(f"no target gave a model; {result.points[0].target}: {result.points[0].failure}")


@click.command(
    "verify",
    cls=Command,
    short_help="Measure how close the outputs of one model are to those of another.",
    examples=(
        "verify model.onnx smaller.onnx --calibration others/ --min-fidelity 0.9",
        "verify model.onnx smaller.onnx --calibration inputs.npy --labels labels.npy",
        "verify model.onnx smaller.onnx --layers --save-worst worst.npz",
    ),
)
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@combined(opt.COMPARISON, opt.INPUTS, opt.RUNNING, opt.VERIFY_THRESHOLDS, opt.OUTPUT, opt.CUDA)
def verify_command(reference: Path, candidate: Path, **options: Any) -> None:
    """Compare the outputs of CANDIDATE with those of REFERENCE on the same inputs.

    Exit code 1 where a threshold is missed, or where NaN or infinity appear. Without a threshold of the outputs a mean cosine
    similarity of 0.9 is needed, and between models of the same layer sizes outputs that are equal but for rounding; the verdict
    says where less is kept than compress keeps by default. --layers also fails where a weight changed its sign, and between
    models of the same layer sizes at any difference beyond rounding.
    """
    from onnxmerge.cli.output import Output

    shown = Output.taken_from(options, [reference, candidate], reference=reference, candidate=candidate)
    with shown.progress() as progress:
        result = onnxmerge.verify(reference, candidate, progress=progress, **_given(options))
    shown.show(result)
    if not result.passed:
        raise VerificationError("; ".join(result.failures))


@click.command(
    "bench",
    cls=Command,
    short_help="Measure how much faster one model is than another.",
    examples=(
        "bench model.onnx smaller.onnx",
        "bench model.onnx smaller.onnx --batch 1,16 --threads 1",
        "bench model.onnx smaller.onnx --provider cuda --batch 32 --min-speedup 1.2",
    ),
)
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@combined(opt.TIMING_BATCHES, opt.INPUTS, opt.RUNNING, opt.OUTPUT, opt.CUDA_TIMING)
def bench_command(reference: Path, candidate: Path, batch: tuple[int, ...] | None, **options: Any) -> None:
    """Measure latency and throughput of REFERENCE and CANDIDATE, called in turn.

    Exit code 1 where CANDIDATE misses --min-speedup.
    """
    from onnxmerge.cli.output import Output

    shown = Output.taken_from(options, [reference, candidate], reference=reference, candidate=candidate)
    with shown.progress() as progress:
        progress("timing both models", 0.0)
        result = onnxmerge.bench_batches(reference, candidate, batch or (None,), **_given(options))
    shown.show(result)
    failures = [failure for each in result.batches for failure in each.failures]
    if failures:
        raise VerificationError("; ".join(failures))


COMMANDS = (inspect_command, compress_command, sweep_command, verify_command, bench_command)
"""In the order in which they are used, and listed by --help."""


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, so that the defaults of the Python API hold for the others."""
    return {name: value for name, value in options.items() if value is not None}
