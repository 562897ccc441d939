"""Options that several commands share, in sections of --help, and the types of their values."""

import os
import stat
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click

from onnxmerge.cli.command import CUDA_SECTION, OUTPUT_SECTION
from onnxmerge.options import (
    DECIDED_FIDELITY,
    DEFAULT_CHANGED_DECISIONS,
    DEFAULT_FIDELITY,
    DEFAULT_TARGETS,
    STREAM_FIDELITY,
)
from onnxmerge.options.checks import COLORS, CRITERION_NAMES, CUDNN_SEARCHES, FITS, METHOD_NAMES, PROVIDERS, SCOPES, TARGETS

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


def section(title: str, *options: Decorator) -> Decorator:
    """Several options as one decorator, below a title in --help."""

    def decorate(command: Any) -> Any:
        before = len(getattr(command, "__click_params__", []))
        command = combined(*options)(command)
        for option in command.__click_params__[before:]:
            option.section = title
        return command

    return decorate


def _option(name: str, kind: Any, metavar: str | None, text: str, default: Any = None) -> Decorator:
    """An option that takes a value; where the Python API has the default, the text names it."""
    return click.option(name, type=kind, metavar=metavar, help=text, default=default, show_default=True)


def _choice(name: str, choices: tuple[str, ...], text: str, default: str | None = None) -> Decorator:
    return _option(name, click.Choice(choices), None, text, default)


def _flag(name: str, default: bool | None, text: str) -> Decorator:
    return click.option(name, default=default, show_default=default is not None, help=text)


