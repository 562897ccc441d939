"""The command line: it translates, and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from onnxmerge import __version__
from onnxmerge.compress import compress, inspect
from onnxmerge.errors import OnnxMergeError, VerificationError
from onnxmerge.options import CRITERION_NAMES, METHOD_NAMES, PROVIDERS, SCOPES, Options
from onnxmerge.proof import bench, verify
from onnxmerge.report.terminal import show_compression, show_fidelity, show_inspection, show_latency
from onnxmerge.results import as_json

FILE = click.Path(path_type=Path)


class _Numbers(click.ParamType):
    """Comma-separated numbers."""

    name = "NUMBERS"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        """'0.5,0.5,0.5' -> (0.5, 0.5, 0.5)."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0.485,0.456,0.406", param, ctx)


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
    click.option("--input-range", type=(float, float), help="Range of raw pixels, for synthetic inputs and image files."),
    click.option("--mean", type=_Numbers(), help="Subtracted from pixels, one number or one a channel: 0.485,0.456,0.406."),
    click.option("--std", type=_Numbers(), help="Divides pixels, one number or one a channel."),
    click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same bytes."),
)
RUNTIME = _options(
    click.option("--provider", type=click.Choice(PROVIDERS), default="auto", show_default=True),
    click.option("--threads", type=int, help="Threads of one operator; default every processor this process may use."),
)
THRESHOLDS = _options(
    click.option("--min-fidelity", type=float, help="Fail below this fidelity of the worst output."),
    click.option("--min-cosine", type=float, help="Fail below this mean cosine."),
    click.option("--min-top1-agreement", type=float, help="Fail below this share of equal best classes."),
    click.option("--max-relative-l2", type=float, help="Fail above this mean relative L2 error."),
)
CHOICE = _options(
    click.option("--ratio", type=float, help="Share of the channels to remove from every group, 0 <= R < 1."),
    click.option("--method", type=click.Choice(METHOD_NAMES), default="auto", show_default=True),
    click.option("--criterion", type=click.Choice(CRITERION_NAMES), default="auto", show_default=True),
    click.option("--threshold", type=float, default=0.1, show_default=True, help="merge: similarity threshold."),
    click.option("--cosine-weight", type=float, default=0.85, show_default=True, help="merge: the paper's lambda."),
    click.option("--scope", type=click.Choice(SCOPES), help="chains: only groups with one producer.  [default: all]"),
    click.option("--include", multiple=True, metavar="GLOB", help="Only groups with a producer named like this."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="No group with a producer named like this."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Make an exported ONNX model smaller and faster: no training code, no data, no fine-tuning."""


@cli.command("inspect")
@click.argument("model", type=FILE)
@JSON
def inspect_command(model: Path, as_json_text: bool) -> None:
    """Channel groups of MODEL, what each one unlocks, and why the rest must stay."""
    _show(inspect(model), as_json_text, show_inspection)


@cli.command("compress")
@click.argument("model", type=FILE)
@click.argument("output", type=FILE)
@_options(CHOICE, INPUTS, RUNTIME)
@click.option("--verify/--no-verify", default=True, show_default=True, help="Compare and time the result before writing it.")
@click.option("--bench/--no-bench", default=True, show_default=True, help="Time the result as part of verifying it.")
@_options(THRESHOLDS, JSON)
def compress_command(model: Path, output: Path, as_json_text: bool, **settings: Any) -> None:
    """Remove channels of MODEL, repair what they did, prove it, and write OUTPUT."""
    _show(compress(model, output, _settings(settings)), as_json_text, show_compression)


@cli.command("verify")
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@_options(INPUTS, RUNTIME, THRESHOLDS, JSON)
def verify_command(reference: Path, candidate: Path, as_json_text: bool, **settings: Any) -> None:
    """How close CANDIDATE's outputs are to REFERENCE's. Exit 1 below the thresholds (default: a mean cosine of 0.9)."""
    fidelity, failures = verify(reference, candidate, _settings(settings))
    _show(fidelity, as_json_text, show_fidelity)
    if failures:
        raise VerificationError("; ".join(failures))


@cli.command("bench")
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@_options(INPUTS, RUNTIME)
@click.option("--batch", type=int, default=1, show_default=True, help="Inputs in one call.")
@JSON
def bench_command(reference: Path, candidate: Path, batch: int, as_json_text: bool, **settings: Any) -> None:
    """Latency of REFERENCE and CANDIDATE, measured in turn."""
    _show(bench(reference, candidate, _settings(settings), batch), as_json_text, show_latency)


def _settings(settings: dict[str, Any]) -> Options:
    return Options(**{name: value for name, value in settings.items() if value is not None})


def _show(result: Any, as_json_text: bool, show: Callable[[Console, Any], None]) -> None:
    if as_json_text:
        click.echo(json.dumps(as_json(result), indent=2))
    else:
        show(Console(soft_wrap=False), result)


def main() -> None:
    """Entry point: errors that a user can act on are one line and an exit code."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        click.echo("interrupted; nothing was written", err=True)
        sys.exit(130)
    except VerificationError as error:
        click.echo(f"onnxmerge: verification failed: {error}", err=True)
        sys.exit(1)
    except OnnxMergeError as error:
        click.echo(f"onnxmerge: {error}", err=True)
        sys.exit(2)
