"""ONNX files: load, validate, export, external data, and every workaround for onnx-graphsurgeon."""
