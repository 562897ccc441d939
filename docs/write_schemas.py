"""`make schemas`: write docs/schemas and the tables of docs/report-schema.md anew from the result classes.

A change that breaks programs that read such documents is refused until the version of its kind rises.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from json_schemas import Schema, breaking_changes, described, schema_of

from onnxmerge.report.documents import KINDS, Kind, Provenance

FOLDER = Path(__file__).resolve().parent
GENERATED = "<!-- All below is written by `make schemas` from the docstrings of onnxmerge/results. -->"


def main(folder: Path = FOLDER) -> None:
    """Write one schema for each kind and the page with all of them; schemas of earlier versions stay."""
    for kind in KINDS.values():
        path, schema = folder / "schemas" / f"{kind.name}-{kind.version}.json", schema_of(kind)
        broken = breaking_changes(json.loads(path.read_text(encoding="utf-8")), schema) if path.exists() else []
        if broken:
            sys.exit(f"{kind.schema}: {'; '.join(broken)}: raise its version in onnxmerge/report/documents.py")
        path.write_text(f"{json.dumps(schema, indent=2)}\n", encoding="utf-8")
        print(f"wrote docs/schemas/{path.name}")
    page = folder / "report-schema.md"
    introduction = page.read_text(encoding="utf-8").partition(GENERATED)[0]
    page.write_text(introduction + "\n".join((GENERATED, "", *_tables())), encoding="utf-8")
    print(f"wrote docs/{page.name}")


def _tables() -> Iterator[str]:
    """The lines of the generated part: a table for each kind, then one for each type that they contain."""
    definitions: dict[str, Schema] = {}
    yield from _table("In every document", *described(Provenance, definitions))
    for kind in KINDS.values():
        schema = schema_of(kind)
        definitions |= schema["$defs"]
        yield from _table(f"{kind.name}, version {kind.version}", *described(kind.result, {}))
        yield from (f"JSON Schema: [{_file(kind)}](schemas/{_file(kind)})", "")
    for name, definition in sorted(definitions.items()):
        yield from _table(name, definition["description"], definition["properties"])


def _table(title: str, summary: str, properties: dict[str, Schema]) -> Iterator[str]:
    yield from (f"## {title}", "", summary, "", "| field | type | meaning |", "|---|---|---|")
    for name, field in properties.items():
        yield f"| `{name}` | {_type_name(field)} | {field['description'].replace('|', chr(92) + '|')} |"
    yield ""


def _type_name(schema: Schema) -> str:
    """The type in words, other types as links to their tables."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(part for each in schema["anyOf"] for part in _type_name(each).split(" or ")))
    if schema["type"] == "array":
        return f"list of {_type_name(schema['items'])}"
    if schema["type"] == "object":
        return f"object of {_type_name(schema['additionalProperties'])}"
    return schema["type"] if isinstance(schema["type"], str) else " or ".join(schema["type"])


def _file(kind: Kind) -> str:
    return f"{kind.name}-{kind.version}.json"


if __name__ == "__main__":
    main()
