"""Which execution provider truly works here.

ONNX Runtime lists providers it was built with, not those that run, and falls back to the CPU with no more than a log line. So
CUDA counts as working only after a tiny convolution ran on it, in a session that says so and may not use the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from onnxmerge.errors import OptionError, ProviderError
from onnxmerge.options import RuntimeOptions

NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
CHOICES = ("auto", *NAMES)


@dataclass(frozen=True)
class CudaSettings:
    """What can be set of CUDA. tf32 None: on where models are timed, off where their outputs are compared."""

    tf32: bool | None = None
    cudnn_search: str | None = None
    cuda_graph: bool = False

    @property
    def asked(self) -> list[str]:
        """The options that were given, as the command line calls them."""
        tf32 = [] if self.tf32 is None else ["`tf32`" if self.tf32 else "`tf32=False`"]
        return tf32 + ["`cudnn_search`"] * (self.cudnn_search is not None) + ["`cuda_graph`"] * self.cuda_graph


@dataclass(frozen=True)
class Provider:
    """An execution provider that works; `why` says why `auto` took the CPU ("" where it was asked for)."""

    name: str
    short: str
    why: str = ""
    settings: CudaSettings = CudaSettings()


@dataclass(frozen=True)
class Obstacle:
    """Why a provider does not work here, and what to do about it."""

    what: str
    remedy: str


CPU = Provider(NAMES["cpu"], "cpu")
_INSTALL = "pip install 'onnxmerge[cuda]'"
_DRIVER = "install NVIDIA's driver"


def resolve_provider(choice: str = "auto", settings: CudaSettings | None = None) -> Provider:
    """The provider to use: `auto` takes CUDA where it works, else the CPU; a named one that does not work is refused.

    Raises OptionError for an unknown choice, and for settings of CUDA where the CPU is used; ProviderError where cuda or
    tensorrt was asked for and does not work.
    """
    settings = settings or CudaSettings()
    if choice not in CHOICES:
        raise OptionError(f"provider {choice!r} is unknown: choose one of {', '.join(CHOICES)}")
    if choice == "cpu":
        return _cpu("`provider` cpu was asked for", settings, "")
    wanted = "cuda" if choice == "auto" else choice
    obstacle = find_obstacle(wanted)
    if obstacle is None:
        return Provider(NAMES[wanted], wanted, settings=settings)
    if choice == "auto":
        return _cpu(f"CUDA does not work here: {obstacle.what}; {obstacle.remedy}", settings, obstacle.what)
    raise ProviderError(f"provider {wanted} does not work here: {obstacle.what}; {obstacle.remedy}, or use `provider` cpu")


def provider_of(options: RuntimeOptions) -> Provider:
    """Where models run. CUDA graphs need inputs of one shape, so that only timing uses them."""
    settings = CudaSettings(options.tf32, options.cudnn_search, options.cuda_graph)
    provider = resolve_provider(options.provider, settings)
    return replace(provider, settings=replace(settings, cuda_graph=False))


def _cpu(reason: str, settings: CudaSettings, why: str) -> Provider:
    if settings.asked:
        raise OptionError(f"{' and '.join(settings.asked)} can be had on CUDA only, and the models run on the CPU: {reason}")
    return Provider(CPU.name, CPU.short, why)


@functools.cache
def find_obstacle(short: str) -> Obstacle | None:
    """What keeps the provider from working, None where it works; asked once a process, nothing printed."""
    if NAMES[short] not in onnxruntime.get_available_providers():
        return _not_built(short)
    obstacle = _driver_obstacle()
    if obstacle is not None:
        return obstacle
    complaints = _preload_libraries(short)
    return _session_obstacle(short, complaints)


def _not_built(short: str) -> Obstacle:
    installed = {(found.metadata["Name"] or "").lower() for found in importlib.metadata.distributions()}
    what = f"this onnxruntime ({onnxruntime.__version__}) is built without {short}"
    if {"onnxruntime", "onnxruntime-gpu"} <= installed:
        both = "pip uninstall onnxruntime onnxruntime-gpu, then " + _INSTALL
        return Obstacle(f"{what}: onnxruntime and onnxruntime-gpu are both installed", both)
    return Obstacle(what, _INSTALL)


def _driver_obstacle() -> Obstacle | None:
    """The driver is asked through its own library: no GPU package is needed, and nothing is printed."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count, version = ctypes.c_int(), ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            return Obstacle("the NVIDIA driver reports no GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
        driver.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return Obstacle("no NVIDIA driver was found", _DRIVER)
    needed = str(getattr(onnxruntime, "cuda_version", "")).split(".")[0]
    found = version.value // 1000
    if needed.isdigit() and found < int(needed):
        what = f"the NVIDIA driver supports CUDA {found}, this onnxruntime needs CUDA {needed}"
        return Obstacle(what, "update the driver (CUDA 13 needs 580 or newer; below that: onnxruntime-gpu 1.26)")
    return None


def _preload_libraries(short: str) -> str:
    """Load the CUDA libraries of the nvidia wheels, wherever these are; what could not be loaded, as text."""
    with contextlib.redirect_stdout(io.StringIO()) as complaints, contextlib.redirect_stderr(io.StringIO()):
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
            for folder in _library_folders("nvidia", "*/lib/lib*.so.*", "*/bin/*.dll", "*/bin/x86_64/*.dll"):
                onnxruntime.preload_dlls(directory=str(folder))
        if short == "tensorrt":
            for folder in _library_folders("tensorrt_libs", "libnvinfer.so.*", "nvinfer*.dll"):
                _load_all(folder)
    return " ".join(complaints.getvalue().split())


def _library_folders(package: str, *patterns: str) -> list[Path]:
    """Folders of a wheel's libraries, also where it sits in another site-packages than onnxruntime."""
    spec = importlib.util.find_spec(package)
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return sorted({file.parent for root in roots for pattern in patterns for file in root.glob(pattern)})


def _load_all(folder: Path) -> None:
    for file in sorted([*folder.glob("libnvinfer*.so.*"), *folder.glob("libnvonnxparser.so.*"), *folder.glob("nv*.dll")]):
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(file))


def _session_obstacle(short: str, complaints: str) -> Obstacle | None:
    remedy = _INSTALL if short == "cuda" else f"{_INSTALL} and pip install tensorrt-cu13"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    asked = [NAMES["tensorrt"], NAMES["cuda"]] if short == "tensorrt" else [NAMES["cuda"]]
    with quiet_log():
        try:
            session = onnxruntime.InferenceSession(_tiny_model(), options, providers=asked, enable_fallback=0)
            if session.get_providers()[0] != NAMES[short]:
                return Obstacle(f"its libraries were not found {complaints[:300]}".rstrip(), remedy)
            result = session.run(None, {"x": np.full((1, 1, 2, 2), 3.0, np.float32)})[0]
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            return Obstacle(" ".join(str(error).split())[:300], remedy)
    return None if np.allclose(result, 6.0) else Obstacle("a tiny convolution gave a wrong result", _DRIVER)


def _tiny_model() -> bytes:
    """Relu(Conv(x, 2)): needs cuDNN too, which a session of pointwise operators would not miss."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [2.0])
    shape = [1, 1, 2, 2]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7).SerializeToString()


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Silence ONNX Runtime's own log, which writes to stderr past Python; its level cannot be read, so the default comes back."""
    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)
