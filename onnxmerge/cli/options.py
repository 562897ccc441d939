"""Options that several commands share, and the types of their values."""

import os
import stat
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click

from onnxmerge.options import DEFAULT_FIDELITY, DEFAULT_TARGETS
from onnxmerge.options.checks import CRITERION_NAMES, CUDNN_SEARCHES, METHOD_NAMES, PROVIDERS, SCOPES, TARGETS

Decorator = Callable[[Any], Any]


class _File(click.Path):
    """A file or folder, or a name for one, and no device or pipe, which may have no end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """'model.onnx' -> Path('model.onnx')."""
        try:
            os.path.abspath(value)
        except FileNotFoundError:
            self.fail(f"{value}: the working folder does not exist any more", param, ctx)
        try:
            mode = os.stat(value).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return Path(value)
        except OSError as error:
            self.fail(f"{value}: {error.strerror}", param, ctx)
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            self.fail(f"{value} is neither a file nor a folder but a device, a pipe or a socket", param, ctx)
        return Path(value)


FILE = _File()


def numbers(text: str) -> tuple[float, ...]:
    """'0.5,0.5,0.5' -> (0.5, 0.5, 0.5)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.485,0.456,0.406") from None


def batch_sizes(text: str) -> tuple[int, ...]:
    """'1,8,32' -> (1, 8, 32)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise click.BadParameter(f"{text!r} is no batch size of at least 1, and no list of them such as 1,8,32")
    return tuple(int(part) for part in parts)


def combined(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order they are listed."""
    return lambda command: reduce(lambda decorated, option: option(decorated), reversed(options), command)


def _option(name: str, kind: Any, metavar: str | None, text: str, default: Any = None) -> Decorator:
    """An option that takes a value; where the Python API has the default, the text names it."""
    return click.option(name, type=kind, metavar=metavar, help=text, default=default, show_default=True)


def _choice(name: str, choices: tuple[str, ...], text: str, default: str | None = None) -> Decorator:
    return _option(name, click.Choice(choices), None, text, default)


def _flag(name: str, default: bool | None, text: str) -> Decorator:
    return click.option(name, default=default, show_default=default is not None, help=text)


JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, and nothing else there.")
REPORT_HELP = "Also write a page (.html) or data (.json); repeatable.  [default: none]"
REPORT = click.option("--report", "reports", type=FILE, multiple=True, help=REPORT_HELP)
INPUTS = combined(
    _option("--calibration", FILE, None, "Unlabelled inputs: .npz, .npy, or a folder of images or .npy.  [default: synthetic]"),
    _option("--input-range", (float, float), "LOW HIGH", "What pixel values 0 and 255 become.  [default: 0 1]"),
    _option("--mean", numbers, "M[,M,M]", "Subtracted from pixels, for all channels or each.  [default: 0]"),
    _option("--std", numbers, "S[,S,S]", "Pixels are then divided by it, for all channels or each.  [default: 1]"),
    click.option(
        "--input-shape",
        multiple=True,
        metavar="[NAME:]N,N,...",
        help="Sizes of a dynamic input, repeatable: 1,3,640,640.  [default: of calibration inputs, of the graph, or usual ones]",
    ),
    _option("--samples", int, "N", "Synthetic inputs, or most calibration inputs.  [default: what the layers need, or all]"),
    _option("--seed", int, "S", "Of the random generator: the same seed gives the same bytes.", 0),
)
RUNTIME = combined(
    _choice("--provider", PROVIDERS, "Execution provider; auto takes CUDA where it works, else the CPU.", "auto"),
    _option("--threads", int, "N", "Threads of one operator.  [default: all processors, or OMP_NUM_THREADS if less]"),
    _flag("--tf32/--no-tf32", None, "Whether CUDA computes in TF32.  [default: for timing, not for comparing]"),
    _choice("--cudnn-search", CUDNN_SEARCHES, "How CUDA finds its cuDNN algorithms.  [default: exhaustive]"),
    _option("--max-memory", str, "SIZE", "Memory that the first run of a model may take.  [default: 2GB, or twice the model]"),
)
BATCH = _option("--batch", int, "N", "Inputs in one call where models are timed.  [default: 1]")
BATCHES = _option("--batch", batch_sizes, "N[,N]", "Inputs in one call, or several numbers to time in turn.  [default: 1]")
MIN_SPEEDUP = _option("--min-speedup", float, "X", "Least speed-up: 1.2 is 1.2 times as fast.  [default: none]")
CUDA_GRAPH = click.option("--cuda-graph", is_flag=True, help="Time replays of a CUDA graph; needs CUDA.")
THRESHOLDS = combined(
    _option("--min-fidelity", float, "F", "Least fidelity of the worst output.  [default: none]"),
    _option("--min-cosine", float, "C", "Least mean cosine similarity.  [default: none]"),
    _option("--min-top1-agreement", float, "A", "Least share of inputs whose best class stays.  [default: none]"),
    _option("--max-relative-l2", float, "E", "Greatest mean relative L2 error.  [default: none]"),
)
SIZE_LIMITS = combined(
    _option("--max-params", float, "SHARE", "Greatest share of the parameters that may be left.  [default: none]"),
    _option("--max-macs", float, "SHARE", "Greatest share of the MACs that may be left.  [default: none]"),
    click.option("--require-smaller", is_flag=True, help="Fail where the file did not become smaller."),
)
GROUPS = combined(
    _choice("--scope", SCOPES, "chains: only groups with a single producing layer.  [default: all]"),
    click.option("--include", multiple=True, metavar="GLOB", help="Only groups with a producer of such a name.  [default: all]"),
    click.option("--exclude", multiple=True, metavar="GLOB", help="No group with a producer of such a name.  [default: none]"),
)
MINIMIZE = _choice("--minimize", TARGETS, "What a fidelity is reached at the least of.  [default: latency]")
SIZE = combined(
    _option("--fidelity", float, "F", f"As fast as keeps the worst output's fidelity at F.  [default: {DEFAULT_FIDELITY:g}]"),
    MINIMIZE,
    _option("--target", str, "K=V", "params, macs or latency, and the share that may remain: macs=0.5; not with --fidelity."),
    _option("--ratio", float, "R", "Share of every group's channels to remove, 0 <= R < 1; not with --fidelity."),
    _option("--plan", FILE, None, "Keep what this file says, written by --save-plan and perhaps edited; not with --fidelity."),
)
VERIFY = _flag("--verify/--no-verify", True, "Compare the outputs with MODEL's before anything is written.")
BENCH = _flag("--bench/--no-bench", True, "Time each result against MODEL.")
SWEEP = combined(
    _option("--targets", str, "K=V,...", "What remains, for each point.", DEFAULT_TARGETS),
    _option("--out", FILE, "FOLDER", "Keep the models in this folder.  [default: they are not kept]"),
    _option("--jobs", int, "N", "Compress in N processes.  [default: here, one after the other]"),
    _option("--dask", str, "ADDRESS", "Compress on the workers of this Dask scheduler.  [default: here]"),
)
METHOD = combined(
    _option(
        "--round-to",
        str,
        "N",
        "Keep multiples of N channels; auto: of 8 or less; measured: the fastest.  [default: auto]",
    ),
    _choice(
        "--method", METHOD_NAMES, "What makes up for removed channels: a least-squares solve, similar channels, nothing.", "auto"
    ),
    _choice("--criterion", CRITERION_NAMES, "Which channels are removed first.", "auto"),
    _option("--threshold", float, "T", "merge: cosine similarity below which a channel is dropped, not merged.", 0.1),
    _option("--cosine-weight", float, "L", "merge: weight of the cosine distance, lambda in the paper.", 0.85),
)
