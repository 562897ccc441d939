"""Titles and lines about results, the same on the terminal and on a page."""

from collections.abc import Mapping, Sequence

from onnxmerge.report.reasons import SharedReason
from onnxmerge.report.wording import (
    as_command_line,
    counted,
    file_size,
    listed,
    percent,
    printable,
    quantity,
    shortened,
    two_digits,
)
from onnxmerge.results import (
    Accuracy,
    Execution,
    Fidelity,
    GroupResult,
    InputShape,
    LatencyComparison,
    LayerComparison,
    Size,
    Sweep,
)
from onnxmerge.results.execution import size_text

NOTES = "Notes on these groups"
LATENCY = "Latency of one call, both models in turn"
PROCESSOR_TIME = "timed by the processor time of the one thread, which other programs do not lengthen"
SAVED = "params, MACs, time: share of the model that the group saves, time as predicted for a CPU"
SAVABLE = "params, MACs, time: share of the model that the group can save at most, time as predicted for a CPU"
ERROR = "error: share of its consumers' output variance lost to it"
PRUNED = "pruned: the same with the method prune"
CHANGED = (
    "changed decisions: best classes expected to change, each counted by how far the reference's best class leads its second"
)
CHANGED_ON_SYNTHETIC = "changed decisions: expected on real inputs, a quarter of the best classes that change on synthetic ones"
INTERVAL = "[low, high]: 95 % interval"
MORE_THAN_MACS = 1.5
"""Share of the saving that is expected from the MACs above which something else saved most of the time."""
MAX_NODES = 6  # names of nodes in one line
NODE_WIDTH, LAYER_WIDTH = 36, 60  # characters of a name in a list, and of one alone
MARKS = {"slower": "!", "not measurable": "?"}
"""Verdict on a latency -> what stands for it in a narrow table."""
_ORIGINS = {
    "fixed": "fixed in the model",
    "batch": "fixed in the model but for the batch",
    "given": "given",
    "calibration": "of the calibration inputs",
    "graph": "as the graph tells",
    "chosen": "chosen",
}
_CONTENTS = {
    "scores": "taken for scores before a softmax, whose best classes count as decisions (`fidelity` alone counts none)",
    "sigmoid": "a sigmoid of one unit, taken for the probability of one of two classes, decided at 0.5",
    "ids": "ids or texts, of which fidelity and cosine are the share that is equal",
    "features": "features and no classes, so that no decisions are counted: fidelity, and the nearest inputs kept, judge them",
    "": "no classes for certain, so that no decisions are counted: fidelity, and the nearest inputs kept, judge them",
}
"""What an output holds -> what is told of it; of probabilities, and of what is no vector, nothing need be."""
_SETTINGS = {"use_tf32": "TF32", "enable_cuda_graph": "CUDA graph", "trt_cuda_graph_enable": "CUDA graph"}


def groups_title(groups: Sequence[GroupResult], *, compressed: bool) -> str:
    """How many groups were compressed or could be."""
    if not groups:
        return "No channel group was compressed." if compressed else "No channel group can be compressed."
    return f"{counted(len(groups), 'channel group')} {'compressed' if compressed else 'can be compressed'}"


def total_line(groups: Sequence[GroupResult]) -> str | None:
    """What all groups save together; None where there are no groups."""
    if not groups:
        return None
    names = (("parameters_saved", "parameters"), ("macs_saved", "MACs"), ("time_saved", "predicted time"))
    shares = [f"{two_digits(sum(getattr(group, field) for group in groups))} of the {what}" for field, what in names]
    return f"{shares[0]}, {shares[1]} and {shares[2]}"


def untouched_title(shared: Sequence[SharedReason], *, compressed: bool) -> str:
    """How many layers stay whole; what `reasons` gave of them."""
    count = len({name for reason in shared for name in reason.layers})
    return f"{counted(count, 'layer')} {'keep' if count != 1 else 'keeps'} all channels{'' if compressed else ', and must'}"


def sensitivity_line(input_description: str) -> str:
    """What the columns 25 %, 50 % and 75 % hold."""
    return (
        "25 %, 50 %, 75 %: fidelity of the worst output with this share of one group's channels removed, all other groups whole; "
        f"only its consumers are adapted, so mostly a lower bound; measured on {printable(input_description)}"
    )


def size_line(size: Size) -> str:
    """Parameters, MACs and bytes of a model."""
    return f"{quantity(size.parameters)} parameters, {quantity(size.macs)} MACs, {file_size(size.file_bytes)}"


