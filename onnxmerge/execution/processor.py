"""What ONNX Runtime's blocked convolutions work in on this processor."""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from pathlib import Path

_PF_AVX512F_INSTRUCTIONS_AVAILABLE = 41
"""Feature number of Windows' IsProcessorFeaturePresent."""


@cache
def channel_block() -> int:
    """Channels that ONNX Runtime's convolutions compute at once on the CPU: 16 where AVX-512 is seen, else 8.

    What `MlasNchwcGetBlockSize` says on x86, which ONNX Runtime does not tell. Channels are filled up to whole blocks, so that 17
    take as long as 32 where a block has 16.
    """
    return 16 if _has_avx512() else 8


def _has_avx512() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if sys.platform == "win32":
        return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(_PF_AVX512F_INSTRUCTIONS_AVAILABLE))
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False  # no /proc, as on macOS: 8 is right for most of its systems
