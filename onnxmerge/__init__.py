"""onnxmerge: a smaller, faster ONNX model without training code, data or fine-tuning."""

__version__ = "0.1.0"

from onnxmerge.compress import compress, inspect
from onnxmerge.errors import OnnxMergeError, VerificationError
from onnxmerge.options import Options
from onnxmerge.proof import bench, bench_batches, verify

__all__ = ["OnnxMergeError", "Options", "VerificationError", "bench", "bench_batches", "compress", "inspect", "verify"]
