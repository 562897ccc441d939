"""How many samples a least squares needs, in samples for each unknown of one output: every rule that depends on it.

An unknown is one input of the linear map (one channel at one position of the kernel), a sample one row of a dense layer or one
output position of a convolution. Where samples are as many as unknowns the unregularised solution is at its worst: it reproduces
the samples, their noise included (Belkin et al., "Reconciling modern machine-learning practice and the classical bias-variance
trade-off", 2019). All values were chosen on ResNet-56 and VGG-16 for CIFAR-10.
"""

AMPLE = 16.0
"""From here on more samples take time and change nothing: output positions of a convolution are thinned down to this."""

AMPLE_AT_LEAST = 1 << 13
"""Samples that are never thinned, however few the unknowns are: neighbouring positions of an image resemble each other."""

AMPLE_AT_MOST = 1 << 15
"""Samples that are enough for any number of unknowns up to half as many."""

FEW = 10.0
"""With fewer the ridge is raised above what was asked for (see `least_squares.solve`)."""

MINIMUM = 1.0
"""Synthetic inputs are made until every layer has this many, as far as the largest number of inputs allows."""


def enough_samples(unknowns: int) -> float:
    """How many samples are enough for so many unknowns."""
    return max(AMPLE_AT_LEAST, min(AMPLE * unknowns, AMPLE_AT_MOST), 2.0 * unknowns)
