"""Model inputs: calibration files, images, synthetic inputs, labels, and which of them solve, check and verify."""
