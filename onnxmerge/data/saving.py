"""Feeds written to a file that can be given again as calibration inputs."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from onnxmerge.onnxio.output_files import write_atomically


def save_feeds(path: Path, feeds: Mapping[str, np.ndarray]) -> None:
    """Write a .npz file with a member for each model input; the file appears whole or not at all."""

    def fill(draft: Path) -> None:
        with zipfile.ZipFile(draft, "w") as archive:
            for name, value in feeds.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    array = np.asarray(value)
                    npy.write_array(member, array.astype(str) if array.dtype.hasobject else array, allow_pickle=False)

    write_atomically(path, "the worst input", fill)
