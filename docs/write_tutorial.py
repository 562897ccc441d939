"""Runs docs/tutorial.md in a temporary folder and writes below each command what it prints: `python docs/write_tutorial.py`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def refreshed(text: str, folder: Path) -> str:
    """The page with its commands run in a folder. CalledProcessError where one fails."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": programs, "COLUMNS": "90", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=True)
        return "".join(f"{line.rstrip()}\n" for line in done.stdout.decode().splitlines())

    def again(block: re.Match[str]) -> str:
        if block[1] == "python":
            run(sys.executable, "-c", block[2])
            return block[0]
        commands = [line for line in block[2].splitlines() if line.startswith("$ ")]
        return "```console\n" + "\n".join(f"{line}\n{run('bash', '-c', line[2:])}" for line in commands) + "```"

    return BLOCK.sub(again, text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "models").symlink_to(ROOT / "models")
        page = refreshed(PAGE.read_text(encoding="utf-8"), Path(name))
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE}")
