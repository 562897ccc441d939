"""The page in a real browser, at the widths of a desk and of a phone, in both colour schemes."""

import pytest
from browser import CHROMIUM, chromium
from samples import EVIL, PROVENANCE, VARIANTS, deep, evil

from onnxmerge.report.html import page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on the path")
PAGES = {**VARIANTS, "hundred": deep(100), **{f"evil-{kind}": evil(name) for kind, name in EVIL.items()}}
WIDTHS = pytest.mark.parametrize("width", [1280, 390])
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])
WIDEST = """Math.max(document.documentElement.scrollWidth, ...[...document.querySelectorAll('body *')]
    .filter(found => !found.closest('.scrolls, svg')).map(found => found.getBoundingClientRect().right))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, result in PAGES.items():
        (folder / f"{name}.html").write_text(page(result, PROVENANCE), encoding="utf-8")
    return folder


@WIDTHS
@SCHEMES
@pytest.mark.parametrize("name", PAGES)
def test_page_is_quiet_and_fits(browser, files, name, width, scheme):
    browser.open(files / f"{name}.html", width, scheme)
    assert browser.trouble == []
    assert browser.requests == [(files / f"{name}.html").as_uri()]
    assert browser.value(WIDEST) <= width
    assert browser.value("[...document.images].every(image => image.naturalWidth > 0)")
    assert browser.value("document.querySelector('h1').innerText.length") > 10
    assert browser.value("document.scripts.length") == 0


@SCHEMES
def test_scheme_is_followed(browser, files, scheme):
    browser.open(files / "compression.html", 1280, scheme)
    paper = browser.value("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(253, 253, 251)", "dark": "rgb(20, 23, 26)"}[scheme]


def test_content_can_be_seen(browser, files):
    browser.open(files / "compression.html", 390, "light")
    text = browser.value("document.body.innerText")
    for word in (
        "Smaller by 51.7% of the parameters",
        "1,024",
        "Softmax mixes channels",
        PROVENANCE.command,
        "the fidelity rests on few inputs: give --calibration",
    ):
        assert word in text
    assert browser.value("document.querySelector('svg.picture').getBoundingClientRect().height") > 50
    columns = "[...document.querySelectorAll('svg.picture g rect')].map(column => column.getBoundingClientRect().width > 0)"
    assert browser.value(columns) == [True] * 4


def test_trouble_would_be_seen(browser, tmp_path):
    """The collector itself: a page that does what ours must not."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><h1>bad</h1><img src=gone.png><script>console.error('no'); undefined.x</script><p style='width:2000px'>w"
    )
    browser.open(bad, 390, "light")
    assert len(browser.trouble) >= 2
    assert len(browser.requests) == 2
    assert browser.value(WIDEST) > 390


def test_page_prints(browser, files, tmp_path):
    browser.open(files / "hundred.html", 1280, "dark")
    browser.print(tmp_path / "page.pdf")
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert 4 <= printed.count(b"/Type /Page\n") <= 20  # with the rows that are folded on the screen
