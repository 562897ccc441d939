"""Report files: named well before any work, written whole or not at all after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onnxmerge.errors import OptionError
from onnxmerge.onnxio.files import check_place, write_whole
from onnxmerge.report.documents import Result, Run, json_text
from onnxmerge.report.html import page

WRITERS: dict[str, Callable[[Result, Run], str]] = {
    ".html": page,
    ".json": lambda result, run: f"{json_text(result, run)}\n",
}


def check_reports(reports: Sequence[Path], kept: Mapping[str, Path | None]) -> None:
    """OptionError where a report has another suffix, no place, or the place of a file that must stay.

    kept: what a file is -> its path, None where there is none; files in a folder of calibration inputs count too.
    """
    for number, report in enumerate(reports):
        if report.suffix.lower() not in WRITERS:
            raise OptionError(f"the report {report} must be named .html or .json")
        others = {f"the report {other}": other for other in reports[:number]}
        check_place(report, "the report", {**kept, **others})


def write_report(result: Result, report: str | Path, run: Run | None = None) -> None:
    """The result as .html or .json, by the file's suffix. OptionError where it cannot be written; what was there then stays.

    run: the command and the versions that give the result again, as far as they are known.
    """
    report = Path(report)
    check_reports([report], {})
    text = WRITERS[report.suffix.lower()](result, run or Run())
    write_whole(report, "the report", lambda draft: draft.write_text(text, encoding="utf-8"))
