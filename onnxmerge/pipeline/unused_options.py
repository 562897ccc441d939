"""Options without effect of the verbs that compress or look at a model: refused before any work."""

from collections.abc import Iterable
from dataclasses import fields

from onnxmerge.errors import UnusedOptionError
from onnxmerge.options import SIZES, PruningOptions, Thresholds
from onnxmerge.options.unused import MERGING, READING, TIMING, refuse_unread, refuse_unused
from onnxmerge.pipeline.compress_options import CompressOptions

SOLVING = ("method", "criterion", *MERGING, "round_to")
"""What `inspect` uses to measure sensitivities alone."""
OF_RESULTS = (*SIZES, "minimize", "time_limit", *(field.name for field in fields(Thresholds)))
"""What is asked of a smaller model."""
UNREAD = tuple(name for name in READING if name != "fit")
"""What matters for the values of inputs alone; without `fit` arrays of pixels give no sizes."""
ELSEWHERE = (*TIMING, "provider", "tf32", "cudnn_search")
"""How models run on a GPU and are timed."""


def check_compress_options(options: CompressOptions) -> None:
    """Raise UnusedOptionError for an option of `compress` without effect."""
    pruning, parts = options.pruning, (options.pruning, options.inputs, options.runtime)
    off = "verify=False" if not options.verify else "bench=False"
    if not is_timed(options):
        refuse_unused(parts, ["cuda_graph"], f"`{off}` times nothing")
    for given in ("ratio", "plan"):
        if getattr(pruning, given) is not None:
            if not is_timed(options):  # elsewhere time is predicted for that batch
                refuse_unused(parts, ["batch"], f"`{off}` times nothing")
            refuse_unused(parts, ["time_limit"], f"`{given}` says how small at once, and nothing is searched")
            if pruning.uses_weights_only and not options.verify:
                refuse_unused(parts, UNREAD, f"`verify=False` with method {pruning.method} runs no inputs")
    _check_method(pruning)
    refuse_unread(options.inputs)


def check_sweep_options(options: CompressOptions, points: Iterable[CompressOptions], *, is_kept: bool) -> None:
    """Raise UnusedOptionError for an option of `sweep` without effect; is_kept: whether the models are."""
    points = list(points)
    if not any(is_timed(each) for each in (options, *points)):
        refuse_unused([options.runtime], ["cuda_graph"], "`bench=False` times nothing")
        if all(each.pruning.ratio is not None for each in points):
            refuse_unused([options.runtime], ["batch"], "`bench=False` times nothing")
    if not (options.provenance or is_kept):
        raise UnusedOptionError(
            "`provenance=False` is for models that are kept, and none is: name a folder, or drop it", "provenance"
        )
    _check_method(options.pruning)
    refuse_unread(options.inputs)


def check_inspect_options(options: CompressOptions, *, sensitivity: bool) -> None:
    """Raise UnusedOptionError for an option of `inspect` without effect."""
    parts = options.pruning, options.inputs, options.runtime, options.thresholds
    refuse_unused(parts, OF_RESULTS, "an inspection removes nothing", "drop it")
    refuse_unused(parts, ELSEWHERE, "an inspection times nothing, and measures on the CPU", "drop it")
    if not sensitivity:
        turned = options.pruning.scope == "stream"  # streams are turned by what inputs make of them
        names = SOLVING if turned else (*SOLVING, *UNREAD, "samples")
        refuse_unused(parts, names, "no sensitivities are measured", "drop it, or give `sensitivity=True`")
    _check_method(options.pruning)
    refuse_unread(options.inputs)


def is_timed(options: CompressOptions) -> bool:
    """Whether models are timed, in the end or while one is searched."""
    pruning = options.pruning
    return (options.verify and options.bench) or pruning.is_latency_target or pruning.round_to == "measured"


def _check_method(pruning: PruningOptions) -> None:
    if pruning.plan is not None:
        return  # it may name a method for each group
    if pruning.method in ("reconstruct", "prune"):
        refuse_unused([pruning], MERGING, f"`method={pruning.method}` merges nothing")
    if pruning.uses_weights_only and pruning.criterion == "reconstruction":
        refuse_unused([pruning], ["criterion"], f"`method={pruning.method}` looks at weights alone")
