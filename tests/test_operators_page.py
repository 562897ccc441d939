"""docs/operators.md is that of the table; `make schemas` writes it anew."""

from __future__ import annotations

from write_operators import TARGET, operators_page


def test_the_page_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == operators_page()
