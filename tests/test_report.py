"""What people read: no number is cut, nothing is folded into single letters, reasons are sentences."""

import io
import math
import re
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from samples import BENCHMARK, COMPRESSION, GROUPS, INSPECTION, LATENCY, LONG, OUTPUT, SWEEP, VARIANTS, VERIFICATION, verification

from onnxmerge.errors import Reason, refusal
from onnxmerge.report.reasons import reasons
from onnxmerge.report.sentences import inputs_lines
from onnxmerge.report.tables import Column, fitted, without_common
from onnxmerge.report.terminal import (
    show_benchmark,
    show_compression,
    show_inspection,
    show_sweep,
    show_verdict,
    show_verification,
)
from onnxmerge.report.wording import (
    closeness,
    decibels,
    file_size,
    listed,
    magnitude,
    milliseconds,
    percent,
    printable,
    quantity,
    shortened,
    told_apart,
    two_digits,
)
from onnxmerge.results import InputShape

SOFTMAX = refusal("s", Reason.MIXES_CHANNELS, operator="Softmax")
SINGLE = "has a single output channel"
WIDTHS = pytest.mark.parametrize("width", [60, 80, 100, 140])


def text_of(show, value, width: int) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=width), value)
    return stream.getvalue()


@WIDTHS
@pytest.mark.parametrize(
    ("show", "value"),
    [
        (show_compression, COMPRESSION),
        (show_inspection, INSPECTION),
        (show_verification, VERIFICATION),
        (show_benchmark, BENCHMARK),
    ],
    ids=["compression", "inspection", "verification", "benchmark"],
)
def test_no_line_is_wider_than_the_terminal(show, value, width):
    assert max(cell_len(line) for line in text_of(show, value, width).splitlines()) <= width


@WIDTHS
def test_compression_shows_every_figure_whole(width):
    text = text_of(show_compression, COMPRESSION, width)
    figures = ["25.6 M", "12.3 M", "48.3%", "4.09 G", "1.23 G", "30.2%", "102.4 MB", "49.4 MB", "48.2%", "31%", "1.3%", "0.03%"]
    figures += ["12.35 ms", "8.230 ms", "66.7%", "0.9876", "19.1 dB", "0.9912", "0.8765", "95.3%", "99.99%", "1,024"]
    assert [figure for figure in figures if figure not in text] == []
    assert "1.2345" in text
    assert not re.search(r"\d…", text)


@WIDTHS
def test_sweep_shows_every_figure_whole(width):
    unclear = replace(LATENCY, latency_ratio_low=0.5, latency_ratio=0.98, latency_ratio_high=1.2)
    points = [replace(point, latency=unclear, fidelity=0.99996) if point.latency else point for point in SWEEP.points]
    text = text_of(show_sweep, replace(SWEEP, points=tuple(points)), width)
    assert "1.02x" in text
    assert "not measurable" in text
    assert "[0.83, 2.00]" in text
    table = text.partition("how close")[2].partition("inputs:")[0]
    assert "…" not in table
    assert ("1.7%" in table) == ("5.2%" in table) == (width > 60)
    assert ("[0.8954, 0.9271]" in table) == ("[3.1%, 8.3%]" in table) == (width >= 140)


def test_an_untimed_sweep_has_intervals_of_what_is_close():
    text = " ".join(text_of(show_sweep, VARIANTS["untimed"], 80).split())
    assert "0.9812 [0.9743, 0.9868] 1.7%" in text
    assert "0.9123 [0.8954, 0.9271] 5.2% [3.1%, 8.3%]" in text
    assert "[low, high]: 95 % interval changed decisions: expected on real inputs" in text


def test_what_all_points_of_a_sweep_have_is_said_once():
    same = replace(SWEEP, points=tuple(replace(point, top1_agreement=1.0, latency=None) for point in SWEEP.points[:2]))
    text = " ".join(text_of(show_sweep, same, 200).split())
    assert "and how close; all: same best class 100.0% target params" in text


def test_sizes_stay_whole_whatever_the_name():
    long = InputShape("serving_default_input_" * 4 + ":0", (1, 43844, 1), "batch")
    (line,) = inputs_lines([long])
    assert line.endswith(":0:1,43844,1, fixed in the model but for the batch")
    assert "…" in line
    assert inputs_lines([replace(long, name=f"x{number}") for number in range(9)])[0].endswith(" and 3 more")


@WIDTHS
def test_long_names_give_way_in_their_middle(width):
    text = text_of(show_inspection, INSPECTION, width)
    (row,) = [line for line in text.splitlines() if line.startswith("/back")]
    assert row.split()[0].endswith("Conv")
    assert (LONG in text) is (width >= 140)


