"""How sessions are set up: optimisation, threads, and the settings of execution providers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from onnxmerge.execution.providers import CPU, NAMES, Provider

FATAL = 4  # ONNX Runtime's log level that prints nothing but what ends the process: what matters is raised
FOLDING_LIMIT_BYTES = 1 << 30  # ONNX Runtime would fold constants of any size, so that a small file could fill the memory


def session_options(
    optimise: bool, threads: int, folder: Path | None, arena: bool = True, prepack: bool = True
) -> onnxruntime.SessionOptions:
    """Options of a session.

    Parameters
    ----------
    optimise : bool
        ORT_ENABLE_ALL, for speed, or ORT_DISABLE_ALL, for outputs that are compared.
    threads : int
        Of one operator; operators run one after the other. Waiting threads sleep instead of spinning, which on a busy machine
        halves the time of a call and its spread.
    folder : Path or None
        What the locations of external data are relative to, where the model is in memory.
    arena : bool
        Whether ONNX Runtime keeps the memory of a call for the next one of the same session.
    prepack : bool
        Whether weights are copied in the order in which kernels read them, which is faster where a session runs often.
    """
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = FATAL
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(FOLDING_LIMIT_BYTES))
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    return options


def provider_list(provider: Provider, optimise: bool) -> list[Any]:
    """The execution providers of a session with their settings, as ONNX Runtime takes them, in order of preference."""
    if provider.option == "cpu":
        return [CPU.name]
    settings = _cuda_settings(provider, optimise)
    if provider.option == "cuda":
        return [(NAMES["cuda"], settings), CPU.name]
    graph = settings.pop("enable_cuda_graph", "0")
    return [(NAMES["tensorrt"], {"trt_cuda_graph_enable": graph}), (NAMES["cuda"], settings), CPU.name]


def _cuda_settings(provider: Provider, optimise: bool) -> dict[str, str]:
    settings = provider.settings
    tf32 = optimise if settings.tf32 is None else settings.tf32
    found = {"use_tf32": str(int(tf32)), "cudnn_conv_algo_search": (settings.cudnn_search or "exhaustive").upper()}
    return {**found, "enable_cuda_graph": "1"} if settings.cuda_graph else found
