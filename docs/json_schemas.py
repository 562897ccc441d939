"""JSON Schemas of the documents, made from the dataclasses and their docstrings, and which changes of them break programs."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from onnxmerge.errors import Refusal
from onnxmerge.report.documents import REFUSAL_FIELDS, VERDICT, Kind, Provenance

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SIMPLE_TYPES = {str: "string", int: "integer", bool: "boolean", NoneType: "null"}

Schema = dict[str, Any]


def schema_of(kind: Kind) -> Schema:
    """The JSON Schema of a kind of document. Every field is required; further fields are allowed."""
    definitions: dict[str, Schema] = {}
    summary, properties = described(kind.result, definitions)
    verdict = {"type": "string", "description": VERDICT}
    properties = {"schema": {"const": kind.schema}, "verdict": verdict, **described(Provenance, definitions)[1], **properties}
    return {
        "$schema": DIALECT,
        "title": kind.schema,
        **_object(summary, properties),
        "$defs": dict(sorted(definitions.items())),
    }


def breaking_changes(old: Schema, new: Schema) -> list[str]:
    """Changes that break programs which read documents of the old schema.

    Returns
    -------
    list of str
        A line for each field that was removed or has another type; new fields break nothing.
    """
    before, after = dict(_types(old)), dict(_types(new))
    removed = [f"{path} was removed" for path in before if path not in after]
    changed = [f"{path} was {type_}, is {after[path]}" for path, type_ in before.items() if after.get(path, type_) != type_]
    return removed + changed


def described(owner: type, definitions: dict[str, Schema]) -> tuple[str, dict[str, Schema]]:
    """The summary of a dataclass, and the type and description of each of its fields."""
    summary, descriptions = attributes_of(owner)
    hints = get_type_hints(owner)
    types = {field.name: _type(hints[field.name], definitions) for field in fields(owner) if field.repr}
    return summary, {name: {**type_, "description": descriptions[name]} for name, type_ in types.items()}


def attributes_of(owner: type) -> tuple[str, dict[str, str]]:
    """The summary of a class and the description of each attribute, from its numpy-style docstring."""
    summary, _, listed = (inspect.getdoc(owner) or "").partition("Attributes\n----------\n")
    descriptions: dict[str, str] = {}
    for names, text in re.findall(r"^(\w[\w, ]*) : .*\n((?: +.*\n?)+)", listed, re.MULTILINE):
        descriptions |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return " ".join(summary.split()), descriptions


def _types(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """(path, type) of every field, without its description."""
    for owner, definition in [("", schema), *schema["$defs"].items()]:
        for name, found in definition["properties"].items():
            if name != "schema":
                yield f"{owner}.{name}".lstrip("."), {key: value for key, value in found.items() if key != "description"}


def _object(summary: str, properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "description": summary, "properties": properties, "required": list(properties)}


def _type(hint: Any, definitions: dict[str, Schema]) -> Schema:
    """The schema of a type; a float may be null, which stands for NaN and infinity."""
    if hint is float:
        return {"type": ["number", "null"]}
    if hint in _SIMPLE_TYPES:
        return {"type": _SIMPLE_TYPES[hint]}
    if is_dataclass(hint) and isinstance(hint, type):
        if hint is Refusal:
            hints = get_type_hints(hint)
            types = {name: _type(hints.get(name, str), definitions) for name in REFUSAL_FIELDS}
            properties = {name: types[name] | {"description": text} for name, text in REFUSAL_FIELDS.items()}
            definitions["Refusal"] = _object(attributes_of(hint)[0], properties)
        elif hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # ends the recursion where a type holds itself
            definitions[hint.__name__] = _object(*described(hint, definitions))
        return {"$ref": f"#/$defs/{hint.__name__}"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return {"anyOf": [_type(argument, definitions) for argument in arguments]}
    if origin is tuple and arguments[1:] == (...,):
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(arguments[1], definitions)}
    raise TypeError(f"no JSON Schema is known for the type {hint}: add it to docs/json_schemas.py")
