"""onnxmerge: a smaller, faster ONNX model without training code, data or fine-tuning.

Names are loaded when they are first used (PEP 562), so that `import onnxmerge` and `onnxmerge --help` take no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxmerge.errors import OnnxMergeError, VerificationError
    from onnxmerge.evaluation.benchmark import bench, bench_batches
    from onnxmerge.evaluation.verify import verify
    from onnxmerge.options import InputOptions, PruningOptions, RuntimeOptions, Thresholds
    from onnxmerge.pipeline.compress import compress
    from onnxmerge.pipeline.inspect import inspect
    from onnxmerge.pipeline.sweep import sweep
    from onnxmerge.report.writing import write_report

__version__ = "0.1.0"

_MODULE_OF = {
    "OnnxMergeError": "errors",
    "InputOptions": "options",
    "PruningOptions": "options",
    "RuntimeOptions": "options",
    "Thresholds": "options",
    "VerificationError": "errors",
    "bench": "evaluation.benchmark",
    "bench_batches": "evaluation.benchmark",
    "compress": "pipeline.compress",
    "inspect": "pipeline.inspect",
    "sweep": "pipeline.sweep",
    "verify": "evaluation.verify",
    "write_report": "report.writing",
}

__all__ = [
    "InputOptions",
    "OnnxMergeError",
    "PruningOptions",
    "RuntimeOptions",
    "Thresholds",
    "VerificationError",
    "__version__",
    "bench",
    "bench_batches",
    "compress",
    "inspect",
    "sweep",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """The public name, loaded from its module."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'onnxmerge' has no attribute {name!r}")
    return getattr(import_module(f"onnxmerge.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """The public names only."""
    return __all__
