"""Files beside the model (reports, plans, inputs): where they overwrite nothing that is needed, and whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from onnxmerge.errors import OptionError
from onnxmerge.onnxio.work_folder import WorkFolder


def check_output_file(path: Path, description: str, needed: Mapping[str, Path | None]) -> None:
    """Check, before any work, that a file can be written and overwrites nothing that is needed.

    Parameters
    ----------
    path : Path
        The file to be written; one that is there already may be replaced.
    description : str
        What the file is, for messages ("the report").
    needed : mapping of str to Path or None
        What must stay, by description; None where there is none. All files in a folder count.

    Raises
    ------
    OptionError
        Where the file cannot be written, or is needed.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            what = "a folder" if path.is_dir() else "a device, a pipe or a socket"
            raise OptionError(f"{description} {path} is no regular file but {what}; name another one")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OptionError(f"{description} {path} cannot be written: {error.strerror}") from error
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise OptionError(f"the folder {folder} of {description} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"the folder {folder} of {description} is not writable")
    for name, other in needed.items():
        if other is not None and would_overwrite(path, other):
            raise OptionError(f"{description} {path} would overwrite {name}; name another file")


def write_atomically(path: Path, description: str, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    Parameters
    ----------
    path : Path
        The file; a link is followed.
    description : str
        What the file is, for messages.
    write : callable
        Takes the path of a draft in the same folder and writes it.

    Raises
    ------
    OptionError
        Where the system refuses; what was there before stays.
    """
    target = Path(os.path.realpath(path))
    try:
        with WorkFolder(target.parent) as folder:
            draft = folder.path / target.name
            write(draft)
            folder.publish(draft, target)
    except OSError as error:
        raise OptionError(f"{description} {path} cannot be written: {error.strerror or error}") from error


def would_overwrite(path: Path, needed: Path) -> bool:
    """Whether writing a file would change one that is needed, or one in a folder that is needed."""
    if not os.path.exists(path) or not os.path.exists(needed):
        return os.path.realpath(path) == os.path.realpath(needed)
    place = Path(os.path.realpath(path))
    return place.is_relative_to(os.path.realpath(needed)) if needed.is_dir() else path.samefile(needed)
