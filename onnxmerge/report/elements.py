"""HTML and SVG as values: what is text is escaped, what is markup was built here.

Text comes from strangers' files: control characters and overrides of the writing direction never reach the page.
"""

from __future__ import annotations

from html import escape

from onnxmerge.report.wording import printable, shortened

_VOID = frozenset({"meta", "link", "wbr"})
LONGEST_NAME = 160  # characters of a name on a page; the JSON report holds it whole


class Markup(str):
    """Text that may stand in a page as it is."""

    __slots__ = ()


def element(tag: str, *children: str | None, **attributes: str | float | None) -> Markup:
    """<tag attribute="value">children</tag>: text and values are escaped, None is left out.

    class_ becomes class, aria_label aria-label; numbers lose digits that no screen shows.
    """
    written = "".join(f' {_name(name)}="{_value(value)}"' for name, value in attributes.items() if value is not None)
    if tag in _VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{joined(*children)}</{tag}>")


def joined(*children: str | None) -> Markup:
    """Children one after the other, escaped where they are text."""
    return Markup("".join(child if isinstance(child, Markup) else escaped(child) for child in children if child is not None))


def escaped(content: str) -> Markup:
    """Escaped, on one line, without control characters; spaces at its ends stay."""
    start, end = (" " if content[:1] == " " else ""), (" " if content[-1:] == " " and content.strip() else "")
    return Markup(escape(f"{start}{printable(content)}{end}"))


def named(content: str, width: int = LONGEST_NAME) -> Markup:
    """A node's, tensor's or file's name, apart from the writing direction around it; it may break behind a slash."""
    first, *others = shortened(content, width).split("/")
    parts = [part for other in others for part in ("/", element("wbr"), other)]
    return element("bdi", element("code", first, *parts))


def _name(attribute: str) -> str:
    return attribute.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return escape(printable(value)) if isinstance(value, str) else f"{round(value, 2):g}"
