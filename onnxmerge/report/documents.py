"""JSON documents: the name and version of a schema, how the result came about, and the fields of the result."""

import json
import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from onnxmerge.errors import Refusal
from onnxmerge.report.verdict import verdict_of
from onnxmerge.results import Benchmark, Compression, Inspection, LatencyComparison, Sweep, Verification

Result = Inspection | Compression | Verification | Benchmark | Sweep

REFUSAL_FIELDS = {
    "where": "Node or tensor that keeps all of its channels; empty where the reason holds for all nodes that meet it.",
    "code": 'The reason as a word for programs: "mixes-channels".',
    "text": "The reason in words.",
    "obstacle": "Node or tensor that prevents the removal, where it is another than `where`; empty elsewhere.",
    "parameters_share": "Share of the model's parameters that the node reads, 0 to 1; of what several read, equal parts.",
}
"""Fields of a refusal in JSON and what they hold; its reason and details, which they are made from, are left out."""


VERDICT = "The result in a sentence: how much smaller and faster or slower, how close, measured on what, what to do next."


@dataclass(frozen=True)
class Provenance:
    """How a result came about, and what is needed to reproduce it.

    Attributes
    ----------
    command : str
        Command line as typed, quoted for a shell; empty where the result comes from Python.
    made_at : str
        Date and time in UTC, ISO 8601.
    versions : dict
        Versions of onnxmerge, its dependencies, Python and the system, by name.
    sha256 : dict
        SHA-256 of the models, with their weights in other files, by path.
    defaults : str
        Options that the command took from [tool.onnxmerge] of a pyproject.toml, and the path of that file; empty where it took
        none.
    """

    command: str = ""
    made_at: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    defaults: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of JSON document.

    Attributes
    ----------
    result : type
        The dataclass that the document is made from.
    name : str
        What a result of this kind is called in the field `schema`.
    version : int
        Rises when a field is removed or changes its type or meaning.
    """

    result: type
    name: str
    version: int

    @property
    def schema(self) -> str:
        """The field `schema` of the document: "onnxmerge.compression/3"."""
        return f"onnxmerge.{self.name}/{self.version}"


_KINDS = (
    Kind(Inspection, "inspection", 3),
    Kind(Compression, "compression", 3),
    Kind(Verification, "verification", 1),
    Kind(Benchmark, "benchmark", 1),
    Kind(Sweep, "sweep", 2),
)
KINDS = {kind.result: kind for kind in _KINDS}


def reportable(result: Result | LatencyComparison) -> Result:
    """The result itself; a single comparison, which does not know the paths of its models, as a `Benchmark`."""
    return Benchmark("", "", (result,), result.inputs) if isinstance(result, LatencyComparison) else result


def document(result: Result | LatencyComparison, provenance: Provenance) -> dict[str, Any]:
    """The JSON object of a result.

    Parameters
    ----------
    result : Result or LatencyComparison
    provenance : Provenance
        Its `versions` give way to those that the result itself holds.

    Returns
    -------
    dict
        `schema`, `verdict`, then the fields of `provenance` and of `result` as `as_json` gives them.
    """
    result = reportable(result)
    return {"schema": KINDS[type(result)].schema, "verdict": verdict_of(result).text, **as_json(provenance), **as_json(result)}


def json_text(result: Result | LatencyComparison, provenance: Provenance) -> str:
    """`document` as text."""
    return json.dumps(document(result, provenance), indent=2, allow_nan=False)


def as_json(value: Any) -> Any:
    """A result as dicts, lists, strings and numbers; NaN and infinity, which JSON does not have, become None.

    Fields that are left out of `repr`, pictures, are left out here too.
    """
    if isinstance(value, Refusal):
        return {name: getattr(value, name) for name in REFUSAL_FIELDS}
    if is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value) if field.repr}
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
