"""Results on a terminal, in its width. What matters most comes last, where the eye is when a command ends."""

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from onnxmerge import results
from onnxmerge.errors import Refusal
from onnxmerge.report import columns, sentences
from onnxmerge.report.documents import Result
from onnxmerge.report.reasons import SharedReason, notes, reasons
from onnxmerge.report.tables import TONES, Column, fits, fitted, without_common
from onnxmerge.report.verdict import verdict_of
from onnxmerge.report.wording import as_command_line, listed, printable, shortened
from onnxmerge.results.execution import chosen_sizes

MAX_NAMES = 6  # of one reason; --json and --report list more
_NAME_WIDTH = 36  # characters of a name in a list


def print_shown(show: Callable[[Console], None]) -> None:
    """Print what a function shows; in a file lines have no blanks at their ends, to which tables are filled up."""
    console = Console()
    if console.is_terminal:
        show(console)
        return
    with console.capture() as captured:
        show(console)
    console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def show_inspection(console: Console, result: results.Inspection) -> None:
    """The groups, those that save most first, the layers that must stay whole and why, the size of the model."""
    _groups(console, columns.ranked(result.groups), compressed=False, input_description=result.input_description)
    _untouched(console, result.refusals, compressed=False)
    _line(console, shortened(result.model, console.width), "bold")
    _line(console, sentences.size_line(result.size))
    _lines(console, [sentences.provenance_line(result.provenance)], "dim")
    _inputs(console, result)


def show_compression(console: Console, result: results.Compression) -> None:
    """The groups that were compressed, the layers that were not and why, fidelity, sizes and latency, warnings."""
    _groups(console, result.groups, compressed=True)
    _untouched(console, result.refusals, compressed=True)
    if result.fidelity is not None:
        _fidelity(console, result.fidelity)
        console.print()
    arrow = " -> " if console.options.ascii_only else " → "
    half = (console.width - len(arrow)) // 2
    _line(console, f"{shortened(result.model, half)}{arrow}{shortened(result.output, half)}", "bold")
    console.print(fitted(columns.size_columns(result), console.width))
    _lines(console, [*sentences.inputs_lines(result.inputs), *result.simplifications], "dim")
    if result.latency is not None:
        told = () if result.fidelity is None else sentences.execution_lines(result.fidelity.execution)
        _latency(console, result.latency, told)
    _warnings(console, map(as_command_line, result.warnings))
    if not result.failures:
        _written(console, f"{result.output} in {result.seconds:.1f} s")


def show_verification(console: Console, result: results.Verification) -> None:
    """How close the outputs are; the error message of the command names what fails."""
    _fidelity(console, result.fidelity)
    _lines(console, sentences.inputs_lines(result.inputs), "dim")
    _warnings(console, map(as_command_line, result.warnings))


def show_benchmark(console: Console, result: results.Benchmark) -> None:
    """Latency and throughput of both models, or a row for each batch size where there are several."""
    _line(console, sentences.LATENCY, "bold")
    first = result.batches[0]
    if len(result.batches) == 1:
        console.print(fitted(columns.latency_columns(first), console.width))
        _latency(console, first)
        _inputs(console, result)
        return
    console.print(fitted(columns.batch_columns(result.batches), console.width))
    _lines(console, [sentences.macs_line(first), *sentences.timing_lines(first)], "dim")
    _execution(console, first.execution, first.provider)
    _inputs(console, result)


def show_sweep(console: Console, result: results.Sweep) -> None:
    """The original model, a row for each target, warnings, the files that were written."""
    _line(console, shortened(result.model, console.width), "bold")
    _line(console, sentences.size_line(result.before))
    _lines(console, sentences.inputs_lines(result.inputs), "dim")
    console.print()
    table, common = without_common(columns.sweep_columns(result))
    narrow = not _fits_without_optional(table, console.width)
    if narrow:
        table, common = without_common(columns.sweep_columns(result, narrow=True))
        if not _fits_without_optional(table, console.width):
            table = [column for column in table if column.header != columns.CHANGED_NARROW]
    _line(console, f"{sentences.sweep_title(result)}: what is left, and how close{'; all: ' * bool(common)}{common}", "bold")
    console.print(fitted(table, console.width))
    inputs = f"inputs: {printable(result.input_description)}" if result.input_description else None
    _lines(console, [inputs, *sentences.sweep_lines(result, narrow=narrow)], "dim")
    _warnings(console, map(as_command_line, sentences.sweep_warnings(result)))
    for point in result.points:
        if point.output:
            _written(console, point.output)


def _fits_without_optional(table: Sequence[Column], width: int) -> bool:
    return fits([column for column in table if not column.optional], width)


def show_verdict(console: Console, result: Result) -> None:
    """The last line of every command."""
    found = verdict_of(result)
    console.print(Text(f"\n{as_command_line(found.text)}", style=f"bold {TONES[found.tone]}"))


