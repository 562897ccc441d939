"""Feeds written so that they can be given again as calibration inputs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from onnxmerge.errors import OptionError


def check_place(path: Path, needed: Mapping[str, Path]) -> None:
    """OptionError where the file cannot be written, or would destroy one that is `needed` (what it is -> where)."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise OptionError(f"the folder {folder} of --save-worst does not exist; create it first")
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise OptionError(f"--save-worst cannot write {path}: {'it is a folder' if path.is_dir() else 'its folder is locked'}")
    for what, other in needed.items():
        if path.exists() and other.exists() and path.samefile(other):
            raise OptionError(f"--save-worst would write over {what}, {path}; name another file")


def save_feeds(path: Path, feeds: Mapping[str, np.ndarray]) -> None:
    """A .npz with a member for each input, whatever its name is; the file appears whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for name, value in feeds.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    array = np.asarray(value)
                    npy.write_array(member, array.astype(str) if array.dtype.hasobject else array, allow_pickle=False)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