OUTPUT = section(
    OUTPUT_SECTION,
    click.option(
        "--report", "reports", type=FILE, multiple=True, help="Report file: .html, .md or .json; repeatable.  [default: none]"
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, and nothing else there."),
    click.option("-q", "--quiet", is_flag=True, help="Print the verdict alone, and no progress."),
    click.option("-v", "--verbose", is_flag=True, help="Tell the progress of the work step by step, with times."),
)
_PROVENANCE = click.option(
    "--no-provenance", "provenance", flag_value=False, default=True, help="No metadata in the model that say how it was made."
)
SAVING = section(
    OUTPUT_SECTION,
    _option("--save-plan", FILE, "FILE.json", "File for the plan: which channels of which group stayed, for --plan."),
    click.option("--in-place", is_flag=True, help="OUTPUT may be MODEL itself, which is then replaced."),
    _PROVENANCE,
)
PROVENANCE = section(OUTPUT_SECTION, _PROVENANCE)
INPUTS = section(
    "Inputs to solve and check on",
    _option(
        "--calibration",
        FILE,
        None,
        "Inputs: .npz, .npy, .jsonl, or a folder of images, .npy or .npz.  [default: synthetic]",
    ),
    _option("--input-range", (float, float), "LOW HIGH", "Values that pixels 0 and 255 become.  [default: 0 1]"),
    _option("--mean", numbers, "M[,M,M]", "Mean subtracted from pixels, for all channels or each.  [default: 0]"),
    _option("--std", numbers, "S[,S,S]", "Standard deviation that pixels are then divided by, likewise.  [default: 1]"),
    _choice("--fit", FITS, "How images get the model's height and width; letterbox pads with 114.  [default: crop]"),
    _choice("--color", COLORS, "Order of the channels that the model takes of images.  [default: rgb]"),
    click.option(
        "--input-shape",
        multiple=True,
        metavar="[NAME:]N,N,...",
        help="Sizes of a dynamic input, repeatable: 1,3,640,640.  [default: of calibration inputs, of the graph, or usual ones]",
    ),
    _option("--samples", int, "N", "Number of synthetic inputs, or most calibration inputs.  [default: by the layers, or all]"),
    _option("--seed", int, "S", "Seed of the random generator: the same seed gives the same bytes.", 0),
)
_ON_CPU = (
    _option("--threads", int, "N", "Threads of one operator.  [default: all processors, or OMP_NUM_THREADS if less]"),
    _option("--max-memory", str, "SIZE", "Memory that the first run of a model may take.  [default: 2GB, or twice the model]"),
)
RUNNING = section(
    "Running the models",
    _choice("--provider", PROVIDERS, "Execution provider; auto takes CUDA where it works, else the CPU.", "auto"),
    *_ON_CPU,
)
RUNNING_ON_CPU = section("Running the models", *_ON_CPU)
_CUDA = (
    _flag("--tf32/--no-tf32", None, "Arithmetic in TF32.  [default: for timing, not for comparing]"),
    _choice("--cudnn-search", CUDNN_SEARCHES, "Search of cuDNN for its algorithms.  [default: exhaustive]"),
)
CUDA = section(CUDA_SECTION, *_CUDA)
CUDA_TIMING = section(
    CUDA_SECTION, *_CUDA, click.option("--cuda-graph", is_flag=True, help="Replays of a CUDA graph are timed; needs CUDA.")
)
BATCH = _option("--batch", int, "N", "Inputs in one call where models are timed, or time predicted.  [default: 1]")
BATCHES = _option("--batch", batch_sizes, "N[,N]", "Inputs in one call, or several numbers to time in turn.  [default: 1]")
MIN_SPEEDUP = _option("--min-speedup", float, "X", "Least speed-up: 1.2 is 1.2 times as fast.  [default: none]")
BENCH = _flag("--bench/--no-bench", None, "Timing of each result against MODEL.  [default: bench]")
_CHANGED_DECISIONS = "Greatest share of best classes expected to change, each counted by how far it leads: 0.02 or 2%."
THRESHOLDS = combined(
    _option("--min-fidelity", str, "F", "Least fidelity of the worst output, 0.9 or 90%.  [default: none]"),
    _option("--min-cosine", float, "C", "Least mean cosine similarity.  [default: none]"),
    _option("--min-top1-agreement", str, "A", "Least share of inputs whose best class stays, 0.98 or 98%.  [default: none]"),
    _option("--max-relative-l2", str, "E", "Greatest mean relative L2 error, 0.1 or 10%.  [default: none]"),
    _option("--max-params", str, "SHARE", "Greatest share of the parameters that may be left, 0.5 or 50%.  [default: none]"),
    _option("--max-macs", str, "SHARE", "Greatest share of the MACs that may be left, 0.5 or 50%.  [default: none]"),
    click.option("--require-smaller", is_flag=True, help="Failure where the file did not become smaller."),
)
CHECKS_TITLE = "Checks, and thresholds that end with exit code 1"
CHECKS = section(
    CHECKS_TITLE,
    _flag("--verify/--no-verify", True, "Comparison with MODEL before anything is written; without it nothing is timed either."),
    BENCH,
    BATCH,
    THRESHOLDS,
    MIN_SPEEDUP,
)
VERIFY_THRESHOLDS = section(
    CHECKS_TITLE,
    _option(
        "--max-changed-decisions",
        str,
        "X",
        f"{_CHANGED_DECISIONS}  [default: none]",
    ),
    THRESHOLDS,
)
TIMING = section("Timing", BENCH, BATCH)
TIMING_BATCHES = section("Timing", BATCHES, MIN_SPEEDUP)
GROUPS = section(
    "Which channel groups",
    _choice(
        "--scope",
        SCOPES,
        "Kinds of groups; chains: only those with a single producing layer; stream: all, and the residual streams that only"
        " LayerNorm or RMSNorm reads, cut to their principal directions.  [default: all]",
    ),
    click.option("--whole-heads", is_flag=True, help="Attentions lose whole heads, in place of channels of every head."),
    click.option("--include", multiple=True, metavar="GLOB", help="Pattern of producers whose groups shrink.  [default: all]"),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Pattern of producers whose groups stay.  [default: none]"),
)
MINIMIZE = _choice("--minimize", TARGETS, "What the smallest model that passes has the least of.  [default: latency]")
_TIME_LIMIT = _option(
    "--time-limit",
    str,
    "TIME",
    "Time after which the best found that keeps what is asked is taken: 300 (s), 90s, 5m, 1h.  [default: none]",
)
_ROUND_TO = _option("--round-to", str, "N", "Multiple of channels kept; auto: 8 or less; measured: the fastest.  [default: auto]")
SIZE = section(
    "How small (one of --target, --ratio and --plan, or what the outputs must keep)",
    _option(
        "--max-changed-decisions",
        str,
        "X",
        f"{_CHANGED_DECISIONS}  [default: {DEFAULT_CHANGED_DECISIONS:g}]",
    ),
    _option(
        "--fidelity",
        str,
        "F",
        "Least share of every output's variance that is kept: 0.9 or 90%; alone it counts no decisions.  [default:"
        f" {DECIDED_FIDELITY:g} of outputs with best classes, {DEFAULT_FIDELITY:g} of others, {STREAM_FIDELITY:g}"
        " of all where states go from call to call]",
    ),
    MINIMIZE,
    _option("--target", str, "K=V", "Share of params, macs or latency that may remain: macs=0.5 or macs=50%."),
    _option("--ratio", str, "R", "Share of every group's channels that is removed, 0 <= R < 1: 0.5 or 50%."),
    _option("--plan", FILE, None, "Plan file written by --save-plan, and perhaps edited."),
    _ROUND_TO,
    _TIME_LIMIT,
)
SWEEP = section(
    "How small",
    _option("--targets", str, "K=V,...", "Targets of the points: what remains, 0.5 or 50%.", DEFAULT_TARGETS),
    MINIMIZE,
    _ROUND_TO,
    _TIME_LIMIT,
)
SWEEP_WORK = section(
    "Where the points are made",
    _option("--out", FILE, "FOLDER", "Folder that keeps the models.  [default: they are not kept]"),
    _option("--jobs", int, "N", "Number of processes that compress.  [default: here, one after the other]"),
    _option("--dask", str, "ADDRESS", "Address of a Dask scheduler whose workers compress.  [default: here]"),
)
_METHOD = (
    _choice("--method", METHOD_NAMES, "Compensation method: solve anew, merge similar channels, or nothing (prune).", "auto"),
    _choice("--criterion", CRITERION_NAMES, "Importance criterion: which channels are removed first.", "auto"),
    _option("--threshold", float, "T", "For merge, the cosine similarity below which a channel is dropped, not merged.", 0.1),
    _option("--cosine-weight", float, "L", "For merge, the weight of the cosine distance, lambda in the paper.", 0.85),
)
METHOD = section("Method", *_METHOD)
SENSITIVITY = section(
    "Sensitivity",
    click.option("--sensitivity", is_flag=True, help="Fidelities with 25, 50 and 75 % of each group removed are measured too."),
    _ROUND_TO,
)
COMPARISON = section(
    "What is compared",
    _option("--labels", FILE, None, "Class of each calibration input, .npy or .npz, for the accuracy of both models."),
    click.option("--layers", is_flag=True, help="Comparison layer by layer too, which names the first one that differs."),
    _option("--save-worst", FILE, "FILE.npz", "File for the input that differs most, to give to --calibration."),
)
