"""The command line: it translates, and nothing else."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from onnxmerge import __version__
from onnxmerge.compress import compress, inspect
from onnxmerge.errors import OnnxMergeError, VerificationError
from onnxmerge.options import CRITERION_NAMES, CUDNN_SEARCHES, METHOD_NAMES, PROVIDERS, SCOPES, Options
from onnxmerge.proof import bench_batches, verify
from onnxmerge.report.latency import show_latency
from onnxmerge.report.progress import progress_bar
from onnxmerge.report.terminal import show_compression, show_fidelity, show_inspection
from onnxmerge.report.wording import printable
from onnxmerge.results import as_json

FILE = click.Path(path_type=Path)
DONE, NOT_VERIFIED, BAD_USAGE, OWN_BUG, INTERRUPTED = 0, 1, 2, 70, 130


class _Numbers(click.ParamType):
    """Comma-separated numbers."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """'0.5,0.5,0.5' -> (0.5, 0.5, 0.5)."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0.485,0.456,0.406", param, ctx)


class _Counts(click.ParamType):
    """Comma-separated whole numbers of at least 1."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """'1,8,32' -> (1, 8, 32)."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and int(part) >= 1 for part in parts):
            self.fail(f"{value!r} is no batch size of at least 1, and no list of them such as 1,8,32", param, ctx)
        return tuple(int(part) for part in parts)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order they are listed."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


JSON = click.option("--json", "as_json_text", is_flag=True, help="Print the result as JSON on stdout, and nothing else there.")
INPUTS = _options(
    click.option("--calibration", type=FILE, help="Unlabelled inputs: .npz, .npy, or a folder of images or .npy."),
    click.option("--input-range", type=(float, float), metavar="LOW HIGH", help="Pixels 0 to 255 become this.  [default: 0 1]"),
    click.option("--mean", type=_Numbers(), metavar="M[,M,M]", help="Then subtracted, for all channels or each."),
    click.option("--std", type=_Numbers(), metavar="S[,S,S]", help="Then divided by, for all channels or each."),
    click.option("--samples", type=int, metavar="N", help="How many synthetic inputs, or at most how many of --calibration."),
    click.option("--seed", type=int, metavar="S", default=0, show_default=True, help="Same seed, same bytes."),
)
RUNTIME = _options(
    click.option("--provider", type=click.Choice(PROVIDERS), default="auto", show_default=True, help="Where models run."),
    click.option("--threads", type=int, metavar="N", help="Threads of one operator.  [default: all processors at hand]"),
    click.option("--tf32/--no-tf32", default=None, help="CUDA: TF32.  [default: for timing, not for comparing]"),
    click.option("--cudnn-search", type=click.Choice(CUDNN_SEARCHES), help="CUDA: how cuDNN algorithms are found.  [exhaustive]"),
)
CUDA_GRAPH = click.option("--cuda-graph", is_flag=True, help="CUDA: time replays of a CUDA graph.")
THRESHOLDS = _options(
    click.option("--min-fidelity", type=float, metavar="F", help="Fail below this fidelity of the worst output."),
    click.option("--min-cosine", type=float, metavar="C", help="Fail below this mean cosine."),
    click.option("--min-top1-agreement", type=float, metavar="A", help="Fail below this share of equal best classes."),
    click.option("--max-relative-l2", type=float, metavar="E", help="Fail above this mean relative L2 error."),
)
CHOICE = _options(
    click.option("--ratio", type=float, metavar="R", help="Share of every group's channels to remove, 0 <= R < 1."),
    click.option("--method", type=click.Choice(METHOD_NAMES), default="auto", show_default=True, help="What replaces them."),
    click.option(
        "--criterion", type=click.Choice(CRITERION_NAMES), default="auto", show_default=True, help="Which of them go first."
    ),
    click.option("--threshold", type=float, metavar="T", default=0.1, show_default=True, help="merge: similarity threshold."),
    click.option("--cosine-weight", type=float, metavar="L", default=0.85, show_default=True, help="merge: the paper's lambda."),
    click.option("--scope", type=click.Choice(SCOPES), help="chains: only groups that one layer writes.  [default: all]"),
    click.option("--include", multiple=True, metavar="GLOB", help="Only groups that a node named so writes; repeatable."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="No group that a node named so writes; repeatable."),
)


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
@JSON
def inspect_command(model: Path, as_json_text: bool) -> None:
    """Channel groups of MODEL, what each unlocks, and why the rest must stay."""
    _show(inspect(model), as_json_text, show_inspection)


