"""onnxmerge: a smaller, faster ONNX model without training code, data or fine-tuning."""

__version__ = "0.1.0"

from onnxmerge.compress import compress
from onnxmerge.errors import OnnxMergeError, VerificationError
from onnxmerge.inspecting import inspect
from onnxmerge.options import Options
from onnxmerge.proof import bench, verify
from onnxmerge.report.writing import write_report

__all__ = ["OnnxMergeError", "Options", "VerificationError", "bench", "compress", "inspect", "verify", "write_report"]
