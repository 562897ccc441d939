"""Names and numbers as text.

Node names come from files of unknown origin: control characters in them never reach a terminal or a page.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, count, takewhile

from rich.filesize import decimal

WILDCARD = "*"
"""What stands for the middle of a node's name that is shortened: `include` and `exclude` take it so."""


def printable(text: str) -> str:
    """The text on one line, control characters replaced."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in " ".join(text.split()))


def shortened(text: str, width: int, mark: str = "…") -> str:
    """At most `width` characters; the middle is left out, since the end of a node's name says more than its middle."""
    text = printable(text)
    if len(text) <= width:
        return text
    if width < 3:
        return text[:width]
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}{mark}{text[len(text) - tail :]}"


def told_apart(names: Sequence[str], width: int, mark: str = WILDCARD) -> list[str]:
    """Each name shortened to a pattern of `width` characters; what tells names apart stays, so that no two have one text."""
    texts = {name: shortened(name, width, mark) for name in names}
    for _ in texts:  # each round tells a group of names apart by the first character that differs
        for text in [text for text, uses in Counter(texts.values()).items() if uses > 1]:
            whole = {name: printable(name) for name in texts if texts[name] == text}
            same = takewhile(lambda characters: len(set(characters)) == 1, zip(*whole.values(), strict=False))
            first = max(0, len(list(same)) - width // 3)
            for name, long in whole.items():
                window = long[first : first + width - 2]
                texts[name] = f"{mark * (first > 0)}{window}{mark * (first + len(window) < len(long))}"
    shown: dict[str, str] = {}
    for name, text in texts.items():  # a number for those that differ only in what cannot be printed
        numbered = (f"{text[: width - 1 - len(str(number))]}#{number}" for number in count(2))
        shown[name] = next(each for each in chain([text], numbered) if each not in shown.values())
    return [shown[name] for name in names]


def listed(names: Sequence[str], most: int, width: int) -> str:
    """The first `most` names, each shortened to a pattern of `width` characters, and how many more there are."""
    shown = ", ".join(told_apart(names[:most], width))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def counted(number: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def as_command_line(text: str) -> str:
    """Options under their names on the command line: "`round_to` and `verify=False`" -> "--round-to and --no-verify"."""

    def option(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2]
        if name == "input-range" and value is not None:
            value = value.replace(",", " ")  # two arguments
        return f"--no-{name}" if value == "False" else f"--{name} {value}" if value not in (None, "True") else f"--{name}"

    return re.sub(r"`([a-z][a-z0-9_]*)(?:=([\w.%,-]+))?`", option, text)


def percent(share: float, digits: int = 1) -> str:
    """0.7571 -> "75.7%"; a share below 1 is never rounded to 100 %."""
    text = f"{share:.{digits}%}"
    return f"{min(share, 0.9999):.2%}" if text == f"{1:.{digits}%}" and share < 1 else text


def two_digits(share: float) -> str:
    """A share in per cent with two significant digits: "31%", "2.6%", "0.04%"; what is below 0.005 % is "0%"."""
    if abs(share) < 5e-5:
        return "0%"
    return percent(share, min(max(-1 - math.floor(math.log10(abs(share))), 0), 2))


def quantity(count: int) -> str:
    """A count with three significant digits: "1.07 G"; small ones as they are."""
    if count < 10_000:
        return f"{count:,}"
    exponent = int(f"{count:.2e}".partition("e")[2])
    power = min(exponent // 3, 4)
    return f"{count / 1000**power:.{max(2 - exponent + 3 * power, 0)}f} {' kMGT'[power]}"


def closeness(value: float) -> str:
    """A number that is 1 at best: four decimals, or near 1 its distance from 1."""
    if not math.isfinite(value):
        return str(value)
    if value < -1000:
        return f"{value:.1e}"
    return f"1 - {1 - value:.1e}" if 0.99995 <= value < 1 else f"{value:.4f}"


def magnitude(value: float) -> str:
    """A number that is 0 at best: four decimals, or two significant digits where it is very small or large."""
    return "0" if value == 0 else f"{value:.4f}" if 0.001 <= value < 1000 else f"{value:.2g}"


def relative_error(value: float) -> str:
    """A relative error in per cent, or in powers of ten where it is very small."""
    if math.isinf(value):
        return "not finite"
    return "0" if value == 0.0 else percent(value) if value >= 1e-3 else f"{value:.1e}"


def decibels(value: float) -> str:
    """A signal-to-noise ratio; infinite where nothing differs."""
    return "identical" if value == math.inf else f"{value:.1f} dB"


def milliseconds(value: float) -> str:
    """At least three significant digits, also for calls of microseconds."""
    digits = next((digits for limit, digits in ((0.01, 5), (0.1, 4), (10, 3), (100, 2)) if value < limit), 1)
    return f"{value:,.{digits}f} ms"


def file_size(count: int) -> str:
    """715293 -> "715.3 kB"."""
    return decimal(count)
