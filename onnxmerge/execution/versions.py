"""What figures were made with."""

from __future__ import annotations

import platform
from importlib.metadata import version

import onnxruntime

from onnxmerge import __version__

PACKAGES = ("onnx", "onnx-graphsurgeon", "numpy")


def versions() -> dict[str, str]:
    """Of the program, of the packages that compute, of Python and the system."""
    found = {name: version(name) for name in PACKAGES}
    system = {"python": platform.python_version(), "system": platform.platform()}
    return {"onnxmerge": __version__, "onnxruntime": onnxruntime.__version__, **found, **system}
