"""Report files: their paths are checked before any work, and they are written completely or not at all."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onnxmerge.errors import OptionError
from onnxmerge.onnxio.side_files import check_output_file, write_atomically
from onnxmerge.report.documents import Provenance, Result, json_text, reportable
from onnxmerge.report.html import page
from onnxmerge.report.markdown import markdown
from onnxmerge.results import LatencyComparison

WRITERS: dict[str, Callable[[Result, Provenance], str]] = {
    ".html": page,
    ".md": markdown,
    ".json": lambda result, provenance: f"{json_text(result, provenance)}\n",
}


def check_reports(reports: Sequence[Path], kept: Mapping[str, Path | None]) -> None:
    """Refuse reports that cannot be written or would overwrite another file.

    Parameters
    ----------
    reports : sequence of Path
        Files to be written.
    kept : mapping of str to Path or None
        Files that must not be overwritten: "the model" -> its path. In a folder all files count.

    Raises
    ------
    OptionError
        Where a suffix is another than .html, .md and .json, a folder does not exist, or a report would overwrite a file.
    """
    for number, report in enumerate(reports):
        if report.suffix.lower() not in WRITERS:
            raise OptionError(f"the report {report} must be named .html, .md or .json")
        others = {f"the report {other}": other for other in reports[:number]}
        check_output_file(report, "the report", {**kept, **others})


def write_report(result: Result | LatencyComparison, report: str | Path, provenance: Provenance | None = None) -> None:
    """Write a result as a page (.html), as Markdown (.md) or as a JSON document (.json).

    Parameters
    ----------
    result : Inspection, Compression, Verification, Benchmark, LatencyComparison or Sweep
        What `inspect`, `compress`, `verify`, `bench` or `sweep` returned.
    report : path
        File to write; a file of that name is replaced once the new one is complete.
    provenance : Provenance, optional
        Command, date and versions, as far as they are known.

    Raises
    ------
    OptionError
        Where the suffix is another one or the file cannot be written; a file of that name then stays as it was.
    """
    report = Path(report)
    check_reports([report], {})
    text = WRITERS[report.suffix.lower()](reportable(result), provenance or Provenance())
    write_atomically(report, "the report", lambda draft: draft.write_text(text, encoding="utf-8"))
