"""`make schemas`: write docs/schemas anew. A change that breaks readers is refused until the kind's version rises."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from onnxmerge.report.documents import KINDS
from onnxmerge.report.schema import breaks, schema_of

FOLDER = Path(__file__).resolve().parent / "schemas"


def main() -> None:
    """One file a kind and version; those of earlier versions stay."""
    for kind in KINDS.values():
        path, schema = FOLDER / f"{kind.name}-{kind.version}.json", schema_of(kind)
        broken = breaks(json.loads(path.read_text(encoding="utf-8")), schema) if path.exists() else []
        if broken:
            sys.exit(f"{kind.schema}: {'; '.join(broken)}: raise its version in onnxmerge/report/documents.py")
        path.write_text(f"{json.dumps(schema, indent=2)}\n", encoding="utf-8")
        print(f"wrote {path.relative_to(FOLDER.parents[1])}")


if __name__ == "__main__":
    main()
