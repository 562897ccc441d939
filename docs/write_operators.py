"""Writes docs/operators.md from the table of operators: `python docs/write_operators.py`."""

from collections.abc import Callable
from pathlib import Path

from onnxmerge.graph.cost import MACS
from onnxmerge.graph.operators import scale_crossing
from onnxmerge.graph.operators.table import OPERATORS, Operator

TARGET = Path(__file__).parent / "operators.md"
HEAD = """# Operators

What becomes of channels at each operator, from the table that the program goes by (written by `docs/write_operators.py`). Every
other operator, and every other domain, keeps the channels that enter it, and is named in the reasons. *Merging* says whether
`--method merge` may cross it: channels that are multiples of one another must stay multiples. *MACs* marks what counts for
`--target macs=`.

| operators | channels | merging | MACs |
|---|---|---|---|
"""


def operators_page() -> str:
    """The page as text."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, operator in OPERATORS.items():
        cells = _summary(operator.propagate), _crossing(operator), "yes" if name in MACS else ""
        rows.setdefault(cells, []).append(f"`{name}`")
    lines = [f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in rows.items()]
    return HEAD + "\n".join(lines) + "\n"


def _summary(rule: Callable[..., object]) -> str:
    """The first paragraph of a docstring on one line."""
    paragraph = (rule.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|").replace("*", "\\*")


def _crossing(operator: Operator) -> str:
    known = {scale_crossing.not_homogeneous: "no", scale_crossing.filters: "no: another filter for each channel"}
    known |= dict.fromkeys((scale_crossing.homogeneous, scale_crossing.homogeneous_in_all, scale_crossing.identity), "yes")
    return known.get(operator.crossing) or _summary(operator.crossing)


if __name__ == "__main__":
    TARGET.write_text(operators_page(), encoding="utf-8")
    print(f"wrote {TARGET}")
