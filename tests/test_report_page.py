"""The page: what it says, how it is built, and that nothing of a stranger's file becomes markup; the same as Markdown."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from rich.console import Console
from samples import (
    COMPRESSION,
    EVIL,
    GROUPS,
    INSPECTION,
    OUTPUT,
    PROVENANCE,
    VARIANTS,
    VERIFICATION,
    deep,
    evil,
    verification,
)

from onnxmerge.errors import Reason, refusal
from onnxmerge.report.html import MOST_ROWS, page
from onnxmerge.report.markdown import markdown
from onnxmerge.report.terminal import show_compression
from onnxmerge.report.verdict import verdict_of
from onnxmerge.report.wording import as_command_line

STYLESHEET = files("onnxmerge.report").joinpath("templates/page.css").read_text(encoding="utf-8")
VOID = {"meta", "link", "wbr", "img"}
PAGES = pytest.mark.parametrize("kind", VARIANTS)
NAMES = pytest.mark.parametrize("name", EVIL.values(), ids=EVIL)


class Page(HTMLParser):
    """Elements with their attributes in order, the text outside <style>, and whether everything that opens closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.said.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(f"{part}\n" for part in self.said).split())


# what it says


def test_verdict_comes_first():
    text = page(COMPRESSION, PROVENANCE)
    assert (
        '<h1>Smaller by 51.7% of the parameters and 69.8% of the MACs, 1.50x as fast <span class="unbroken">[1.45, 1.54]</span>, '
        "fidelity 0.9876</h1>" in text
    )


SAID = {
    "sizes and groups": (
        "compression",
        ["25.6 M", "31%", "30.2%", "49.4 MB", "12.35 ms", "512 1,024", "merge is not valid behind HardSwish"],
    ),
    "reasons": (
        "compression",
        ["2 layers keep all channels", "1: written to the graph output y", "Softmax mixes channels (/8/Softmax)"],
    ),
    "warnings and command": (
        "compression",
        ["the fidelity rests on few inputs: give --calibration", "onnxmerge compress in.onnx out.onnx", "12.3 s", "seed 0"],
    ),
    "groups": (
        "inspection",
        ["with 1,030 channels in 2 groups", "2 layers keep all channels, and must", "4.09 G", "onnxmerge 0.1.0"],
    ),
    "sensitivity": (
        "sensitivity",
        ["0.9931", "-0.4000", "this share of one group's channels removed", "on 384 synthetic images"],
    ),
    "outputs": (
        "verification",
        [
            "Passed: fidelity 0.9876",
            "19.1 dB",
            "0.8765",
            "1.2345",
            "no. 17",
            "95.3%",
            "99.99%",
            "synthetic images (seed 0)",
            "in.onnx",
        ],
    ),
    "accuracy and layers": (
        "examined",
        ["99.66% before, 99.33% after (-0.33 points)", "Layer by layer, on 8 runs", "first deviation: /3/Conv: its weight"],
    ),
    "faults": ("examined", ["/3/Conv: a sign", "not finite", "2 others lost channels", "libcudnn is missing", "CUDA: TF32 off"]),
    "providers": ("examined", ["1 of 1 nodes of the candidate ran on another provider: b"]),
    "latency": ("benchmark", ["1.50x as fast [1.45, 1.54]", "throughput", "batch 4, CPUExecutionProvider, 2 threads"]),
    "time and MACs": (
        "benchmark",
        ["50.0% of the MACs and 33.3% of the time saved: 67%", "in 16 rounds, each with new sessions", "486 /s"],
    ),
    "batch sizes": (
        "batches",
        ["Batch 4: faster (1.50x), batch 32: slower (0.83x)", "0.77x to 0.91x"],
    ),
    "targets": (
        "sweep",
        ["3 of 4 targets gave a model; take macs=0.75: smaller by 24.9%", "75.1%", "74.6%", "76.9 MB"],
    ),
    "failures": (
        "sweep",
        ["macs=0.01: no model: at least 3 % must stay", "macs=0.25: it drifted", "out/ in-macs-0.75.onnx", "95.3%"],
    ),
    "curves": ("sweep", ["macs=0.5: 49.9% left, fidelity 0.9123", "2.00x [1.45, 1.54]", "256 synthetic images", "seed 7"]),
    "intervals": ("sweep", ["0.9123 [0.8954, 0.9271]", "5.2% [3.1%, 8.3%]", "[low, high]: 95 % interval", "changed decisions"]),
}


