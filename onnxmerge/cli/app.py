"""The command line: it translates, and nothing else."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from onnxmerge import __version__
from onnxmerge.cli.options import (
    BATCH,
    BENCH,
    CUDA_GRAPH,
    FILE,
    GROUPS,
    INPUTS,
    JSON,
    METHOD,
    REPORT,
    RUNTIME,
    SIZE,
    SPREAD,
    THRESHOLDS,
    Counts,
    options_of,
)
from onnxmerge.errors import OnnxMergeError, OptionError, VerificationError
from onnxmerge.evaluation.benchmark import bench_batches
from onnxmerge.evaluation.verify import verify
from onnxmerge.execution.versions import versions
from onnxmerge.onnxio.model_files import weights_beside
from onnxmerge.parallel.dask import executor_at
from onnxmerge.pipeline.compress import compress
from onnxmerge.pipeline.inspect import inspect
from onnxmerge.pipeline.sweep import sweep
from onnxmerge.report.documents import Provenance, Result, json_text
from onnxmerge.report.latency import show_latency
from onnxmerge.report.progress import progress_bar
from onnxmerge.report.sweeps import show_sweep
from onnxmerge.report.terminal import show_compression, show_inspection, show_verification
from onnxmerge.report.wording import as_command_line, printable
from onnxmerge.report.writing import check_reports, write_report

DONE, NOT_VERIFIED, BAD_USAGE, OWN_BUG, INTERRUPTED = 0, 1, 2, 70, 130


class _InOrder(click.Group):
    """Commands listed in the order they are used in."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As defined below, not by the alphabet."""
        return list(self.commands)


@click.group(
    cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, invoke_without_command=True
)
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Make an exported ONNX model smaller and faster: no training code, no data, no fine-tuning."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(BAD_USAGE)


@cli.command("inspect", short_help="What could shrink, and why the rest must stay.")
@click.argument("model", type=FILE)
@click.option("--sensitivity", is_flag=True, help="Measure the fidelity with 25, 50 and 75 % of each group removed.")
@options_of(METHOD, GROUPS, INPUTS, RUNTIME, REPORT, JSON)
def inspect_command(model: Path, sensitivity: bool, reports: tuple[Path, ...], as_json_text: bool, **settings: Any) -> None:
    """Channel groups of MODEL, what each unlocks, and why the rest must stay.

    --scope, --include and --exclude choose among them. With --sensitivity also how much each matters to the outputs; the other
    options say how that is measured, always on the CPU.
    """
    _check_places(reports, {"the model": model, "the calibration inputs": settings["calibration"]})
    with progress_bar() as progress:
        found = inspect(model, sensitivity=sensitivity, progress=progress, **_given(settings))
    _show(found, as_json_text, show_inspection, reports)


@cli.command("compress", short_help="Write a smaller model and prove it.")
@click.argument("model", type=FILE)
@click.argument("output", type=FILE)
@options_of(SIZE, METHOD, GROUPS, INPUTS, RUNTIME)
@click.option("--save-plan", type=FILE, metavar="FILE.json", help="Write what was kept of which group; see --plan.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Compare the result with MODEL before writing it.")
@click.option("--bench/--no-bench", default=True, show_default=True, help="And time both.")
@options_of(BATCH, CUDA_GRAPH, THRESHOLDS, REPORT, JSON)
def compress_command(
    model: Path, output: Path, save_plan: Path | None, reports: tuple[Path, ...], as_json_text: bool, **settings: Any
) -> None:
    """Remove channels of MODEL, repair what they did, prove it, and write OUTPUT.

    Exit code 1, and no OUTPUT, where the result misses a threshold.
    """
    files = {"the model": model, "the output": output, "the calibration inputs": settings["calibration"]}
    _check_places(reports, files | {"the plan": settings["plan"], "the plan to be saved": save_plan})
    with progress_bar() as progress:
        result = compress(model, output, progress=progress, save_plan=save_plan, **_given(settings))
    _show(result, as_json_text, show_compression, reports)


@cli.command("sweep", short_help="The curve of size and speed against fidelity.")
@click.argument("model", type=FILE)
@options_of(SPREAD, METHOD, GROUPS, INPUTS, RUNTIME, BENCH, BATCH, CUDA_GRAPH, REPORT, JSON)
def sweep_command(
    model: Path,
    targets: str,
    out: Path | None,
    jobs: int | None,
    dask: str | None,
    reports: tuple[Path, ...],
    as_json_text: bool,
    **settings: Any,
) -> None:
    """A smaller MODEL for each target, and how close and how fast it is.

    Targets are params, macs or latency and the share that may remain, fidelity, or ratio: macs=0.75,0.5,params=0.5.
    Exit code 1 where none gave a model.
    """
    _check_places(reports, {"the model": model, "the calibration inputs": settings["calibration"]})
    if dask is not None and jobs is not None:
        raise OptionError("`jobs` and `dask` both say where the points are made: drop one of the two")
    with progress_bar() as progress, executor_at(dask) as executor:
        found = sweep(model, targets, folder=out, executor=executor, jobs=jobs, progress=progress, **_given(settings))
    _show(found, as_json_text, show_sweep, reports)
    if not any(point.after for point in found.points):
        raise VerificationError(f"no target gave a model; {found.points[0].target}: {found.points[0].failure}")


