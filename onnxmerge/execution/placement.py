"""Which node ran on which execution provider, asked of the sessions themselves."""

from __future__ import annotations

from onnxmerge.execution.sessions import Session
from onnxmerge.results import Execution

# Settings that change speed or rounding
_REPORTED = ("use_tf32", "cudnn_conv_algo_search", "enable_cuda_graph", "trt_cuda_graph_enable")


def execution_of(reference: Session, candidate: Session) -> Execution:
    """Where and how two sessions that were opened alike ran."""
    by_provider = reference.handle.get_provider_options()
    settings = {key: value for options in by_provider.values() for key, value in options.items() if key in _REPORTED}
    in_float32 = reference.in_float32 or candidate.in_float32
    return Execution(reference.provider.fallback_reason, settings, placement(reference), placement(candidate), in_float32)


def placement(session: Session) -> dict[str, str]:
    """Execution provider by node of the graph as it runs, after optimisation; empty where ONNX Runtime does not tell."""
    assignments = getattr(session.handle, "get_provider_graph_assignment_info", None)
    found: dict[str, str] = {}
    for part in assignments() if assignments is not None else ():
        for node in part.get_nodes():
            found[node.name or f"{node.op_type} {len(found)}"] = part.ep_name
    return found
