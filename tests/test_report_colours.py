"""The colours of the page: text and marks can be read on every paper, and are used as their names say."""

import re
from importlib.resources import files

import pytest

STYLESHEET = files("onnxmerge.report").joinpath("templates/page.css").read_text(encoding="utf-8")

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