@cli.command("compress", short_help="Write a smaller model and prove it.")
@click.argument("model", type=FILE)
@click.argument("output", type=FILE)
@_options(CHOICE, INPUTS, RUNTIME)
@click.option("--verify/--no-verify", default=True, show_default=True, help="Compare the result with MODEL before writing it.")
@click.option("--bench/--no-bench", default=True, show_default=True, help="And time both.")
@_options(CUDA_GRAPH, THRESHOLDS, JSON)
def compress_command(model: Path, output: Path, as_json_text: bool, **settings: Any) -> None:
    """Remove channels of MODEL, repair what they did, prove it, and write OUTPUT.

    Exit code 1, and no OUTPUT, where the result misses a threshold.
    """
    with progress_bar() as progress:
        result = compress(model, output, _settings(settings), progress=progress)
    _show(result, as_json_text, show_compression)


@cli.command("verify", short_help="How close one model's outputs are to another's.")
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@_options(INPUTS)
@click.option("--labels", type=FILE, help="Classes of the calibration inputs, .npy or .npz: accuracy before and after.")
@click.option("--layers", is_flag=True, help="Compare layer by layer too: where CANDIDATE first drifts.")
@click.option("--save-worst", type=FILE, metavar="FILE.npz", help="Write the worst input, to look at or give to --calibration.")
@_options(RUNTIME, THRESHOLDS, JSON)
def verify_command(reference: Path, candidate: Path, as_json_text: bool, **settings: Any) -> None:
    """How close CANDIDATE's outputs are to those of REFERENCE.

    Exit code 1 where a threshold is missed, or NaN or infinity appear. Without thresholds a mean cosine of 0.9 is asked for,
    and where no channel was removed outputs that are equal to rounding. --layers also fails where a sign flips, and where
    no channel was removed at any drift beyond rounding.
    """
    with progress_bar() as progress:
        progress("comparing outputs", 0.0)
        fidelity, failures = verify(reference, candidate, _settings(settings))
    _show(fidelity, as_json_text, show_fidelity)
    if failures:
        raise VerificationError("; ".join(failures))


@cli.command("bench", short_help="How much faster one model is than another.")
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@_options(INPUTS, RUNTIME)
@click.option("--batch", type=_Counts(), metavar="N[,N]", help="Inputs in one call, or several numbers to time.  [default: 1]")
@_options(CUDA_GRAPH, JSON)
def bench_command(reference: Path, candidate: Path, batch: tuple[int, ...] | None, as_json_text: bool, **settings: Any) -> None:
    """Latency and throughput of REFERENCE and CANDIDATE, measured in turn.

    --json gives one comparison, or with several batch sizes an object that lists them as `batches`.
    """
    with progress_bar() as progress:
        progress("timing both models", 0.0)
        found = bench_batches(reference, candidate, _settings(settings), batch or (None,))
    _show(found if len(found.batches) > 1 else found.batches[0], as_json_text, show_latency)


def _settings(settings: dict[str, Any]) -> Options:
    return Options(**{name: value for name, value in settings.items() if value is not None})


def _show(result: Any, as_json_text: bool, show: Callable[[Console, Any], None]) -> None:
    if as_json_text:
        click.echo(json.dumps(as_json(result), indent=2))
    else:
        show(Console(), result)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: what a user can act on is one line on stderr and an exit code."""
    try:
        sys.exit(cli(arguments, standalone_mode=False))
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
    click.echo(f"onnxmerge: {printable(message)}", err=True)
    sys.exit(code)
