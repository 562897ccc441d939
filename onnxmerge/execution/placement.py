"""What truly ran where, asked of the sessions themselves."""

from __future__ import annotations

from onnxmerge.execution.sessions import Session
from onnxmerge.results import Execution

_STATED = ("use_tf32", "cudnn_conv_algo_search", "enable_cuda_graph", "trt_cuda_graph_enable")


def execution_of(reference: Session, candidate: Session) -> Execution:
    """Of two sessions opened alike."""
    options = reference.handle.get_provider_options()
    settings = {key: value for of_one in options.values() for key, value in of_one.items() if key in _STATED}
    return Execution(reference.provider.fallback_reason, settings, placement(reference), placement(candidate))


def placement(session: Session) -> dict[str, str]:
    """Node of the graph as it runs -> its execution provider; empty where this ONNX Runtime does not tell."""
    progress = getattr(session.handle, "get_provider_graph_assignment_info", None)
    found: dict[str, str] = {}
    for part in progress() if progress is not None else ():
        for node in part.get_nodes():
            found[node.name or f"{node.op_type} {len(found)}"] = part.ep_name
    return found
