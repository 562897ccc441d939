"""Options that several commands share, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from onnxmerge.options import DEFAULT_FIDELITY, DEFAULT_TARGETS
from onnxmerge.options.checks import CRITERION_NAMES, CUDNN_SEARCHES, METHOD_NAMES, PROVIDERS, SCOPES

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


class BatchSizes(click.ParamType[tuple[int, ...]]):
    """Comma-separated whole numbers of at least 1."""

    name = "batch sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """'1,8,32' -> (1, 8, 32)."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and int(part) >= 1 for part in parts):
            self.fail(f"{value!r} is no batch size of at least 1, and no list of them such as 1,8,32", param, ctx)
        return tuple(int(part) for part in parts)


def combined(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order they are listed."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, and nothing else there.")
REPORT = click.option(
    "--report",
    "reports",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Also write the result to a file, as a page (.html) or as data (.json); repeatable.",
)
INPUTS = combined(
    click.option(
        "--calibration",
        type=FILE,
        help="Unlabelled inputs: a .npz or .npy file, or a folder of images or .npy files.  [default: synthetic inputs]",
    ),
    click.option(
        "--input-range", type=(float, float), metavar="LOW HIGH", help="What pixel values 0 and 255 become.  [default: 0 1]"
    ),
    click.option(
        "--mean", type=Numbers(), metavar="M[,M,M]", help="Subtracted from pixels, for all channels or each.  [default: 0]"
    ),
    click.option("--std", type=Numbers(), metavar="S[,S,S]", help="Pixels are then divided by it.  [default: 1]"),
    click.option(
        "--samples",
        type=int,
        metavar="N",
        help="Number of synthetic inputs, or most calibration inputs used.  [default: as many as the layers need, or all]",
    ),
    click.option(
        "--seed", type=int, metavar="S", default=0, show_default=True, help="Of the random generator: same seed, same bytes."
    ),
)
RUNTIME = combined(
    click.option(
        "--provider",
        type=click.Choice(PROVIDERS),
        default="auto",
        show_default=True,
        help="Execution provider; auto takes CUDA where it works, else the CPU.",
    ),
    click.option("--threads", type=int, metavar="N", help="Threads of one operator.  [default: all processors available]"),
    click.option(
        "--tf32/--no-tf32", default=None, help="Whether CUDA computes in TF32.  [default: for timing, not for comparing]"
    ),
    click.option(
        "--cudnn-search",
        type=click.Choice(CUDNN_SEARCHES),
        help="How CUDA finds its cuDNN algorithms.  [default: exhaustive]",
    ),
)
BATCH = click.option("--batch", type=int, metavar="N", help="Inputs in one call where models are timed.  [default: 1]")
BATCHES = click.option(
    "--batch", type=BatchSizes(), metavar="N[,N]", help="Inputs in one call, or several numbers to time in turn.  [default: 1]"
)
CUDA_GRAPH = click.option("--cuda-graph", is_flag=True, help="Time replays of a CUDA graph; needs CUDA.")
THRESHOLDS = combined(
    click.option("--min-fidelity", type=float, metavar="F", help="Least fidelity of the worst output.  [default: none]"),
    click.option("--min-cosine", type=float, metavar="C", help="Least mean cosine similarity.  [default: none]"),
    click.option(
        "--min-top1-agreement", type=float, metavar="A", help="Least share of inputs whose best class stays.  [default: none]"
    ),
    click.option("--max-relative-l2", type=float, metavar="E", help="Greatest mean relative L2 error.  [default: none]"),
)
GROUPS = combined(
    click.option("--scope", type=click.Choice(SCOPES), help="chains: only groups with a single producing layer.  [default: all]"),
    click.option(
        "--include",
        multiple=True,
        metavar="GLOB",
        help="Only groups with a producer whose name matches; repeatable.  [default: all]",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="GLOB",
        help="No group with a producer whose name matches; repeatable.  [default: none]",
    ),
)
SIZE = combined(
    click.option(
        "--fidelity",
        type=float,
        metavar="F",
        help=f"As small as keeps the fidelity of the worst output at least F.  [default: {DEFAULT_FIDELITY:g}]",
    ),
    click.option(
        "--target",
        metavar="K=V",
        help="params, macs or latency, and the share of it that may remain, such as macs=0.5; instead of --fidelity.",
    ),
    click.option(
        "--ratio", type=float, metavar="R", help="Share of every group's channels to remove, 0 <= R < 1; instead of --fidelity."
    ),
    click.option("--plan", type=FILE, help="Keep what this file says, written by --save-plan and perhaps edited."),
)
BENCH = click.option("--bench/--no-bench", default=True, show_default=True, help="Time each result against MODEL.")
SWEEP = combined(
    click.option(
        "--targets", metavar="K=V,...", default=DEFAULT_TARGETS, show_default=True, help="What remains, for each point."
    ),
    click.option("--out", type=FILE, metavar="FOLDER", help="Keep the models in this folder.  [default: they are not kept]"),
    click.option("--jobs", type=int, metavar="N", help="Compress in N processes.  [default: here, one after the other]"),
    click.option("--dask", metavar="ADDRESS", help="Compress on the workers of this Dask scheduler.  [default: here]"),
)
METHOD = combined(
    click.option(
        "--round-to",
        metavar="N",
        help="Keep multiples of N channels, or auto: the multiples that run fastest here.  [default: 8 with --fidelity, else 1]",
    ),
    click.option(
        "--method",
        type=click.Choice(METHOD_NAMES),
        default="auto",
        show_default=True,
        help="What replaces removed channels: layers behind them are solved anew, similar channels take their place, or nothing.",
    ),
    click.option(
        "--criterion",
        type=click.Choice(CRITERION_NAMES),
        default="auto",
        show_default=True,
        help="Which channels are removed first.",
    ),
    click.option(
        "--threshold",
        type=float,
        metavar="T",
        default=0.1,
        show_default=True,
        help="merge: cosine similarity below which a channel is dropped, not merged.",
    ),
    click.option(
        "--cosine-weight",
        type=float,
        metavar="L",
        default=0.85,
        show_default=True,
        help="merge: weight of the cosine distance against that of the bias distance, the paper's lambda.",
    ),
)