def _inputs(console: Console, result: results.Inspection | results.Benchmark) -> None:
    """The sizes of the inputs, and a warning where the program chose them."""
    _lines(console, sentences.inputs_lines(result.inputs), "dim")
    _warnings(console, map(as_command_line, chosen_sizes(result.inputs)))


def _groups(console: Console, groups: Sequence[results.GroupResult], *, compressed: bool, input_description: str = "") -> None:
    """A table of groups; notes are its last column where they fit, and a list below it elsewhere."""
    title = sentences.groups_title(groups, compressed=compressed)
    if not groups:
        _line(console, title, "yellow")
        console.print()
        return
    note = Column("note", [printable(as_command_line(group.note)) for group in groups], left=True)
    table, common = without_common(columns.group_columns(groups, compressed=compressed))
    inline = any(group.note for group in groups) and fits([*table, note], console.width)
    _line(console, f"{title}{', all: ' * bool(common)}{common}", "bold")
    console.print(fitted([*table, note] if inline else table, console.width))
    lines = [sentences.SAVED if compressed else sentences.SAVABLE]
    if any(column.header == "error" for column in table):
        lines.append(f"{sentences.ERROR}{f'; {sentences.PRUNED}' * fits(table, console.width)}")
    _lines(console, lines, "dim")
    if input_description:
        _line(console, sentences.sensitivity_line(input_description), "dim")
    console.print()
    if not inline:
        _reasons(console, sentences.NOTES, notes(groups))


def _untouched(console: Console, refusals: Sequence[Refusal], *, compressed: bool) -> None:
    shared = reasons(refusals)
    _reasons(console, sentences.untouched_title(shared, compressed=compressed), shared)


def _reasons(console: Console, title: str, shared: Sequence[SharedReason]) -> None:
    """Each reason with the number of layers that it holds for, and below it their names."""
    if not shared:
        return
    _line(console, title, "bold")
    for reason in shared:
        count = f"{len(reason.layers)}: " if reason.layers else ""
        _line(console, f"{count}{reason.heading(_NAME_WIDTH)}", indent=2)
        if reason.names:
            _line(console, listed(reason.names, MAX_NAMES, _NAME_WIDTH), "dim", indent=4)
    console.print()


def _fidelity(console: Console, fidelity: results.Fidelity) -> None:
    outputs = fidelity.outputs
    table = columns.measure_rows(outputs)
    if len(outputs) > columns.MAX_OUTPUT_COLUMNS or not fits(table, console.width):
        table = columns.output_rows(outputs, narrow=True)
    _line(console, sentences.fidelity_title(fidelity), "bold")
    console.print(fitted(table, console.width))
    _line(console, f"inputs: {printable(fidelity.input_description)}; {fidelity.provider}", "dim")
    _execution(console, fidelity.execution, fidelity.provider)
    _lines(console, sentences.content_lines(fidelity), "dim")
    if fidelity.accuracy is not None:
        _line(console, sentences.accuracy_line(fidelity.accuracy))
    if fidelity.layer_comparison is not None:
        _layers(console, fidelity.layer_comparison)
    _lines(console, [printable(output.defect) for output in outputs if output.defect], "red")


def _layers(console: Console, layers: results.LayerComparison) -> None:
    console.print()
    _line(console, sentences.layers_title(layers), "bold")
    table = columns.deviation_columns(layers)
    if layers.deviations:
        console.print(fitted(table, console.width))
    _lines(console, sentences.layers_lines(layers, len(table[0].cells)), "dim")
    _lines(console, map(printable, layers.unexplained), "red")
    style = "green" if layers.first_deviation is None else "red" if layers.same_channel_counts else "yellow"
    _line(console, sentences.first_deviation_line(layers), style)


def _latency(console: Console, latency: results.LatencyComparison, told: Sequence[str] = ()) -> None:
    """told: lines on the execution that have been printed."""
    _lines(console, [sentences.savings_line(latency), *sentences.timing_lines(latency)], "dim")
    _execution(console, latency.execution, latency.provider, told)


def _execution(console: Console, execution: results.Execution | None, provider: str, told: Sequence[str] = ()) -> None:
    _lines(console, [line for line in sentences.execution_lines(execution) if line not in told], "dim")
    _lines(console, sentences.other_provider_lines(execution, provider), "yellow")


def _warnings(console: Console, warnings: Iterable[str]) -> None:
    _lines(console, [f"warning: {printable(warning)}" for warning in warnings], "yellow")


def _written(console: Console, text: str) -> None:
    console.print(Text(f"wrote {printable(text)}", style="green"), soft_wrap=True)


def _lines(console: Console, lines: Iterable[str | None], style: str) -> None:
    for line in filter(None, lines):
        _line(console, line, style)


def _line(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    line = Text(text, style=style)
    console.print(Padding(line, (0, 0, 0, indent), expand=False) if indent else line)
