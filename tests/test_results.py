"""RESULTS.md: every figure in it is written from a file of results by the command above it."""

import json
import re

import budgets
import compare
import cost
import pytest
import results
import speed
from rivals import tables

PAGE = results.RESULTS.read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- ([\w-]+) -->\n(.*?)\n<!-- end of \1 -->", PAGE, re.DOTALL))
WRITTEN_BY = {
    "compare": lambda _: tables.rendered(compare.ordered(compare.read())),
    "speed-cpu": speed.rendered,
    "speed-cuda": speed.rendered,
    "cost": cost.rendered,
    "budgets": budgets.rendered,
}
FIGURE = re.compile(r"^\||\d ?%|\d\.\d|\b\d+ (?:ms|s|seconds|minutes|points|MiB|GiB)\b", re.MULTILINE)


@pytest.mark.parametrize("name", WRITTEN_BY)
def test_a_block_is_what_its_file_gives(name):
    found = json.loads((results.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert BLOCKS[name] == WRITTEN_BY[name](found)


def test_no_figure_stands_outside_of_the_blocks():
    assert BLOCKS.keys() == WRITTEN_BY.keys()
    typed = PAGE
    for text in BLOCKS.values():
        typed = typed.replace(text, "")
    assert FIGURE.search("91.7") and FIGURE.search("| a |") and FIGURE.search("in 4 seconds")  # noqa: PT018
    assert not FIGURE.findall(re.sub(r"arXiv [\d.]+|```console.*?```|`[^`]*`", "", typed, flags=re.DOTALL))


def test_a_row_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    made = []

    def row(name):
        made.append(name)
        return {"seconds": len(made)}

    for again, expected in ((False, [1, 2]), (False, [1, 2]), (True, [3, 4])):
        found = results.Results("some", ("name", "size"), again=again)
        for name in ("a", "b"):
            found.row(name, 1, make=lambda name=name: row(name))
        assert [each["seconds"] for each in results.Results("some", ("name", "size")).rows] == expected
    assert made == ["a", "b", "a", "b"]


def test_a_run_that_is_ended_early_writes_what_is_there(tmp_path, monkeypatch):
    page = tmp_path / "RESULTS.md"
    page.write_text("before\n<!-- some -->\nold\n<!-- end of some -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "RESULTS", page)
    found = results.Results("some", ("name",))
    found.row("a", make=lambda: {})
    with pytest.raises(KeyboardInterrupt), found.told(lambda rows: f"{len(rows)} rows"):
        raise KeyboardInterrupt
    assert page.read_text(encoding="utf-8") == "before\n<!-- some -->\n1 rows\n<!-- end of some -->\nafter\n"
