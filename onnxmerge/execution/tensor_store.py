"""Tensors of many batches, in memory up to a limit and on disk beyond it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxmerge.onnxio.work_folder import WorkFolder

# 128 MiB: 500 images of 32 x 32 fit, 64 of 224 x 224 behind the first layers. Two runs, of reference and compressed model, hold
# as much each.
MEMORY_LIMIT_BYTES = 1 << 27

Value = np.ndarray | list[np.ndarray]  # a list where the model has a sequence of tensors


class TensorStore:
    """Values by batch and name: in memory until the limit is reached, then arrays go to a temporary folder.

    Parameters
    ----------
    limit_bytes : int
        Size of the arrays in memory from which on further ones go to disk. Sequences count, but always stay in memory, and so do
        strings.
    """

    def __init__(self, limit_bytes: int = MEMORY_LIMIT_BYTES) -> None:
        self._limit, self._used, self._written = limit_bytes, 0, 0
        self._in_memory: dict[tuple[int, str], Value] = {}
        self._files: dict[tuple[int, str], Path] = {}
        self._folder: WorkFolder | None = None

    def put(self, batch: int, name: str, value: Value) -> None:
        """Store a value, replacing an older one."""
        self.drop(batch, name)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject and self._used + value.nbytes > self._limit:
            self._folder = self._folder or WorkFolder()
            path = self._folder.path / f"{self._written}.npy"
            self._written += 1
            np.save(path, value, allow_pickle=False)
            self._files[batch, name] = path
        else:
            self._used += _byte_count(value)
            self._in_memory[batch, name] = value

    def get(self, batch: int, name: str) -> Value:
        """The value; mapped from its file where it is on disk. KeyError for one that is not stored."""
        path = self._files.get((batch, name))
        return self._in_memory[batch, name] if path is None else np.load(path, mmap_mode="r", allow_pickle=False)

    def drop(self, batch: int, name: str) -> None:
        """Forget a value; nothing happens where there is none."""
        value, path = self._in_memory.pop((batch, name), None), self._files.pop((batch, name), None)
        if path is not None:
            path.unlink(missing_ok=True)
        elif value is not None:
            self._used -= _byte_count(value)


def _byte_count(value: Value) -> int:
    return sum(getattr(part, "nbytes", 0) for part in value) if isinstance(value, list) else value.nbytes
