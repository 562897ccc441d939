"""What a compressed model says of how it was made, and digests of files."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from onnx import ModelProto

PREFIX = "onnxmerge."
"""Of the keys in the metadata of a file."""


def stored_provenance(proto: ModelProto) -> dict[str, str]:
    """What a model says of how it was made, by key without the prefix; empty where this program did not make it."""
    return {each.key.removeprefix(PREFIX): each.value for each in proto.metadata_props if each.key.startswith(PREFIX)}


def sha256_of(paths: Iterable[Path]) -> str:
    """SHA-256 of files one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
