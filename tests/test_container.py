"""The image, which no test can build: its Dockerfile read line by line, and what is copied into it."""

from __future__ import annotations

import os
import re
import subprocess
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES = [
    line.partition(" ")[::2] for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line[:1].isupper()
]
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()


def is_ignored(path: str) -> bool:
    """Whether a path stays out of the image's sources: a pattern names it or a folder that it lies in."""
    parts = path.split("/")
    paths = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    return any(
        fnmatch(each, pattern) or (pattern.startswith("**/") and fnmatch(each.rpartition("/")[2], pattern[3:]))
        for each in paths
        for pattern in IGNORED
    )


def test_what_git_ignores_stays_out_and_what_the_build_needs_goes_in() -> None:
    generated = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert [name for name in generated if not is_ignored(name.strip("/").replace("*", "onnxmerge"))] == []
    named = [line.split()[1:] for line in (ROOT / "MANIFEST.in").read_text().splitlines() if line.startswith("include ")]
    manifest = [name for names in named for name in names]
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    package = [str(path.relative_to(ROOT)) for path in (ROOT / "onnxmerge").rglob("*") if "__pycache__" not in path.parts]
    needed = [*manifest, "README.md", setup["metadata"]["license_files"], *package]
    assert [name for name in needed if is_ignored(name) or not (ROOT / name).exists()] == []


def test_paths_of_one_stage_are_those_of_the_next() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    copies = [arguments.split() for what, arguments in LINES if what == "COPY"]
    assert copies == [[".", "/source"], [f"--from={stages[0]}", "/dist", "/dist"]]
    assert text.index("COPY . /source") < text.index("--outdir /dist /source") < text.index("COPY --from")
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f'ENTRYPOINT ["{setup["options.entry_points"]["console_scripts"].split()[0]}"]' in text


@pytest.mark.skipif(os.name == "nt", reason="the image has a POSIX shell")
@pytest.mark.parametrize("extras", ["", "[cuda]"])
def test_the_image_installs_the_source_distribution_with_its_extras(extras: str, tmp_path: Path) -> None:
    """The last RUN, with a pip that writes down what it is given."""
    (tmp_path / "dist").mkdir()
    source = tmp_path / "dist" / "onnxmerge-1.2.3.tar.gz"
    source.touch()
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    pip.chmod(0o755)
    command = [arguments for what, arguments in LINES if what == "RUN"][-1].replace("/dist", str(tmp_path / "dist"))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "EXTRAS": extras}
    ran = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["install", "--no-cache-dir", f"{source}{extras}"]
    assert not source.exists()