def provenance_line(provenance: Mapping[str, str]) -> str | None:
    """How a model was made, as it says itself; None where this program did not make it."""
    if not provenance:
        return None
    told = {key: printable(provenance.get(key, "")) for key in ("version", "source_sha256", "options", "fidelity", "inputs")}
    close = f"; fidelity {told['fidelity']} on {told['inputs']}" if told["fidelity"] else ""
    made = f"made by onnxmerge {told['version']} of the model with SHA-256 {told['source_sha256']}"
    return f"{made}, options {told['options']}{close}"


def inputs_lines(inputs: Sequence[InputShape]) -> list[str]:
    """The sizes of a model's inputs that figures hold for and where they come from, and what their values are."""
    texts = [f"{size_text(shortened(each.name, NODE_WIDTH), each.shape)}, {_ORIGINS[each.origin]}" for each in inputs]
    more = f" and {len(texts) - MAX_NODES} more" if len(texts) > MAX_NODES else ""
    sizes = [f"for inputs of the sizes {', '.join(texts[:MAX_NODES])}{more}"] if texts else []
    made_up: dict[str, list[str]] = {}
    for each in inputs:
        made_up.setdefault(as_command_line(each.assumed), []).append(each.name)
    values = [
        f"{f'{listed(names, MAX_NODES, NODE_WIDTH)}: ' * (len(inputs) > 1)}{text}" for text, names in made_up.items() if text
    ]
    return sizes + [f"images: {each.pixels}" for each in inputs if each.pixels] + values


def fidelity_title(fidelity: Fidelity) -> str:
    """What was compared and on how many inputs."""
    return f"Outputs compared with the reference's, on {counted(fidelity.input_count, 'input')}"


def content_lines(fidelity: Fidelity) -> list[str]:
    """What outputs were taken to hold where that decides how they are judged, a line for each kind, and how decisions count."""
    names: dict[str, list[str]] = {}
    for output in fidelity.outputs:
        names.setdefault(output.holds if output.holds or output.neighbours_kept is not None else "numbers", []).append(
            output.name
        )
    told = {kind: as_command_line(text) for kind, text in _CONTENTS.items() if kind in names}
    lines = [f"{listed(names[kind], MAX_NODES, NODE_WIDTH)}: {text}" for kind, text in told.items()]
    if fidelity.most_changed is None:
        return lines
    return [*lines, CHANGED_ON_SYNTHETIC if "synthetic" in fidelity.input_description else CHANGED]


def accuracy_line(accuracy: Accuracy) -> str:
    """Accuracy of both models on the user's labels."""
    points = f"{100 * (accuracy.candidate - accuracy.reference):+.2f} points"
    return f"accuracy on the labels: {percent(accuracy.reference, 2)} before, {percent(accuracy.candidate, 2)} after ({points})"


def speedup_text(latency: LatencyComparison, *, narrow: bool = False) -> str:
    """`1.50x [1.45, 1.54]`, and behind it that it is slower or not measurably faster, as a mark where narrow."""
    low, high = latency.speedup_interval
    word = "" if latency.verdict == "faster" else f" {MARKS[latency.verdict] if narrow else latency.verdict}"
    return f"{latency.speedup:.2f}x [{low:.2f}, {high:.2f}]{word}"


def savings_line(latency: LatencyComparison) -> str | None:
    """MACs and time saved; None where MACs were not counted, or none were saved or no time was."""
    if latency.macs_ratio is None or latency.realised_saving is None or latency.verdict != "faster":
        return None
    saved = f"{percent(1 - latency.macs_ratio)} of the MACs and {percent(1 - latency.latency_ratio)} of the time saved"
    if latency.realised_saving > MORE_THAN_MACS:
        return f"{saved}: more than its MACs explain, since nodes went too, or memory was saved"
    return f"{saved}: {percent(latency.realised_saving, 0)} of the saving expected from the MACs"


def macs_line(latency: LatencyComparison) -> str | None:
    """What the column `realised` holds; None where MACs were not counted."""
    if latency.macs_ratio is None:
        return None
    return f"{percent(1 - latency.macs_ratio)} of the MACs saved; realised: time saved as a share of MACs saved"


def timing_lines(latency: LatencyComparison) -> list[str]:
    """How it was timed."""
    threads = counted(latency.threads, "thread")
    lines = [f"timed: {latency.candidate.runs:,} calls of each, batch {latency.batch_size}, {latency.provider}, {threads}"]
    if latency.warm_up_runs:
        rounds = counted(latency.rounds, "round")
        lines.append(f"in {rounds}, each with new sessions; {latency.warm_up_runs:,} warm-up calls")
    return [*lines, PROCESSOR_TIME] if latency.is_processor_time else lines


