"""`make readme`: run the demo and put what it prints into README.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from digits import ROOT

BLOCK = re.compile(r"(<!-- transcript[^>]*-->\n).*?(<!-- end of transcript -->)", re.DOTALL)


def main() -> None:
    """In 80 columns, without escape codes."""
    settings = {"COLUMNS": "80", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(ROOT / "benchmarks" / "demo.py")]
    printed = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    lines = "\n".join(line.rstrip() for line in printed.splitlines())
    readme = ROOT / "README.md"
    text, found = BLOCK.subn(lambda match: f"{match[1]}```text\n{lines}\n```\n{match[2]}", readme.read_text(encoding="utf-8"))
    if found != 1:
        sys.exit("README.md has no place for the transcript")
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
