"""The page: what it says, that nothing of a stranger's file becomes markup, and that its colours can be read."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import combinations, pairwise

import pytest
from rich.console import Console
from samples import (
    BENCHMARK,
    COMPRESSION,
    EVIL,
    FIDELITY,
    GROUPS,
    INSPECTION,
    LATENCY,
    MEASURED,
    OUTPUT,
    POINTS,
    PROVENANCE,
    SWEEP,
    VARIANTS,
    VERIFICATION,
    deep,
    evil,
    verification,
)

from onnxmerge.errors import Reason, refusal
from onnxmerge.report.charts import error_chart, latency_chart, ticks
from onnxmerge.report.group_chart import group_charts, text_picture
from onnxmerge.report.html import MOST_ROWS, page
from onnxmerge.report.markdown import markdown
from onnxmerge.report.sweep_chart import sweep_chart, sweep_charts
from onnxmerge.report.terminal import show_compression, show_inspection
from onnxmerge.report.verdict import verdict_of
from onnxmerge.report.wording import as_command_line
from onnxmerge.results import Size

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


# charts


@pytest.mark.parametrize("count", [2, 5, 40, 120])
def test_areas_of_the_picture_compare_what_groups_save(count):
    result = COMPRESSION if count == 2 else deep(count)
    for chart, saved in zip(group_charts(result.groups), ("macs_saved", "time_saved"), strict=True):
        shares = [getattr(group, saved) for group in result.groups]
        areas = [column.width * column.height for column in chart.columns]
        assert areas == pytest.approx([share / max(shares) * max(areas) for share in shares])
        ends = [(column.x, column.x + column.width) for column in chart.columns]
        assert all(end < start for (_, end), (start, _) in pairwise(ends))
        assert 0 < ends[0][0] < ends[-1][1] < 100
        assert [column.y + column.height for column in chart.columns] == pytest.approx([chart.axis] * count)
        assert chart.bottom == pytest.approx(chart.axis)
    text = page(result, PROVENANCE)
    assert len(re.findall(r'<g><title>[^<]*</title><rect class="kept"', text)) == 2 * count
    assert "residual stream" not in text


def test_streams_are_as_wide_as_the_part_of_the_network_that_reads_them():
    """Two residual streams one after the other among 100 layers, one within the first, and what no layer of the list reads."""
    layers = list(deep(100).groups)
    streams = {0: ("s0", "w9"), 10: ("t", "w20"), 50: ("s50", "w60")}
    readers = {0: ("w1", "w50"), 10: ("w12", "w30"), 50: ("w51", "w99")}
    for index, producers in streams.items():
        layers[index] = replace(layers[index], producers=producers, consumers=readers[index], macs_saved=0.2)
    layers[99] = replace(layers[99], producers=("w99", "u"), consumers=("elsewhere",))
    layers[50] = replace(layers[50], producers=("s50", "w50"))
    chart = group_charts(layers)[0]
    columns = chart.columns
    assert [index for index, column in enumerate(columns) if column.is_stream] == [0, 10, 50]
    assert [round(columns[index].x + columns[index].width) for index in streams] == [50, 30, 99]
    areas = {index: columns[index].width * columns[index].height for index in (*streams, 7)}
    assert [areas[index] / areas[7] for index in streams] == pytest.approx([0.2 / layers[7].macs_saved] * 3)
    assert columns[0].y == columns[50].y == chart.axis + 4
    assert columns[10].y == columns[0].y + columns[0].height + 4
    assert chart.bottom == columns[10].y + columns[10].height
    assert "Grey, below the axis" in page(replace(COMPRESSION, groups=tuple(layers)), PROVENANCE)


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


def test_the_picture_as_text_names_the_groups_that_save_most():
    lines = text_picture(deep(120).groups)
    assert len(lines) == 32
    assert lines[-1].startswith("90 more groups save ")
    assert len({line.index("%") for line in lines[1:-1]}) == 1
    assert max(line.count("█") for line in lines) == 30
    assert text_picture(()) == []


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


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (8.1, 15.9, [10.0, 12.0, 14.0]),
        (0.0234, 0.0391, [0.025, 0.03, 0.035]),
        (0.7, 9.9, [2, 4, 6, 8]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_strips_stand_where_the_calls_fell():
    chart = latency_chart(LATENCY)
    medians = [each.quantiles_ms[10] for each in (LATENCY.reference, LATENCY.candidate)]
    low, high = 8.0, LATENCY.reference.quantiles_ms[-2]
    margin = 0.06 * (high - low)
    expected = [100 * (value - low + margin) / (high - low + 2 * margin) for value in medians]
    assert [strip.median for strip in chart.strips] == pytest.approx(expected)
    assert [len(strip.bands) for strip in chart.strips] == [18, 18]
    assert page(BENCHMARK, PROVENANCE).count('class="band"') == 2 * 18


def test_bands_are_darker_where_more_calls_fell():
    """Half of the calls near 1 ms, half near 2 ms: nothing in the middle, where their common median is."""
    two = (*(1 + step / 100 for step in range(11)), *(2 + step / 100 for step in range(10)))
    side = replace(LATENCY.reference, quantiles_ms=two, median_ms=two[10])
    chart = latency_chart(replace(LATENCY, reference=side, candidate=side))
    opacities = [band.opacity for band in chart.strips[0].bands]
    assert [value for index, value in enumerate(opacities) if index != 9] == pytest.approx([1.0] * 17)
    assert opacities[9] == pytest.approx(0.08 + 0.92 * math.sqrt(0.01 / 0.9), abs=0.01)


def test_outliers_leave_the_axis_of_errors_as_it_is():
    quantiles = (*(0.01 * step for step in range(20)), 5.0)
    output = replace(OUTPUT, relative_l2_quantiles=quantiles)
    chart = error_chart(replace(FIDELITY, outputs=(output, replace(output, name="far", fidelity=-1.0))))
    assert [strip.name for strip in chart.strips] == ["far", "logits"]
    assert [strip.figures for strip in chart.strips] == ["median 10.0%, worst 500.0%"] * 2
    assert [tick.label for tick in chart.ticks] == ["0%", "10%", "20%"]
    assert 45 < chart.strips[0].median < 55
    for left_out in ((0.0,) * 21, (math.inf,) * 21, ()):
        assert error_chart(replace(FIDELITY, outputs=(replace(OUTPUT, relative_l2_quantiles=left_out),))) is None
    assert error_chart(replace(FIDELITY, input_count=1)) is None


def test_equal_calls_and_missing_quantiles_draw_what_they_can():
    same = replace(LATENCY.reference, quantiles_ms=(1.0,) * 21, median_ms=1.0)
    assert (
        "nan"
        not in page(replace(BENCHMARK, batches=(replace(LATENCY, reference=same, candidate=same),)), PROVENANCE).partition(
            "<body>"
        )[2]
    )
    without = replace(LATENCY, reference=replace(same, quantiles_ms=()))
    assert latency_chart(without) is None
    assert 'class="distribution"' not in page(replace(BENCHMARK, batches=(without,)), PROVENANCE)


# colours: --ink is text, --mark is drawn, --paper lies under both


def schemes() -> dict[str, dict[str, str]]:
    """Scheme -> name of a colour -> #rrggbb, as the stylesheet sets them."""
    blocks = re.findall(r":root \{([^}]*)\}", STYLESHEET)
    return {
        scheme: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for scheme, block in zip(("light", "dark", "print"), blocks, strict=True)
    }


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """(lighter + 0.05) / (darker + 0.05)."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_colours_can_be_read(scheme):
    colours = schemes()[scheme]
    assert set(colours) == set(schemes()["light"])
    pairs = {
        (ink, paper): contrast(colours[ink], colours[paper])
        for ink in colours
        for paper in colours
        if paper.startswith("paper") and ink.startswith(("ink", "mark"))
    }
    assert len(pairs) == 14
    too_close = {pair: round(found, 2) for pair, found in pairs.items() if found < (4.5 if pair[0].startswith("ink") else 3.0)}
    assert too_close == {}


def test_colours_are_used_as_their_names_say():
    rules = re.sub(r":root \{[^}]*\}", "", STYLESHEET)
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgb|hsl", rules)
    uses = re.findall(r"(?<![\w-])(color|background|fill|stroke|outline|border[\w-]*): ?([^;}]+)", rules)
    allowed = {
        "color": "ink",
        "background": "paper",
        "stroke": "(mark|rule|paper)",
        "outline": "mark",
        "fill": "(ink|mark|paper)",
    }
    for what, value in uses:
        for variable in re.findall(r"var\(--([\w-]+)\)", value):
            assert re.match(allowed.get(what, "rule"), variable), f"{what}: {value}"
    assert len(uses) > 20


def test_points_of_a_curve_stand_where_they_were_measured():
    chart = sweep_chart(SWEEP, "macs")
    before, left = COMPRESSION.before.macs, sorted(point.after.macs for point in SWEEP.points if point.after)
    least = left[0] / before - 0.1 * (1 - left[0] / before)
    expected = [12 + 85 * (macs / before - least) / (1 - least) for macs in left]
    assert [point.x for point in chart.points] == pytest.approx(expected)
    heights = [250, 30 + 220 * (1 - 0.9123) / 1.1, 30 + 220 * (1 - 0.9812) / 1.1]
    assert [point.y for point in chart.points] == pytest.approx(heights)
    assert [len(chart.points) for chart in sweep_charts(SWEEP)] == [3, 2]
    text = page(SWEEP, PROVENANCE)
    assert (text.count('class="front"'), text.count('class="chosen"')) == (2 + 1, 2)
    assert all(text.count(f">{point.target}</text>") == 2 for point in SWEEP.points[:2])
    worse = replace(SWEEP.points[0], target="worse", fidelity=0.9)  # as expensive as macs=0.75, and further off than macs=0.5
    (_, _, off, _), _ = (each.points for each in sweep_charts(replace(SWEEP, points=(*SWEEP.points, worse))))
    assert (off.label, off.is_front) == ("worse", False)
    assert sweep_charts(replace(SWEEP, points=SWEEP.points[3:])) == []


@pytest.mark.parametrize("count", [1, 6, 9])
@pytest.mark.parametrize("nearest", [0.3, 0.01, 0.001])
def test_labels_of_a_curve_meet_no_other_label_on_any_page(count, nearest):
    """Points in a row, near each other and spread out, that are as fast and as close as each other but for little."""
    points = [
        replace(POINTS[0], target=f"macs={0.9 - 0.1 * step:g}", fidelity=0.99 - nearest * step / 4, after=Size(1, 9 - step, 1))
        for step in range(count)
    ]
    chart = sweep_chart(replace(SWEEP, before=Size(10, 10, 10), points=tuple(points)), "macs")
    for width in (358, 912):
        boxes = [label_box(point, label, width) for point, label in zip(chart.points, chart.labels, strict=True)]
        assert not any(meet(one, other) for one, other in combinations(boxes, 2))
        assert all(left >= 0 and right <= width and top >= 0 and bottom <= 250 for left, right, top, bottom in boxes)


def label_box(point, label, width):
    """Left, right, top and bottom of a label in pixels, 7 for each character."""
    x = point.x * width / 100 + label.dx
    left = x - 7 * len(point.label) * (label.anchor == "end")
    return left, left + 7 * len(point.label), point.y + label.dy - 10, point.y + label.dy + 3


def meet(one, other):
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def test_bars_of_sensitivity_show_what_is_lost():
    text = page(MEASURED, PROVENANCE)
    assert re.findall(r'<rect width="([\d.]+)%" height="3" class="kept">', text) == ["0.49", "2.86", "100", "14.29"]
    console = Console(width=200, force_terminal=False)
    with console.capture() as shown:
        show_inspection(console, MEASURED)
    assert re.search(r"25 % +50 % +75 %", shown.get())
    assert "measured on 384 synthetic images" in " ".join(shown.get().split())
    with console.capture() as shown:
        show_inspection(console, INSPECTION)
    assert "lower bound" not in " ".join(shown.get().split())