def execution_lines(execution: Execution | None) -> list[str]:
    """Why the CPU was taken instead of CUDA, why float32 instead of bfloat16, and settings of the provider."""
    if execution is None:
        return []
    fallback, settings = execution.fallback_reason, execution.provider_settings
    lines = [f"on the CPU because CUDA does not work here: {printable(fallback)}"] if fallback else []
    if execution.in_float32:
        lines.append("computed and timed in float32: the execution provider does not compute bfloat16")
    return lines + ([f"CUDA: {', '.join(_setting(*item) for item in settings.items())}"] if settings else [])


def other_provider_lines(execution: Execution | None, provider: str) -> list[str]:
    """Nodes that ran on another execution provider, a line for each model that has some."""
    lines = []
    models = () if execution is None else (execution.reference_providers, execution.candidate_providers)
    for model, providers in zip(("reference", "candidate"), models, strict=False):
        nodes = [node for node, used in providers.items() if used != provider]
        if nodes:
            names = listed(nodes, MAX_NODES, NODE_WIDTH)
            lines.append(f"{len(nodes)} of {len(providers)} nodes of the {model} ran on another provider: {names}")
    return lines


def layers_title(layers: LayerComparison) -> str:
    """What was compared and in how many runs."""
    return f"Layer by layer, on {counted(layers.runs, 'run')}"


def layers_lines(layers: LayerComparison, shown: int) -> list[str]:
    """How many nodes the table of `shown` rows leaves out, and how many tensors could be compared."""
    more = len(layers.deviations) - shown
    omitted = [f"the nodes that add most error; {more} more deviate (--json lists all)"] if more > 0 else []
    skipped = f"; {layers.skipped_tensors} others lost channels" if layers.skipped_tensors else ""
    return [*omitted, f"compared: {layers.compared_tensors} tensors of equal name and shape{skipped}; relative L2 error"]


def first_deviation_line(layers: LayerComparison) -> str:
    """The node where the deviation starts."""
    if layers.first_deviation is None:
        return "no deviation beyond rounding"
    note = f": {printable(layers.first_deviation.note)}" if layers.first_deviation.note else ""
    return f"first deviation: {shortened(layers.first_deviation.node, LAYER_WIDTH)}{note}"


def sweep_title(sweep: Sweep) -> str:
    """How many targets gave a model."""
    made = sum(point.after is not None for point in sweep.points)
    return (
        f"{made} of {len(sweep.points)} targets gave a model" if made < len(sweep.points) else counted(made, "compressed model")
    )


def sweep_warnings(sweep: Sweep) -> list[str]:
    """Warnings and failures of single targets, those with the same words together."""
    targets: dict[str, list[str]] = {}
    for point in sweep.points:
        for warning in (*point.warnings, *([f"no model: {point.failure}"] if point.failure else [])):
            targets.setdefault(warning, []).append(point.target)
    every = len(sweep.points)
    return [warning if len(names) == every > 1 else f"{', '.join(names)}: {warning}" for warning, names in targets.items()]


def sweep_lines(sweep: Sweep, *, narrow: bool = False) -> list[str]:
    """How latencies were measured, and what the table of a sweep holds; narrow: with `MARKS`, and intervals of speeds alone."""
    timed = next((point.latency for point in sweep.points if point.latency is not None), None)
    lines = []
    if timed is not None:
        how = f"batch {timed.batch_size}, {timed.provider}, {counted(timed.threads, 'thread')}"
        found = {point.latency.verdict for point in sweep.points if point.latency is not None} if narrow else set()
        marks = "".join(f"; {mark} {verdict}" for verdict, mark in MARKS.items() if verdict in found)
        lines.append(f"timed against the original model: {how}; {INTERVAL}{marks}")
    elif not narrow and any(point.fidelity_low is not None for point in sweep.points):
        lines.append(INTERVAL)
    if any(point.changed_decisions is not None for point in sweep.points):
        lines.append(CHANGED_ON_SYNTHETIC if "synthetic" in sweep.input_description else CHANGED)
    return lines


def _setting(name: str, value: str) -> str:
    """`TF32 off`, `cuDNN search heuristic`."""
    if name in _SETTINGS:
        return f"{_SETTINGS[name]} {'on' if value in ('1', 'True', 'true') else 'off'}"
    return f"cuDNN search {value.lower()}" if name == "cudnn_conv_algo_search" else f"{name} {value}"
