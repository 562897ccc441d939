"""ONNX Runtime: sessions that refuse a silent fallback, concrete shapes, fidelity and latency."""
