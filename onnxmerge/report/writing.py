"""Report files: named well before any work, written whole or not at all after it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onnxmerge.errors import OptionError
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
        if report.exists() and not report.is_file():
            raise OptionError(f"the report {report} is no regular file; name another one")
        folder = report.resolve().parent
        if not folder.is_dir():
            raise OptionError(f"the report's folder {folder} does not exist; create it first")
        if not os.access(folder, os.W_OK):
            raise OptionError(f"the report's folder {folder} is not writable")
        others = {**kept, **{f"the report {other}": other for other in reports[:number]}}
        for what, path in others.items():
            if path is not None and _same(report, path):
                raise OptionError(f"the report {report} would overwrite {what}; name another file")


def write_report(result: Result, report: str | Path, run: Run | None = None) -> None:
    """The result as .html or .json, by the file's suffix. OptionError where it cannot be written; what was there then stays.

    run: the command and the versions that give the result again, as far as they are known.
    """
    report = Path(report)
    check_reports([report], {})
    text = WRITERS[report.suffix.lower()](result, run or Run())
    target = Path(os.path.realpath(report))
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxmerge-", dir=target.parent) as room:
            draft = Path(room) / target.name
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, target)
    except OSError as error:
        raise OptionError(f"the report {report} cannot be written: {error.strerror or error}") from error


def _same(report: Path, kept: Path) -> bool:
    if not report.exists() or not kept.exists():
        return report.resolve() == kept.resolve()
    return report.resolve().is_relative_to(kept.resolve()) if kept.is_dir() else report.samefile(kept)
