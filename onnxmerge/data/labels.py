"""The classes of the user's own inputs, from a file."""

import os
from pathlib import Path

import numpy as np

from onnxmerge.data.inputs import Inputs
from onnxmerge.data.npy_files import npz_headers, open_npy, open_npz
from onnxmerge.errors import InputError

MEMBER = "labels"  # name of the array in a .npz file


def read_labels(path: Path, inputs: Inputs) -> np.ndarray:
    """Read class numbers.

    Parameters
    ----------
    path : .npy file, or .npz file with a member `labels`, of one integer for each of the `inputs.total` inputs the user gave
    inputs : the calibration inputs that are used

    Returns
    -------
    ndarray
        (inputs.count,) integers.

    Raises
    ------
    InputError
        Where the file is missing, cannot be read, or does not hold one integer of at least 0 for each input.
    """
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist: a .npy file of labels, or a .npz with a member {MEMBER!r}, is needed")
    labels = _array(path)
    if labels.dtype.kind not in "iu":
        raise InputError(f"{path} holds {labels.dtype} {labels.shape}: labels are class numbers, integers")
    if labels.size != inputs.total or labels.shape[:1] != (labels.size,):
        needed = f"{inputs.total} calibration inputs: one for each is needed"
        raise InputError(f"{path} holds labels of shape {labels.shape} for {needed}")
    if labels.min() < 0:
        raise InputError(f"{path} holds the label {labels.min()}: classes count from 0")
    return labels.reshape(-1)[inputs.indices]


def _array(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        return open_npy(path)
    if path.suffix.lower() != ".npz":
        raise InputError(f"{path} is no .npy file and no .npz file of labels")
    members = npz_headers(path)
    if MEMBER not in members:
        raise InputError(f"{path} has no member {MEMBER!r}; found {', '.join(members) or 'nothing'}")
    return open_npz(path, [MEMBER])[0]
