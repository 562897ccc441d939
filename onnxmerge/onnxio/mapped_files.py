"""Arrays in files that are mapped into memory: weights beside a model, and large arrays that a model waits with to be written.

The system reads such pages when they are looked at, and takes them back when it needs memory. Until then they count as this
process's own, so `release_pages` gives back those that nobody looks at for now.
"""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from typing import IO
from weakref import WeakSet, WeakValueDictionary

import numpy as np

from onnxmerge.errors import OptionError, one_line

LEAST_BYTES = 1 << 20  # smaller arrays stay in memory: of a model of 1 GB they are a few hundredths
CHUNK_BYTES = 1 << 30  # of disk that is set aside at a time and not taken before it is written: a process has few file handles

_files: WeakValueDictionary[tuple[int, ...], mmap.mmap] = WeakValueDictionary()
"""The maps of weight files in use, one for each file, since each holds a file handle."""
_all: WeakSet[mmap.mmap] = WeakSet()


def mapped_bytes(file: Path, offset: int, length: int) -> np.ndarray:
    """(length,) uint8, read-only: a part of a file that has it."""
    status = file.stat()
    key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    area = _files.get(key)
    if area is None:
        with file.open("rb") as stream:
            area = _files[key] = _map(stream, status.st_size)
    return np.frombuffer(area, np.uint8, length, offset)


def release_pages() -> None:
    """Let the memory of mapped pages be taken for others; whoever looks at them has them read again, mostly from a cache."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for area in list(_all):
            area.madvise(mmap.MADV_DONTNEED)


def _map(stream: IO[bytes], length: int) -> mmap.mmap:
    area = mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_READ)
    _all.add(area)
    return area


class Scratch:
    """Keeps large arrays in temporary files, which go with the last of them."""

    def __init__(self) -> None:
        self._stream: IO[bytes] | None = None
        self._area: mmap.mmap | None = None

    def kept(self, array: np.ndarray) -> np.ndarray:
        """The same values, read-only and in C order where they are on disk; a small array as it is.

        Pages of other arrays are released: whoever has a new array is done with those that it was made from.

        Raises
        ------
        OptionError
            Where the temporary folder cannot be written.
        """
        if array.nbytes < LEAST_BYTES or array.dtype.hasobject:
            return array
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        try:
            if self._stream is None or self._area is None or self._stream.tell() + raw.size > len(self._area):
                self._stream = tempfile.TemporaryFile()  # noqa: SIM115  arrays keep it
                self._stream.truncate(max(CHUNK_BYTES, raw.size))
                self._area = _map(self._stream, max(CHUNK_BYTES, raw.size))
            offset = self._stream.tell()
            self._stream.write(raw.data)
            self._stream.write(bytes(-raw.size % mmap.PAGESIZE))
            self._stream.flush()
        except OSError as error:
            raise no_room(error) from error
        release_pages()
        return np.frombuffer(self._area, np.uint8, raw.size, offset).view(array.dtype).reshape(array.shape)


def no_room(error: OSError) -> OptionError:
    """What to say where the temporary folder cannot be written."""
    reason = error.strerror or one_line(error)
    return OptionError(
        f"a model cannot be written into the temporary folder {tempfile.gettempdir()}: {reason}; TMPDIR names another one"
    )