def test_extra_columns_come_with_the_room_for_them():
    narrow, wide = (text_of(show_inspection, INSPECTION, width) for width in (80, 160))
    assert not re.search("^group .* producers ", narrow, re.MULTILINE)
    assert re.search("^group .* producers ", wide, re.MULTILINE)


@WIDTHS
def test_notes_appear_once_beside_or_below_the_groups(width):
    joined = " ".join(text_of(show_compression, COMPRESSION, width).split())
    assert joined.count("merge is not valid behind HardSwish") == 1


def test_groups_without_notes_have_no_note_column():
    assert "note" not in text_of(show_inspection, replace(INSPECTION, groups=GROUPS[:1]), 160)


def test_no_group_at_all_is_said():
    assert "No channel group can be compressed." in text_of(show_inspection, replace(INSPECTION, groups=()), 80)
    assert "No channel group was compressed." in text_of(show_compression, replace(COMPRESSION, groups=()), 80)


def test_without_proof_sizes_are_still_shown():
    text = text_of(show_compression, replace(COMPRESSION, fidelity=None, latency=None), 80)
    assert "25.6 M" in text
    assert "latency" not in text


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.5, 0.9, "1.43x as fast"), (0.9, 1.2, "no measurable difference"), (1.1, 1.3, "slower: ")],
)
def test_verdict_follows_the_interval(low, high, verdict):
    latency = replace(LATENCY, latency_ratio=(low + high) / 2, latency_ratio_low=low, latency_ratio_high=high)
    assert verdict in text_of(show_verdict, replace(BENCHMARK, batches=(latency,)), 80).lower()


def test_warnings_are_shown():
    assert "warning: the fidelity rests on few inputs: give --calibration" in text_of(show_compression, COMPRESSION, 80)


@WIDTHS
@pytest.mark.parametrize("count", [1, 2, 3, 4, 20])
def test_every_output_is_shown(count, width):
    outputs = tuple(replace(OUTPUT, name=f"output_{number}", fidelity=0.5 + number / 100) for number in range(count))
    text = text_of(show_verification, verification(*outputs), width)
    assert all(f"output_{number}" in text and f"{0.5 + number / 100:.4f}" in text for number in range(count))
    assert "…" not in text


def test_outputs_without_classes_show_no_agreement():
    output = replace(OUTPUT, top1_agreement=None, top5_agreement=None)
    assert "class" not in text_of(show_verification, verification(output), 80)


def test_output_that_is_not_finite_is_named():
    output = replace(OUTPUT, finite=False, fidelity=math.nan)
    assert "output 'logits' holds NaN or infinity" in text_of(show_verification, verification(output), 80)


def test_names_cannot_reach_the_terminal_raw():
    evil = replace(GROUPS[0], name="conv\x1b[31m[red]\nnew", note="\x1b]0;title\x07")
    refusals = (refusal("a\x1b[2J", Reason.DOES_NOT_RUN, "b\x07", error="\x1b[bold]"),)
    text = text_of(show_inspection, replace(INSPECTION, model="m\x1b[1m.onnx", groups=(evil,), refusals=refusals), 140)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert "[red]" in text


def test_many_names_of_one_reason_are_counted():
    refusals = tuple(refusal(f"layer{number}", Reason.SINGLE_CHANNEL) for number in range(30))
    text = text_of(show_inspection, replace(INSPECTION, refusals=refusals), 80)
    assert "layer5 and 24 more" in text


