"""What benchmarks found: rows in results/NAME.json, saved one at a time so that a benchmark goes on where it stopped, and the
tables of RESULTS.md, which are written from these files alone."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime

import onnxmerge
from onnxmerge.execution.processor import processor_name

FOLDER = Path(__file__).resolve().parent / "results"
RESULTS = FOLDER.with_name("RESULTS.md")

Row = dict[str, Any]


class Results:
    """The rows of one benchmark.

    Parameters
    ----------
    name : str
        Of the file, and of the block of RESULTS.md.
    key : tuple of str
        The fields that tell a row from others.
    again : bool
        Whether rows that are there are made once more.
    """

    def __init__(self, name: str, key: tuple[str, ...], *, again: bool = False) -> None:
        self.name, self.key, self.again = name, key, again
        self.file = FOLDER / f"{name}.json"
        stored = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else []
        self.by_key: dict[tuple[Any, ...], Row] = {self._key_of(row): row for row in stored}

    @property
    def rows(self) -> list[Row]:
        """In the order in which they were made first."""
        return list(self.by_key.values())

    def row(self, *values: Any, make: Callable[[], Row]) -> Row:
        """The row whose key fields have these values; `make` gives the other fields where it is not there yet."""
        if self.again or values not in self.by_key:
            self.by_key[values] = {**dict(zip(self.key, values, strict=True)), **make()}
            save(self.file, self.rows)
        return self.by_key[values]

    @contextmanager
    def told(self, rendered: Callable[[list[Row]], str]) -> Iterator[None]:
        """Write the block of RESULTS.md at the end, of what is there where something ends it early too."""
        try:
            yield
        finally:
            write_block(self.name, rendered(self.rows), RESULTS)

    def _key_of(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.key)


def save(file: Path, found: Any) -> None:
    """Write a JSON file, whole or not at all."""
    file.parent.mkdir(exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def measured_here(versions: dict[str, str], *, gpu: bool = False) -> Row:
    """The fields that say what a row was measured with; versions: of packages beside the program and ONNX Runtime."""
    own = {"onnxmerge": onnxmerge.__version__, "onnxruntime": onnxruntime.__version__}
    return {"versions": own | versions, "processor": processor_name(gpu=gpu)}


def conditions(rows: Iterable[Row], *more: str) -> str:
    """The processors and versions of rows, as one line."""
    done = [row for row in rows if "processor" in row]
    versions: dict[str, list[str]] = {}
    for row in done:
        for name, version in row["versions"].items():
            if version not in versions.setdefault(name, []):
                versions[name].append(version)
    listed = ", ".join(f"{name} {' and '.join(each)}" for name, each in sorted(versions.items()))
    return f"{', '.join([' and '.join(dict.fromkeys(row['processor'] for row in done)), *more])}; {listed}."


def table(headers: tuple[str, ...], words: int, rows: list[tuple[str, ...]]) -> list[str]:
    """The lines of a table in Markdown; the first `words` columns are words, the others numbers."""
    lines = [headers, ("---",) * words + ("---:",) * (len(headers) - words), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def write_block(name: str, text: str, page: Path = RESULTS) -> None:
    """Between two marks of a page."""
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    written, count = block.subn(lambda match: f"{match[1]}{text}\n{match[2]}", page.read_text(encoding="utf-8"))
    if count != 1:
        sys.exit(f"{page} has no place for {name}")
    page.write_text(written, encoding="utf-8")
