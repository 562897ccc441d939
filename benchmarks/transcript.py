"""`make readme`: run the demo, put what it prints into docs/report.md, and its command and its end into README.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from digits import ROOT


def main() -> None:
    """In 80 columns, without escape codes."""
    settings = {"COLUMNS": "80", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(ROOT / "benchmarks" / "demo.py")]
    printed = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    lines = [line.rstrip() for line in printed.splitlines()]
    _put(ROOT / "docs" / "report.md", lines)
    _put(ROOT / "README.md", shortened(lines))


def shortened(lines: list[str]) -> list[str]:
    """The command, and what follows from the table of sizes on."""
    return [*lines[: lines.index("") + 1], "...", *lines[next(row for row, line in enumerate(lines) if " → " in line) :]]


def _put(page: Path, lines: list[str]) -> None:
    """Replace what stands between the two marks of a page."""
    block = re.compile(r"(<!-- transcript[^>]*-->\n).*?(<!-- end of transcript -->)", re.DOTALL)
    text = "\n".join(["```text", *lines, "```", ""])
    page_text, found = block.subn(lambda match: f"{match[1]}{text}{match[2]}", page.read_text(encoding="utf-8"))
    if found != 1:
        sys.exit(f"{page.name} has no place for the transcript")
    page.write_text(page_text, encoding="utf-8")


if __name__ == "__main__":
    main()
