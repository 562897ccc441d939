"""onnxmerge: a smaller, faster ONNX model without training code, data or fine-tuning."""

__version__ = "0.1.0"
