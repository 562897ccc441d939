"""Whether a GPU works here, and if not why.

ONNX Runtime lists the execution providers that it was built with, not those that run, and falls back to the CPU with no more
than a log line. So a provider counts as working only after a tiny convolution ran on it, in a session that says so and may not
use the CPU. `gpu_detection_child` tries that in a process of its own, since trying prints and cannot be undone. It costs about
two seconds, and only machines with a driver and a GPU pay them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from dataclasses import dataclass

import onnxruntime

from onnxmerge.execution import CURE, OVERWRITTEN
from onnxmerge.execution.limited_process import ProcessFailure, answer_of

CPU_NAME = "CPUExecutionProvider"
CUDA_NAME = "CUDAExecutionProvider"
TENSORRT_NAME = "TensorrtExecutionProvider"

PROBE_SECONDS = 120.0  # a cold start of CUDA and cuDNN takes a few seconds, from a slow network disk tens of them
LONGEST_REASON = 300  # characters of a reason that are shown

_INSTALL = "pip install 'onnxmerge[cuda]'"
_REMEDIES = {CUDA_NAME: _INSTALL, TENSORRT_NAME: f"{_INSTALL} and pip install tensorrt-cu13"}


@dataclass(frozen=True)
class ProviderProblem:
    """Why an execution provider does not work here.

    Attributes
    ----------
    cause : str
        What was found.
    remedy : str
        What to do about it.
    """

    cause: str
    remedy: str


@functools.cache
def find_problem(name: str) -> ProviderProblem | None:
    """What keeps a GPU's execution provider from working; None where it works. Asked once a process, and nothing is printed.

    Parameters
    ----------
    name : str
        As ONNX Runtime calls it: `CUDA_NAME` or `TENSORRT_NAME`.
    """
    if name not in onnxruntime.get_available_providers():
        return _missing_in_build(name)
    return _driver_problem() or _probe_problem(name)


def _missing_in_build(name: str) -> ProviderProblem:
    cause = f"this onnxruntime ({onnxruntime.__version__}) is built without {name}"
    return ProviderProblem(f"{cause}: {OVERWRITTEN}", CURE) if OVERWRITTEN else ProviderProblem(cause, _INSTALL)


def _driver_problem() -> ProviderProblem | None:
    """The driver is asked through its own library: no GPU package is needed, and nothing is printed."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count, version = ctypes.c_int(), ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            return ProviderProblem("the NVIDIA driver reports no GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
        driver.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return ProviderProblem("no NVIDIA driver was found", "install NVIDIA's driver")
    needed = str(getattr(onnxruntime, "cuda_version", "")).split(".")[0]
    found = version.value // 1000
    if needed.isdigit() and found < int(needed):
        cause = f"the NVIDIA driver supports CUDA {found}, this onnxruntime needs CUDA {needed}"
        return ProviderProblem(cause, "update the driver (CUDA 13 needs 580 or newer; below that: onnxruntime-gpu 1.26)")
    return None


def _probe_problem(name: str) -> ProviderProblem | None:
    """Run the probe in a process of its own, then load the libraries here that it needed."""
    error, libraries = _probe([name, CUDA_NAME] if name == TENSORRT_NAME else [name])
    if error:
        return ProviderProblem(error[:LONGEST_REASON], _REMEDIES[name])
    for library in libraries:
        with contextlib.suppress(OSError):
            ctypes.CDLL(library)
    return None


def _probe(providers: list[str]) -> tuple[str, list[str]]:
    """What kept the tiny model from running, and the libraries that the process loaded."""
    try:
        found = answer_of("onnxmerge.execution.gpu_detection_child", providers, PROBE_SECONDS)
        return str(found["error"]), [str(each) for each in found["libraries"]]
    except ProcessFailure as failure:
        return f"trying a tiny model {failure}", []
