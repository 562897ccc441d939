"""What a command writes: its result on stdout, report files, and the progress of its work on stderr."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from onnxmerge.execution.versions import versions
from onnxmerge.onnxio.model_files import weight_files
from onnxmerge.report.documents import Provenance, Result, json_text
from onnxmerge.report.progress import progress_bar
from onnxmerge.report.terminal import (
    show_benchmark,
    show_compression,
    show_inspection,
    show_sweep,
    show_verdict,
    show_verification,
)
from onnxmerge.report.wording import printable
from onnxmerge.report.writing import check_reports, write_report
from onnxmerge.results import Benchmark, Compression, Inspection, Sweep, Verification

__all__ = ["check_report_paths", "progress_bar", "show"]

_SHOWN_BY: dict[type, Callable[[Console, Any], None]] = {
    Inspection: show_inspection,
    Compression: show_compression,
    Sweep: show_sweep,
    Verification: show_verification,
    Benchmark: show_benchmark,
}
"""Type of a result -> what prints it for people."""


def check_report_paths(reports: Sequence[Path], files: Mapping[str, Path | None], models: Sequence[Path]) -> None:
    """OptionError where a report would overwrite one of the files (what it is -> its path) or weights beside a model."""
    weights = {what: path for model in models if reports for what, path in weight_files(model).items()}
    check_reports(reports, {**weights, **files})


def show(result: Result, as_json: bool, reports: Sequence[Path]) -> None:
    """Print a result, as text or as JSON, and write it to the report files.

    Parameters
    ----------
    result : Result
        What a verb returned.
    as_json : bool
        Whether stdout gets JSON, and nothing else.
    reports : Sequence[Path]
        Files to be written.
    """
    command = shlex.join(["onnxmerge", *click.get_current_context().obj])
    made_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    provenance = Provenance(command, made_at, versions())
    if as_json:
        click.echo(json_text(result, provenance))
    else:
        _SHOWN_BY[type(result)](Console(), result)
    for report in reports:
        write_report(result, report, provenance)
        if not as_json:
            click.echo(f"wrote {printable(str(report))}")
    if not as_json:
        show_verdict(Console(), result)
