"""The mathematics: arrays in, arrays out, float64 inside. Knows nothing of ONNX."""
