"""Hooks of MkDocs: pages that lie outside of docs/, links to them, and formulas as MathML, which needs no script."""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/RESULTS.md": "results.md",
    "examples/README.md": "examples.md",
}
"""File of the project -> page of the site."""
PLOTS = "benchmarks/results/"
"""Folder of the plots, which is "results/" on the site."""

LINK = re.compile(r"\[([^\]]*)\]\(([^):#]+)(#[^)]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=linked(text, posixpath.dirname(source))))
    for plot in sorted((ROOT / PLOTS).glob("*.svg")):
        files.append(File.generated(config, f"results/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ lead to pages of the site."""
    return markdown if page.file.src_uri in PAGES.values() else linked(markdown, "docs")


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML."""
    return FORMULA.sub(lambda found: _mathml(html.unescape(found[3]), found[2] == "["), content)


def linked(markdown: str, folder: str) -> str:
    """Links of a page in a folder of the project: to a page of the site where there is one, else the name of the file alone."""

    def changed(link: re.Match[str]) -> str:
        words, path, anchor = link[1], posixpath.normpath(posixpath.join(folder, link[2])), link[3] or ""
        if path in PAGES:
            return f"[{words}]({PAGES[path]}{anchor})"
        if path.startswith(PLOTS) and path.endswith(".svg"):
            return f"[{words}](results/{posixpath.basename(path)})"
        if path.startswith("docs/") and (ROOT / path).is_file():
            return f"[{words}]({path.removeprefix('docs/')}{anchor})"
        return f"`{path}`" if words.strip("`") in (path, link[2]) else f"{words} (`{path}`)"

    return LINK.sub(changed, markdown)


def _mathml(formula: str, is_block: bool) -> str:
    return convert(formula, display="block" if is_block else "inline")
