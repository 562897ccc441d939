"""Try an execution provider on a tiny convolution. Run as a process of its own by `gpu_detection`.

In a process of its own nothing that is tried can disturb the caller: ONNX Runtime writes to stdout and stderr past Python,
its log level cannot be read back, and a broken driver may end the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

FATAL = 4  # ONNX Runtime's log level that prints nothing but what ends the process


def main(name: str, providers: list[str]) -> None:
    """Print the outcome as one line of JSON, the last: `libraries` that were loaded, and `error`, empty where all went well."""
    libraries = _preload_libraries("Tensorrt" in name)
    error = _session_error(name, providers)
    print(json.dumps({"libraries": libraries, "error": error and (_loading_error(name) or error)}))


def _preload_libraries(tensorrt: bool) -> list[str]:
    """Load the CUDA libraries of the nvidia wheels, wherever these are.

    Returns
    -------
    list of str
        What `ctypes.CDLL` was given, in order: another process loads the same ones without looking for them.
    """
    loaded: list[str] = []

    class Recording(ctypes.CDLL):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            loaded.append(name)

    ctypes.CDLL = Recording  # type: ignore[assignment, misc]  # this process does nothing else
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
            for folder in _library_folders("nvidia", "*/lib/lib*.so.*", "*/bin/*.dll", "*/bin/x86_64/*.dll"):
                onnxruntime.preload_dlls(directory=str(folder))
        if tensorrt:
            for folder in _library_folders("tensorrt_libs", "libnvinfer.so.*", "nvinfer*.dll"):
                for file in sorted(
                    [*folder.glob("libnvinfer*.so.*"), *folder.glob("libnvonnxparser.so.*"), *folder.glob("nv*.dll")]
                ):
                    with contextlib.suppress(OSError):
                        Recording(str(file))
    return loaded


def _library_folders(package: str, *patterns: str) -> list[Path]:
    """Folders of a wheel's libraries, also where it sits in another site-packages than onnxruntime."""
    spec = importlib.util.find_spec(package)
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return sorted({file.parent for root in roots for pattern in patterns for file in root.glob(pattern)})


def _session_error(name: str, providers: list[str]) -> str:
    """Why the tiny model does not run on the first of the providers; empty where it does."""
    onnxruntime.set_default_logger_severity(FATAL)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(_tiny_model(), options, providers=providers, enable_fallback=0)
        if session.get_providers()[0] != name:
            return f"the model landed on {session.get_providers()[0]}"
        result = session.run(None, {"x": np.full((1, 1, 2, 2), 3.0, np.float32)})[0]
    except Exception as error:  # ONNX Runtime's exceptions have no common root
        return " ".join(str(error).split()) or type(error).__name__
    return "" if np.allclose(result, 6.0) else "a tiny convolution gave a wrong result"


def _loading_error(name: str) -> str:
    """Which library is missing, as the system says it; empty where none is. ONNX Runtime only logs it."""
    stem = f"onnxruntime_providers_{'tensorrt' if 'Tensorrt' in name else 'cuda'}"
    file = Path(onnxruntime.__file__).parent / "capi" / (f"{stem}.dll" if sys.platform == "win32" else f"lib{stem}.so")
    try:
        ctypes.CDLL(str(file))
    except OSError as error:
        return "" if "undefined symbol" in str(error) else f"its libraries were not found: {error}"
    return ""


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


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[1:])
