"""What a command writes: its result on stdout, report files, and the progress of its work on stderr."""

import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from onnxmerge.cli.configuration import taken
from onnxmerge.errors import OptionError
from onnxmerge.execution.versions import versions
from onnxmerge.onnxio.model_files import weight_files
from onnxmerge.onnxio.side_files import would_overwrite
from onnxmerge.onnxio.stored_provenance import sha256_of
from onnxmerge.options import Progress
from onnxmerge.report.documents import Provenance, Result, json_text
from onnxmerge.report.progress import progress_bar
from onnxmerge.report.terminal import (
    print_shown,
    show_benchmark,
    show_compression,
    show_inspection,
    show_sweep,
    show_verdict,
    show_verification,
)
from onnxmerge.report.wording import as_command_line, printable
from onnxmerge.report.writing import check_reports, write_report
from onnxmerge.results import Benchmark, Compression, Inspection, Sweep, Verification

_SHOWN_BY: dict[type, Callable[[Console, Any], None]] = {
    Inspection: show_inspection,
    Compression: show_compression,
    Sweep: show_sweep,
    Verification: show_verification,
    Benchmark: show_benchmark,
}
"""Type of a result -> what prints it for people."""

_FILE_NAMES = {
    "model": "the model",
    "output": "the output",
    "reference": "the reference",
    "candidate": "the candidate",
    "calibration": "the calibration inputs",
    "labels": "the labels",
    "plan": "the plan",
    "save_plan": "the plan to be saved",
    "save_worst": "the worst input",
}
"""Argument or option that names a file -> what messages call it."""


@dataclass(frozen=True)
class Output:
    """How a command shows its work and its result.

    Attributes
    ----------
    models : sequence of Path
        Models that the command reads.
    reports : sequence of Path
        Files to be written.
    as_json : bool
        Whether stdout gets JSON, and nothing else.
    quiet, verbose : bool
        Whether the verdict alone is printed, and whether progress is told step by step.
    replaced : dict of str to str
        SHA-256 of a model that the command replaces, by what reports call it.
    """

    models: Sequence[Path]
    reports: Sequence[Path]
    as_json: bool
    quiet: bool
    verbose: bool
    replaced: dict[str, str]

    @classmethod
    def taken_from(cls, options: dict[str, Any], models: Sequence[Path], **arguments: Path) -> "Output":
        """From the options of a command, which lose those that are no options of the Python API.

        OptionError where a report would overwrite a file of the command, or weights beside one of the models.
        """
        reports = options.pop("reports")
        given = {**options, **arguments}
        files = {what: given[name] for name, what in _FILE_NAMES.items() if name in given}
        weights = {what: path for model in models if reports for what, path in weight_files(model).items()}
        check_reports(reports, {**weights, **files})
        if options["quiet"] and options["verbose"]:
            raise OptionError("`quiet` and `verbose` say how much is told: drop one of the two")
        as_json, output = options.pop("as_json"), arguments.get("output")
        changed = [model for model in models if output is not None and model.is_file() and would_overwrite(output, model)]
        replaced = {f"{path}, replaced": _digest(path) for path in changed if as_json or reports}
        return cls(models, reports, as_json, options.pop("quiet"), options.pop("verbose"), replaced)

    def progress(self) -> AbstractContextManager[Progress]:
        """Shows how far the work is."""
        return progress_bar(quiet=self.quiet, verbose=self.verbose)

    def show(self, result: Result) -> None:
        """Print a result, as text or as JSON, and write it to the report files."""
        context = click.get_current_context()
        command = shlex.join(["onnxmerge", *context.obj])
        made_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        digests = {}
        if self.as_json or self.reports:
            written = _written(result)
            digests = {**(self.replaced if written else {}), **{str(path): _digest(path) for path in (*self.models, *written)}}
        provenance = Provenance(command, made_at, versions(), digests, taken(context))
        if self.as_json:
            click.echo(json_text(result, provenance))
        elif not self.quiet:
            print_shown(lambda console: _SHOWN_BY[type(result)](console, result))
            if provenance.defaults:
                click.echo(f"options: {printable(provenance.defaults)}")
        for report in self.reports:
            write_report(result, report, provenance)
            if not self.as_json and not self.quiet:
                click.echo(f"wrote {printable(str(report))}")
        if self.quiet and not self.as_json:
            for warning in result.warnings if isinstance(result, Compression | Verification) else ():
                click.echo(f"onnxmerge: warning: {printable(as_command_line(warning))}", err=True)
        if not self.as_json:
            print_shown(lambda console: show_verdict(console, result))


def _written(result: Result) -> list[Path]:
    """The models that a command wrote and kept."""
    if isinstance(result, Compression):
        return [] if result.failures else [Path(result.output)]
    return [Path(point.output) for point in result.points if point.output] if isinstance(result, Sweep) else []


def _digest(path: Path) -> str:
    """SHA-256 of a model with its weights in other files."""
    return sha256_of([path, *sorted(weight_files(path).values())])
