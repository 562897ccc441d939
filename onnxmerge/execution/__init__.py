"""ONNX Runtime: execution providers, sessions, layer-wise runs, concrete shapes."""
