"""The charts of the page: areas, bands, points and labels stand where their figures say."""

import math
import re
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from rich.console import Console
from samples import (
    BENCHMARK,
    COMPRESSION,
    FIDELITY,
    INSPECTION,
    LATENCY,
    MEASURED,
    OUTPUT,
    POINTS,
    PROVENANCE,
    SWEEP,
    deep,
)

from onnxmerge.report.charts import error_chart, latency_chart, ticks
from onnxmerge.report.group_chart import group_charts, text_picture
from onnxmerge.report.html import page
from onnxmerge.report.sweep_chart import sweep_chart, sweep_charts
from onnxmerge.report.terminal import show_inspection
from onnxmerge.results import Size


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


def test_the_picture_as_text_names_the_groups_that_save_most():
    lines = text_picture(deep(120).groups)
    assert len(lines) == 32
    assert lines[-1].startswith("90 more groups save ")
    assert len({line.index("%") for line in lines[1:-1]}) == 1
    assert max(line.count("█") for line in lines) == 30
    assert text_picture(()) == []


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