@pytest.mark.parametrize(("kind", "words"), SAID.values(), ids=SAID)
def test_everything_is_said(kind, words):
    text = Page(page(VARIANTS[kind], PROVENANCE)).text
    assert [word for word in words if word not in text] == []


def test_figures_are_those_of_the_terminal():
    console = Console(width=300, record=True, file=None, force_terminal=False)
    with console.capture() as shown:
        show_compression(console, COMPRESSION)
    text = Page(page(COMPRESSION, PROVENANCE)).text
    figures = re.findall(r"\d[\d,.]*(?:%| dB| ms| [kMG]?B)", shown.get())
    assert len(figures) > 15
    assert [figure for figure in figures if figure not in text] == []


def test_thresholds_missed_are_the_verdict():
    text = Page(page(replace(VERIFICATION, failures=("output 'y': mean cosine 0.5 is below 0.9",)), PROVENANCE)).text
    assert "Failed: output 'y': mean cosine 0.5 is below 0.9; fidelity 0.9876" in text
    assert "failed: output 'y': mean cosine 0.5 is below 0.9" in text


def test_output_that_is_not_finite_is_named():
    output = replace(OUTPUT, finite=False, fidelity=math.nan)
    assert "output 'logits' holds NaN or infinity" in Page(page(verification(output), PROVENANCE)).text


@pytest.mark.parametrize("count", [1, 3, 4, 20])
def test_every_output_has_every_measure(count):
    outputs = tuple(replace(OUTPUT, name=f"output_{number}", max_abs_error=2 + number / 100) for number in range(count))
    text = Page(page(verification(*outputs), PROVENANCE)).text
    assert all(f"output_{number}" in text and f"{2 + number / 100:.4f}" in text for number in range(count))
    assert "best class in top 5" in text


@pytest.mark.parametrize(
    ("result", "word"),
    [
        (replace(COMPRESSION, fidelity=None, latency=None), "Outputs compared"),
        (replace(COMPRESSION, latency=None), "Latency of one call"),
        (replace(COMPRESSION, warnings=()), "warning"),
        (replace(COMPRESSION, refusals=()), "2 layers keep all channels"),
        (replace(COMPRESSION, groups=GROUPS[:1]), "Notes on these groups"),
    ],
    ids=["no proof", "no bench", "no warnings", "no refusals", "no notes"],
)
def test_what_is_not_there_is_left_out(result, word):
    assert word in Page(page(COMPRESSION, PROVENANCE)).text
    assert word not in Page(page(result, PROVENANCE)).text


def test_no_group_at_all_is_said():
    assert "No channel group was compressed." in page(replace(COMPRESSION, groups=()), PROVENANCE)
    assert "No channel group can be compressed" in page(replace(INSPECTION, groups=()), PROVENANCE)


def test_many_names_of_one_reason_are_counted():
    refusals = tuple(refusal(f"layer{number}", Reason.SINGLE_CHANNEL) for number in range(130))
    text = Page(page(replace(INSPECTION, refusals=refusals), PROVENANCE)).text
    assert "layer11 118 more layer12" in text.replace(" ,", ",")


# how it is built


@PAGES
def test_page_is_whole_and_needs_nothing_else(kind):
    read = Page(page(VARIANTS[kind], PROVENANCE))
    assert read.all("html") == [{"lang": "en"}]
    assert len(read.all("h1")) == len(read.all("main")) == 1
    assert {tag for tag, _ in read.elements} & {"script", "iframe", "object", "video"} == set()
    assert [found["href"] for _, found in read.elements if "href" in found] == ["data:,"]
    assert not any(
        name.startswith("on") or name in ("src", "style") for tag, found in read.elements for name in found if tag != "img"
    )
    assert all(found["src"].startswith("data:image/png;base64,") and found["alt"] for found in read.all("img"))
    assert not re.search(r"url\(|@import|https?:", STYLESHEET)