@pytest.mark.parametrize(
    ("refusals", "expected"),
    [
        ([], []),
        ([refusal("fc", Reason.GRAPH_OUTPUT, "y", output="y")], [("written to the graph output y", ("fc",), ("y",))]),
        (
            [SOFTMAX, replace(SOFTMAX, where="a", obstacle="s"), replace(SOFTMAX, where="b", obstacle="s")],
            [("Softmax mixes channels", ("a", "b"), ("s",))],
        ),
        (
            [refusal("", Reason.SHARES_A_CHANNEL), refusal("x", Reason.EXCLUDED)],
            [("named by --exclude", ("x",), ()), ("shares a channel with values that cannot be removed", (), ())],
        ),
        ([refusal("a", Reason.SINGLE_CHANNEL), refusal("b", Reason.SINGLE_CHANNEL)], [(SINGLE, ("a", "b"), ())]),
    ],
    ids=["none", "output", "obstacle and its layers", "no place", "no obstacle"],
)
def test_reasons_are_grouped(refusals, expected):
    assert [(found.text, found.layers, found.obstacles) for found in reasons(refusals)] == expected


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [("short", 10, "short"), ("abcdefghij", 10, "abcdefghij"), ("abcdefghijk", 10, "abc…fghijk"), ("abc", 2, "ab")],
)
def test_shortened(text, width, expected):
    assert shortened(text, width) == expected
    assert len(shortened(text, width)) <= width


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (two_digits, 0.314, "31%"),
        (two_digits, 0.0264, "2.6%"),
        (two_digits, 0.00264, "0.26%"),
        (two_digits, 0.00001, "0%"),
        (two_digits, -0.096, "-9.6%"),
        (two_digits, 0.9996, "99.96%"),
        (two_digits, 1.0, "100%"),
        (quantity, 9_999, "9,999"),
        (quantity, 1_648_256, "1.65 M"),
        (quantity, 999_500, "1.00 M"),
        (quantity, 25_557_032, "25.6 M"),
        (quantity, 1_070_000_000, "1.07 G"),
        (percent, 0.75714, "75.7%"),
        (percent, 1.0, "100.0%"),
        (percent, 0.9996, "99.96%"),
        (percent, 0.9999999, "99.99%"),
        (percent, 1.0004, "100.0%"),
        (percent, 0.0, "0.0%"),
        (closeness, 0.58774, "0.5877"),
        (closeness, 1.0, "1.0000"),
        (closeness, 0.99999979, "1 - 2.1e-07"),
        (closeness, -0.5, "-0.5000"),
        (closeness, math.nan, "nan"),
        (magnitude, 0.0, "0"),
        (magnitude, 0.5652, "0.5652"),
        (magnitude, 2.1e-7, "2.1e-07"),
        (magnitude, 12345.0, "1.2e+04"),
        (decibels, math.inf, "identical"),
        (decibels, 3.84, "3.8 dB"),
        (milliseconds, 0.00812, "0.00812 ms"),
        (milliseconds, 0.0812, "0.0812 ms"),
        (milliseconds, 0.1234, "0.123 ms"),
        (milliseconds, 12.345, "12.35 ms"),
        (milliseconds, 1234.56, "1,234.6 ms"),
        (file_size, 715_293, "715.3 kB"),
        (file_size, 3_000_000_000, "3.0 GB"),
        (printable, "a\nb\x1b[31m", "a b\N{REPLACEMENT CHARACTER}[31m"),
    ],
)
def test_wording(function, value, expected):
    assert function(value) == expected


def test_listed_counts_the_rest():
    assert listed(["a", "b", "c"], 2, 10) == "a, b and 1 more"
    assert listed(["a", "b"], 2, 10) == "a, b"


@given(st.lists(st.text("ab/", min_size=1, max_size=60), unique=True, max_size=12), st.integers(8, 20))
@example(["/head/" + "long/" * 5 + part + "/layers.0/" + "deep/" * 5 + "Conv" for part in ("detection", "segmentation")], 20)
@example(["a\x00", "a\x01"], 8)
@example(["x" * 9 + "1" + "x" * 20 + second + "x" * 9 for second in "123"] + ["x" * 9 + "2" + "x" * 20 + "1" + "x" * 9], 10)
def test_no_two_names_are_shortened_to_the_same(names, width):
    shown = told_apart(names, width)
    assert len(set(shown)) == len(names)
    assert all(len(text) <= width for text in shown)
    assert all("#" in text or fnmatchcase(printable(name), text) for name, text in zip(names, shown, strict=True))


def test_what_is_the_same_in_all_rows_is_said_once():
    columns = [Column("name", ["a", "a"], name=True), Column("of", ["8", "8"]), Column("kept", ["1", "2"]), Column("", ["", ""])]
    shown, common = without_common(columns)
    assert ([column.header for column in shown], common) == (["name", "kept"], "of 8")
    assert without_common([Column("n", ["1"])]) == ([Column("n", ["1"])], "")


def test_a_shortened_name_is_a_pattern_of_the_option_include():
    text = text_of(show_inspection, INSPECTION, 80)
    (row,) = [line for line in text.splitlines() if line.startswith("/back")]
    assert fnmatchcase(LONG, row.split()[0])


def test_table_keeps_numbers_when_nothing_fits():
    stream = io.StringIO()
    columns = [Column("name", ["x" * 50], name=True), Column("n", ["123,456,789"]), Column("more", ["1"], optional=True)]
    Console(file=stream, width=30).print(fitted(columns, 30))
    assert "123,456,789" in stream.getvalue()
    assert "more" not in stream.getvalue()


def test_ascii_shows_every_line_in_ascii():
    """An encoding without arrows, as of files under LANG=C, where they would be written as codes."""
    buffer = io.TextIOWrapper(io.BytesIO(), "ascii")
    show_compression(Console(file=buffer, width=100), COMPRESSION)
    buffer.flush()
    assert f"{COMPRESSION.model} -> {COMPRESSION.output}" in buffer.buffer.getvalue().decode("ascii")
