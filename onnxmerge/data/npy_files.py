"""Arrays of .npy and .npz files, mapped into memory: nothing is read before it is used, and no Python object is ever loaded.

Written whole or not at all.
"""

import math
import os
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.lib import format as npy

from onnxmerge.errors import InputError, OnnxMergeError
from onnxmerge.onnxio.side_files import write_atomically

# Readers of the header by version of the .npy format
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_LOCAL_HEADER_BYTES = 30  # fixed part of the header in front of a member of a zip archive
# 1 GiB: more than packed calibration inputs need, and little beside a disk; a small file could fill one, packed a thousandfold
LARGEST_UNPACKED_BYTES = 1 << 30


@dataclass(frozen=True)
class Header:
    """Shape, memory order and dtype that a .npy file gives for its array."""

    shape: tuple[int, ...]
    column_major: bool
    dtype: np.dtype


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever a missing, broken or foreign file raises into an InputError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is no regular file")  # a pipe or a device, which could be read for ever
        yield
    except OnnxMergeError:
        raise
    except Exception as error:  # what parsers and decoders raise has no common root
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read: {reason}") from error


def open_npy(path: Path) -> np.ndarray:
    """The array of a .npy file. Raises InputError."""
    with readable(path), path.open("rb") as file:
        return _mapped(file, path.stat().st_size)


def npz_headers(path: Path) -> dict[str, Header]:
    """The headers of a .npz file's arrays by name. Raises InputError."""
    headers: dict[str, Header] = {}
    with readable(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, suffix = os.path.splitext(info.filename)
            if name in headers:
                raise ValueError(f"it holds two arrays of the name {name!r}")
            if suffix == ".npy":
                with archive.open(info) as file:
                    headers[name] = _header(file)
    return headers


def open_npz(path: Path, members: Sequence[str]) -> list[np.ndarray]:
    """Arrays of a .npz file by name; compressed ones are unpacked to unnamed temporary files. Raises InputError."""
    with readable(path), zipfile.ZipFile(path) as archive:
        infos = [archive.getinfo(f"{name}.npy") for name in members]
        unpacked_bytes = sum(info.file_size for info in infos if not _is_stored(info))
        if unpacked_bytes > LARGEST_UNPACKED_BYTES:
            limit = f"at most {LARGEST_UNPACKED_BYTES} are unpacked: write it with numpy.savez, which packs nothing"
            raise ValueError(f"unpacked it has {unpacked_bytes} bytes, and {limit}")
        return [_open_member(archive, info, path) for info in infos]


def _is_stored(info: zipfile.ZipInfo) -> bool:
    """Whether a member is in the archive as it is, so that it can be mapped there."""
    return info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1


def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    if _is_stored(info):
        with path.open("rb") as file:
            file.seek(info.header_offset)
            lengths = struct.unpack("<HH", file.read(_LOCAL_HEADER_BYTES)[26:])
            file.seek(sum(lengths), 1)
            return _mapped(file, info.file_size)
    with archive.open(info) as packed, tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
        unpacked.seek(0)
        return _mapped(unpacked, info.file_size)


def save_feeds(path: Path, description: str, feeds: Mapping[str, np.ndarray]) -> None:
    """Write a .npz file with a member for each model input; errors call it by its description, "the worst input"."""

    def fill(draft: Path) -> None:
        with zipfile.ZipFile(draft, "w") as archive:
            for name, value in feeds.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    array = np.asarray(value)
                    npy.write_array(member, array.astype(str) if array.dtype.hasobject else array, allow_pickle=False)

    write_atomically(path, description, fill)


def _header(file: IO[bytes]) -> Header:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the .npy format is unknown")
    header = Header(*_HEADERS[version](file))
    if header.dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded: save numbers")
    return header


def _mapped(file: IO[bytes], size: int) -> np.ndarray:
    """The array that starts here and has `size` bytes with its header."""
    start = file.tell()
    header = _header(file)
    needed = math.prod(header.shape) * header.dtype.itemsize
    found = size - (file.tell() - start)
    if needed > found:
        raise ValueError(f"{header.dtype} {header.shape} needs {needed} bytes, but only {found} are there")
    if not needed:
        return np.empty(header.shape, header.dtype)
    order: Literal["F", "C"] = "F" if header.column_major else "C"
    return np.asarray(np.memmap(file, header.dtype, "r", file.tell(), header.shape, order))