@cli.command("verify", short_help="How close one model's outputs are to another's.")
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@options_of(INPUTS)
@click.option("--labels", type=FILE, help="Classes of the calibration inputs, .npy or .npz: accuracy before and after.")
@click.option("--layers", is_flag=True, help="Compare layer by layer too: where CANDIDATE first drifts.")
@click.option("--save-worst", type=FILE, metavar="FILE.npz", help="Write the worst input, to look at or give to --calibration.")
@options_of(RUNTIME, THRESHOLDS, REPORT, JSON)
def verify_command(reference: Path, candidate: Path, reports: tuple[Path, ...], as_json_text: bool, **settings: Any) -> None:
    """How close CANDIDATE's outputs are to those of REFERENCE.

    Exit code 1 where a threshold is missed, or NaN or infinity appear. Without thresholds a mean cosine of 0.9 is asked for,
    and where no channel was removed outputs that are equal to rounding. --layers also fails where a sign flips, and where
    no channel was removed at any drift beyond rounding.
    """
    _check_places(reports, _pair(reference, candidate, settings))
    with progress_bar() as progress:
        progress("comparing outputs", 0.0)
        found = verify(reference, candidate, **_given(settings))
    _show(found, as_json_text, show_verification, reports)
    if not found.passed:
        raise VerificationError("; ".join(found.failures))


@cli.command("bench", short_help="How much faster one model is than another.")
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@options_of(INPUTS, RUNTIME)
@click.option("--batch", type=Counts(), metavar="N[,N]", help="Inputs in one call, or several numbers to time.  [default: 1]")
@options_of(CUDA_GRAPH, REPORT, JSON)
def bench_command(
    reference: Path,
    candidate: Path,
    batch: tuple[int, ...] | None,
    reports: tuple[Path, ...],
    as_json_text: bool,
    **settings: Any,
) -> None:
    """Latency and throughput of REFERENCE and CANDIDATE, measured in turn."""
    _check_places(reports, _pair(reference, candidate, settings))
    with progress_bar() as progress:
        progress("timing both models", 0.0)
        found = bench_batches(reference, candidate, batch or (None,), **_given(settings))
    _show(found, as_json_text, show_latency, reports)


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, so that the Python API's defaults hold elsewhere."""
    return {name: value for name, value in settings.items() if value is not None}


def _check_places(reports: Sequence[Path], files: Mapping[str, Path | None]) -> None:
    """No report in the place of one of the files, or of weights beside one of the models."""
    models = [
        path for what in ("the model", "the reference", "the candidate") if reports and (path := files.get(what)) is not None
    ]
    weights = {what: place for path in models for what, place in weights_beside(path).items()}
    check_reports(reports, {**weights, **files})


def _pair(reference: Path, candidate: Path, settings: dict[str, Any]) -> dict[str, Path | None]:
    files = {"the calibration inputs": "calibration", "the labels": "labels", "the worst input": "save_worst"}
    return {"the reference": reference, "the candidate": candidate, **{what: settings.get(name) for what, name in files.items()}}


def _show(
    result: Result,
    as_json_text: bool,
    show: Callable[[Console, Any], None],
    reports: Sequence[Path],
) -> None:
    """On stdout, then in report files."""
    command = shlex.join(["onnxmerge", *click.get_current_context().obj])
    made_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    provenance = Provenance(command, made_at, versions())
    if as_json_text:
        click.echo(json_text(result, provenance))
    else:
        show(Console(), result)
    for report in reports:
        write_report(result, report, provenance)
        if not as_json_text:
            click.echo(f"wrote {printable(str(report))}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: what a user can act on is one line on stderr and an exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(cli(arguments, standalone_mode=False, obj=arguments))
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "onnxmerge"
        _fail(BAD_USAGE, f"{error.format_message().rstrip('.')} (see {command} --help)")
    except click.ClickException as error:
        _fail(BAD_USAGE, error.format_message())
    except (click.Abort, KeyboardInterrupt):
        _fail(INTERRUPTED, "interrupted")
    except VerificationError as error:
        _fail(NOT_VERIFIED, f"verification failed: {error}")
    except OnnxMergeError as error:
        _fail(BAD_USAGE, str(error))
    except Exception:  # a bug of ours: told whole, with a code that means neither bad input nor a failed check
        traceback.print_exc()
        sys.exit(OWN_BUG)


def _fail(code: int, message: str) -> NoReturn:
    click.echo(f"onnxmerge: {printable(as_command_line(message))}", err=True)
    sys.exit(code)
