"""Keeps onnx's checker and shape inference from printing: their C++ writes to file descriptor 1, past Python."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nothing_on_stdout() -> Iterator[None]:
    """While this lasts, what is written to file descriptor 1 is lost; nothing happens where there is none."""
    try:
        kept = os.dup(1)
    except OSError:
        yield
        return
    _flush()
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)


def _flush() -> None:
    """Empty C's own buffers, or what was printed comes out later."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        (ctypes.cdll.ucrtbase if os.name == "nt" else ctypes.CDLL(None)).fflush(None)
