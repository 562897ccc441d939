"""Model inputs: calibration files, images, synthetic inputs, labels, and which of them a pruning or a check uses."""
