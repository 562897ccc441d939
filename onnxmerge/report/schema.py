"""JSON Schemas of the documents, made from the dataclasses they are printed from, and what a change of them breaks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from onnxmerge.errors import Refusal
from onnxmerge.report.documents import Kind, Run
from onnxmerge.results import REFUSAL_FIELDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {str: "string", int: "integer", bool: "boolean", NoneType: "null"}

Schema = dict[str, Any]


def schema_of(kind: Kind) -> Schema:
    """The schema of a kind of document. Every field is there; a reader ignores those it does not know."""
    definitions: dict[str, Schema] = {}
    about = get_type_hints(Run)
    properties = {
        "schema": {"const": kind.schema},
        **{name: _type(about[name], definitions) for name in kind.run_fields},
        **_properties(kind.result, definitions),
    }
    return {
        "$schema": DIALECT,
        "title": kind.schema,
        **_object(properties, inspect.getdoc(kind.result)),
        "$defs": dict(sorted(definitions.items())),
    }


def breaks(old: Schema, new: Schema) -> list[str]:
    """What readers of documents of the old schema would miss or misread in those of the new one."""
    before, after = dict(_types(old)), dict(_types(new))
    gone = [f"{place} is gone" for place in before if place not in after]
    changed = [
        f"{place} was {before[place]}, is {after[place]}" for place in before if after.get(place, before[place]) != before[place]
    ]
    return gone + changed


def _types(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Each field's place and its type."""
    for owner, described in [("", schema), *schema["$defs"].items()]:
        for name, found in described["properties"].items():
            if name != "schema":
                yield f"{owner}.{name}".lstrip("."), found


def _object(properties: dict[str, Schema], description: str | None) -> Schema:
    said = {} if description is None else {"description": description}
    return {"type": "object", **said, "properties": properties, "required": list(properties)}


def _properties(owner: type, definitions: dict[str, Schema]) -> dict[str, Schema]:
    hints = get_type_hints(owner)
    return {field.name: _type(hints[field.name], definitions) for field in fields(owner)}


def _type(hint: Any, definitions: dict[str, Schema]) -> Schema:
    """The schema of a type; a number may be null, which stands for NaN and infinity."""
    if hint is float:
        return {"type": ["number", "null"]}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if hint is Refusal:
        definitions["Refusal"] = _object({name: {"type": "string"} for name in REFUSAL_FIELDS}, inspect.getdoc(hint))
        return {"$ref": "#/$defs/Refusal"}
    if is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # a type that holds itself ends here
            definitions[hint.__name__] = _object(_properties(hint, definitions), inspect.getdoc(hint))
        return {"$ref": f"#/$defs/{hint.__name__}"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return {"anyOf": [_type(argument, definitions) for argument in arguments]}
    if origin is tuple and arguments[1:] == (...,):
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(arguments[1], definitions)}
    raise TypeError(f"{hint} has no JSON Schema here: add it to onnxmerge/report/schema.py")
