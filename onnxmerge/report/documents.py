"""Results for programs: JSON with the kind of result and the version of its schema in front."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from onnxmerge.results import Bench, Compression, Fidelity, Inspection, LatencyComparison, Sweep, as_json

Result = Inspection | Compression | Fidelity | LatencyComparison | Bench | Sweep


@dataclass(frozen=True)
class Run:
    """How a result came about: what gives it again.

    command: as typed; made_at: date and time, UTC; models: the files it speaks of; versions: of the program and its packages;
    failures: thresholds missed, a line each.
    """

    command: str = ""
    made_at: str = ""
    models: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of document. version rises when a field goes or changes its meaning; run_fields: of Run, before the result's own."""

    name: str
    version: int
    result: type
    run_fields: tuple[str, ...]

    @property
    def schema(self) -> str:
        """What `schema` says at the top of a document."""
        return f"onnxmerge.{self.name}/{self.version}"


KINDS = {
    kind.result: kind
    for kind in (
        Kind("inspection", 1, Inspection, ("command", "made_at", "versions")),
        Kind("compression", 1, Compression, ("command", "made_at")),
        Kind("fidelity", 1, Fidelity, ("command", "made_at", "models", "versions", "failures")),
        Kind("comparison", 1, LatencyComparison, ("command", "made_at", "models", "versions")),
        Kind("comparisons", 1, Bench, ("command", "made_at", "models", "versions")),
        Kind("sweep", 1, Sweep, ("command", "made_at")),
    )
}


def document(result: Result, run: Run) -> dict[str, Any]:
    """The schema's name, how the result came about, and the result's fields."""
    kind = KINDS[type(result)]
    about = as_json(run)
    return {"schema": kind.schema, **{name: about[name] for name in kind.run_fields}, **as_json(result)}


def json_text(result: Result, run: Run) -> str:
    """The document as text, without NaN or infinity, which JSON does not have."""
    return json.dumps(document(result, run), indent=2, allow_nan=False)