@PAGES
def test_structure_is_there_for_those_who_do_not_see_it(kind):
    text = page(VARIANTS[kind], PROVENANCE)
    read = Page(text)
    assert all(found.get("scope") in ("col", "row") for found in read.all("th"))
    assert all(
        found.get("aria-hidden") or found.get("role") == "img" or "picture" not in (found.get("class") or "")
        for found in read.all("svg")
    )
    for drawn in (found for found in read.all("svg") if found.get("role") == "img"):
        for label in (drawn["aria-labelledby"] or "").split():
            assert f'id="{label}"' in text
    assert text.count("<table") == text.count("<caption") == text.count('class="scrolls"')
    identifiers = [found["id"] for _, found in read.elements if "id" in found]
    assert len(identifiers) == len(set(identifiers))
    assert not re.search(r"<th[^>]*></th>", text)


@NAMES
def test_names_stay_text(name):
    said = Page(page(evil("harmless"), PROVENANCE)).elements
    text = page(evil(name), replace(PROVENANCE, command=name))
    read = Page(text)
    assert {tag for tag, _ in read.elements} <= {tag for tag, _ in said}
    assert {key for _, found in read.elements for key in found} <= {key for _, found in said for key in found} | {"class"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    text.encode("utf-8")
    assert len(text) < 100_000


def test_short_names_are_told_as_they_are():
    text = Page(page(evil(EVIL["attribute"]), PROVENANCE)).text
    assert text.count("<img src=x onerror=alert(1)> & &amp; &#x3c;") > 5


def test_names_are_isolated_and_may_break_behind_a_slash():
    assert "<bdi><code>models/<wbr>in.onnx</code></bdi>" in page(COMPRESSION, PROVENANCE)


# long tables, and the same as Markdown


@pytest.mark.parametrize(("count", "tables"), [(MOST_ROWS, 1), (MOST_ROWS + 1, 2), (120, 2)])
def test_long_tables_are_shown_on_demand(count, tables):
    text = page(deep(count), PROVENANCE)
    assert len(re.findall(r"<table", text)) == 2 + tables  # sizes, measures, groups
    assert (f"<summary>{count - MOST_ROWS} more groups</summary>" in text) is (tables > 1)
    assert all(text.count(f"<code>/<wbr>layer/<wbr>{index}/<wbr>Conv</code>") == 1 for index in range(count))


def test_no_line_breaks_inside_an_option():
    warning = 'give `calibration`, <b> "--input-shape" x'
    text = page(replace(COMPRESSION, warnings=(warning,)), PROVENANCE)
    assert (
        'give <span class="unbroken">--calibration</span>, &lt;b&gt; &#34;<span class="unbroken">--input-shape</span>&#34; x'
        in text
    )


@PAGES
def test_no_figure_is_said_three_times(kind):
    """Figures of three digits and more in the text that is seen; those of lists and of captions of pictures apart."""
    said = Page(re.sub(r"<(title|desc|figcaption|details)\b.*?</\1>", "", page(VARIANTS[kind], PROVENANCE), flags=re.DOTALL)).text
    figures = re.findall(r"(?<![\w.])\d[\d,]*\.?\d+(?:%|x| ms| dB)", said)
    assert {figure for figure in figures if len(re.sub(r"\D", "", figure)) > 2 and figures.count(figure) > 2} == set()


@pytest.mark.parametrize("kind", VARIANTS)
def test_markdown_says_the_same_and_no_name_is_markup(kind):
    text = markdown(VARIANTS[kind], PROVENANCE)
    assert as_command_line(verdict_of(VARIANTS[kind]).text).split()[0] in text.splitlines()[0]
    assert PROVENANCE.command in text
    widths = {line.count("|") - line.count(r"\|") for line in text.split("\n\n")[-1].splitlines() if line.startswith("|")}
    assert len(widths) <= 1
    hostile = markdown(evil("```\n<b>|`*_[x](y)"), PROVENANCE)
    outside = re.sub(r"```text\n.*?\n```|`[^`\n]*`", "", hostile, flags=re.DOTALL)
    assert "`" not in outside.replace(r"\`", "")
    assert not re.search(r"(?<!\\)<(?!/?(details|summary)>)", outside)
