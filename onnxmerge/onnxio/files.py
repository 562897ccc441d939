"""Files that the program writes beside the model: placed where nothing is lost, and there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from onnxmerge.errors import OptionError


def check_place(path: Path, what: str, kept: Mapping[str, Path | None]) -> None:
    """OptionError where a file, `what` it is, has no place, or the place of one that must stay.

    kept: what a file is -> its path, None where there is none; files in a folder of calibration inputs count too.
    """
    if path.exists() and not path.is_file():
        raise OptionError(f"{what} {path} is no regular file; name another one")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise OptionError(f"the folder {folder} of {what} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"the folder {folder} of {what} is not writable")
    for name, other in kept.items():
        if other is not None and is_at(path, other):
            raise OptionError(f"{what} {path} would overwrite {name}; name another file")


def write_whole(path: Path, what: str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a draft and put it in the place of `path`. OptionError where that fails; what was there then stays."""
    target = Path(os.path.realpath(path))
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxmerge-", dir=target.parent) as room:
            draft = Path(room) / target.name
            write(draft)
            os.replace(draft, target)
    except OSError as error:
        raise OptionError(f"{what} {path} cannot be written: {error.strerror or error}") from error


def is_at(path: Path, kept: Path) -> bool:
    """Whether writing a path would change a file that is kept, or one in a folder that is kept."""
    if not path.exists() or not kept.exists():
        return path.resolve() == kept.resolve()
    return path.resolve().is_relative_to(kept.resolve()) if kept.is_dir() else path.samefile(kept)
