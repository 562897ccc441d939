"""What this processor is called, and what ONNX Runtime's blocked convolutions work in on it."""

from __future__ import annotations

import ctypes
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

SMALLEST_BLOCK = 8
"""Channels that a convolution computes at once on a processor without AVX-512, with which it computes 16."""
_PF_AVX512F_INSTRUCTIONS_AVAILABLE = 41
"""Feature number of Windows' IsProcessorFeaturePresent."""


@cache
def processor_name(gpu: bool = False) -> str:
    """Name of this processor, or of the first GPU as NVIDIA's driver gives it; empty where nobody knows."""
    if gpu:
        try:
            asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
            return subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.partition("\n")[0].strip()
        except (OSError, subprocess.SubprocessError):
            return ""
    try:
        named = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return " ".join(named[1].split()) if named else platform.processor() or platform.machine()


@cache
def channel_block() -> int:
    """Channels that ONNX Runtime's convolutions compute at once on the CPU: 16 where AVX-512 is seen, else 8.

    What `MlasNchwcGetBlockSize` says on x86, which ONNX Runtime does not tell. Channels are filled up to whole blocks, so that 17
    take as long as 32 where a block has 16.
    """
    return 16 if _has_avx512() else SMALLEST_BLOCK


def _has_avx512() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if sys.platform == "win32":
        return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(_PF_AVX512F_INSTRUCTIONS_AVAILABLE))
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False  # no /proc, as on macOS: 8 is right for most of its systems
