"""Models run by ONNX Runtime, which is loaded here, before any module of this package uses it."""

import os
import warnings
from importlib.metadata import PackageNotFoundError, version

from onnxmerge.errors import ProviderError

CURE = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxmerge"
"""What to do where the packages of ONNX Runtime spoilt each other."""


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


OVERWRITTEN = (
    "onnxruntime and onnxruntime-gpu are both installed and overwrite each other"
    if _installed("onnxruntime") and _installed("onnxruntime-gpu")
    else ""
)
"""What is wrong with the packages of ONNX Runtime; empty where nothing is."""

# Its telemetry writes the paths of models and a number of the machine below the home folder and into the temporary one, to be
# sent over the network. This variable is read once, when it is loaded; the call is for programs that had loaded it before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    from onnxruntime import disable_telemetry_events
except ImportError as error:
    cause = OVERWRITTEN or "its files are missing, as they are where one of two packages that overwrote each other was removed"
    raise ProviderError(f"ONNX Runtime cannot be loaded ({error}): {cause}; {CURE}") from error
disable_telemetry_events()
if OVERWRITTEN:
    warnings.warn(f"{OVERWRITTEN}: {CURE}", stacklevel=1)
