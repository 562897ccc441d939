"""Mathematics on numpy arrays, without ONNX: importance, elimination, merging, least squares, covariance, allocation."""
