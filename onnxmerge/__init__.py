"""onnxmerge: a smaller, faster ONNX model without training code, data or fine-tuning."""

from onnxmerge.compress import compress
from onnxmerge.errors import OnnxMergeError, VerificationError
from onnxmerge.inspecting import inspect
from onnxmerge.options import Options
from onnxmerge.proof import bench, bench_batches, verify
from onnxmerge.report.writing import write_report
from onnxmerge.sweep import sweep
from onnxmerge.versions import __version__

__all__ = [
    "OnnxMergeError",
    "Options",
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
