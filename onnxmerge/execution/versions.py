"""Versions of what a result was made with."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version

import onnxruntime

from onnxmerge import __version__

PACKAGES = ("onnx", "onnx-graphsurgeon", "numpy")  # onnxruntime comes in several packages, so its version is its own


version_of = cache(version)
"""Of an installed package; its metadata is a file, which is read once."""


def versions() -> dict[str, str]:
    """Version by name: of this package, of the packages that compute, of Python and of the system."""
    found = {name: version_of(name) for name in PACKAGES}
    system = {"python": platform.python_version(), "system": platform.platform()}
    return {"onnxmerge": __version__, "onnxruntime": onnxruntime.__version__, **found, **system}
