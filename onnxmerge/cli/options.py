"""Options that several commands share, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from onnxmerge.options import CRITERION_NAMES, CUDNN_SEARCHES, DEFAULT_FIDELITY, METHOD_NAMES, PROVIDERS, SCOPES
from onnxmerge.pipeline.sweep import DEFAULT_TARGETS

FILE = click.Path(path_type=Path)


class Numbers(click.ParamType[tuple[float, ...]]):
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


class Counts(click.ParamType[tuple[int, ...]]):
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


def options_of(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order they are listed."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


JSON = click.option("--json", "as_json_text", is_flag=True, help="Print the result as JSON on stdout, and nothing else there.")
REPORT = click.option(
    "--report",
    "reports",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Also write it as a page (.html) or data (.json); repeatable.",
)
INPUTS = options_of(
    click.option("--calibration", type=FILE, help="Unlabelled inputs: .npz, .npy, or a folder of images or .npy."),
    click.option("--input-range", type=(float, float), metavar="LOW HIGH", help="Pixels 0 to 255 become this.  [default: 0 1]"),
    click.option("--mean", type=Numbers(), metavar="M[,M,M]", help="Then subtracted, for all channels or each."),
    click.option("--std", type=Numbers(), metavar="S[,S,S]", help="Then divided by, for all channels or each."),
    click.option("--samples", type=int, metavar="N", help="How many synthetic inputs, or at most how many of --calibration."),
    click.option("--seed", type=int, metavar="S", default=0, show_default=True, help="Same seed, same bytes."),
)
RUNTIME = options_of(
    click.option("--provider", type=click.Choice(PROVIDERS), default="auto", show_default=True, help="Where models run."),
    click.option("--threads", type=int, metavar="N", help="Threads of one operator.  [default: all processors at hand]"),
    click.option("--tf32/--no-tf32", default=None, help="CUDA: TF32.  [default: for timing, not for comparing]"),
    click.option("--cudnn-search", type=click.Choice(CUDNN_SEARCHES), help="CUDA: how cuDNN algorithms are found.  [exhaustive]"),
)
BATCH = click.option("--batch", type=int, metavar="N", help="Inputs in one call where models are timed.  [default: 1]")
CUDA_GRAPH = click.option("--cuda-graph", is_flag=True, help="CUDA: time replays of a CUDA graph.")
THRESHOLDS = options_of(
    click.option("--min-fidelity", type=float, metavar="F", help="Fail below this fidelity of the worst output."),
    click.option("--min-cosine", type=float, metavar="C", help="Fail below this mean cosine."),
    click.option("--min-top1-agreement", type=float, metavar="A", help="Fail below this share of equal best classes."),
    click.option("--max-relative-l2", type=float, metavar="E", help="Fail above this mean relative L2 error."),
)
GROUPS = options_of(
    click.option("--scope", type=click.Choice(SCOPES), help="chains: only groups that one layer writes.  [default: all]"),
    click.option("--include", multiple=True, metavar="GLOB", help="Only groups that a node named so writes; repeatable."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="No group that a node named so writes; repeatable."),
)
SIZE = options_of(
    click.option("--fidelity", type=float, metavar="F", help=f"As small as keeps this.  [default: {DEFAULT_FIDELITY:g}]"),
    click.option("--target", metavar="K=V", help="params, macs or latency, and the share that may remain: macs=0.5."),
    click.option("--ratio", type=float, metavar="R", help="Share of every group's channels to remove, 0 <= R < 1."),
    click.option("--plan", type=FILE, help="Keep what this file says, written by --save-plan and perhaps edited."),
)
BENCH = click.option("--bench/--no-bench", default=True, show_default=True, help="Time each result against MODEL.")
SPREAD = options_of(
    click.option("--targets", metavar="K=V,...", default=DEFAULT_TARGETS, show_default=True, help="What remains."),
    click.option("--out", type=FILE, metavar="FOLDER", help="Keep the models there."),
    click.option("--jobs", type=int, metavar="N", help="Make them in N processes.  [default: here, one after the other]"),
    click.option("--dask", metavar="ADDRESS", help="Make them on the workers of this Dask scheduler."),
)
METHOD = options_of(
    click.option("--round-to", metavar="N", help="Channel counts in multiples of N, or auto: as run fastest here."),
    click.option("--method", type=click.Choice(METHOD_NAMES), default="auto", show_default=True, help="What replaces them."),
    click.option(
        "--criterion", type=click.Choice(CRITERION_NAMES), default="auto", show_default=True, help="Which of them go first."
    ),
    click.option("--threshold", type=float, metavar="T", default=0.1, show_default=True, help="merge: similarity threshold."),
    click.option("--cosine-weight", type=float, metavar="L", default=0.85, show_default=True, help="merge: the paper's lambda."),
)
