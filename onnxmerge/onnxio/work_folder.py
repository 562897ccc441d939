"""Hidden folders in which files are made before they get their names; the next run removes what a killed one left of them.

A work folder holds a journal, locked as long as its process lives, of the files outside of it that the run has made or is about
to do without. At the end of the run, or where that was killed in the next one, these files go, as they were noted, unless a model
may name them as its data. So nothing that is needed is ever removed, whenever a process ends.
"""

import os
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Self

from onnxmerge.onnxio.naming_files import may_be_named

try:
    import fcntl
except ImportError:  # Windows, where nobody can tell whether a journal's process lives: what was left stays
    fcntl = None  # type: ignore[assignment]

PREFIX = ".onnxmerge-"
RANDOM_NAME = "[0-9a-f]" * 8  # what follows in the name
JOURNAL = "onnxmerge-journal"
MOMENT_SECONDS = 2.0  # between a note that a file will be made and that file; some file systems count no shorter times
TURN_TRIES, TURN_SECONDS = 100, 0.02  # 2 s, many times what it takes to put files in place
END = b"\0"  # of a file name in a journal: no name can contain it

_in_use: dict[Path, int] = {}
"""The work folders of this process, and its number: a process forked from it must leave them alone."""


class WorkFolder:
    """A folder for unfinished and temporary files; a context manager that removes it.

    Parameters
    ----------
    parent : Path, optional
        Where it is made, and what killed runs left is removed; by default the system's folder for temporary files.

    Attributes
    ----------
    path : Path
        The folder.
    remove : callable
        Removes it, and the files in the journal that nothing needs; also called with the last reference to this object.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self.parent = Path(parent or tempfile.gettempdir())
        for folder in self.parent.glob(f"{PREFIX}{RANDOM_NAME}"):
            _remove_leftover(folder)
        self.path, self._journal = _new_folder(self.parent)
        self.remove = weakref.finalize(self, _remove_own, self.path, self._journal, os.getpid())
        self._reserved: set[Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def reserve(self, name: str) -> Path:
        """Make an empty file beside the folder, called `name`.data or, where that is taken, `name`.1.data and so on."""
        for number in count():
            file = self.parent / (f"{name}.{number}.data" if number else f"{name}.data")
            if not os.path.lexists(file):
                self.disown([file.name])
                with suppress(FileExistsError):
                    file.open("x").close()
                    self._reserved.add(file)
                    self.disown([file.name])
                    return file
        raise AssertionError  # numbers do not end

    def disown(self, names: list[str]) -> None:
        """Let files beside the folder go with it, except those that another file names then, and later ones of the name."""
        for name in names:
            self._note(name, self.parent / name)

    def _note(self, name: str, file: Path) -> None:
        """Write into the journal that a file goes if it still has this name; a later one of the name is another file."""
        self._journal.write(_entry(name, file))
        self._journal.flush()

    def publish(self, draft: Path, target: Path, like: Path | None = None) -> None:
        """Move a finished file out of the folder, with the mode of `like`, by default of the file that it replaces."""
        with suppress(FileNotFoundError):
            shutil.copymode(like or target, draft)
        if target in self._reserved:
            self._note(target.name, draft)
        os.replace(draft, target)


@contextmanager
def taking_turns(folder: Path) -> Iterator[None]:
    """Let runs that write into a folder put their files in place one after the other, so that each sees what the others did.

    A program that holds the lock of the folder for long is not waited for: without a turn data files may be left, none broken.
    """
    with ExitStack() as closing:
        with suppress(OSError):  # Windows, or a folder that must not be listed
            handle = os.open(folder, os.O_RDONLY)
            closing.callback(os.close, handle)
            for _ in range(TURN_TRIES):
                with suppress(BlockingIOError):
                    _lock(handle, wait=False)
                    break
                time.sleep(TURN_SECONDS)
        yield


def remove_all() -> None:
    """Remove the work folders of this process, which is about to end."""
    for folder in [folder for folder, process in _in_use.items() if process == os.getpid()]:
        with suppress(OSError):
            _remove(folder)


def _identity(file: Path) -> bytes:
    """What tells a file from a later one of its name, and from what others wrote into it; empty where there is none.

    File systems use numbers of files again, so that these alone do not tell.
    """
    with suppress(OSError):
        status = file.lstat()
        return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}".encode()
    return b""


def _entry(name: str, file: Path) -> bytes:
    """Of a journal."""
    return _identity(file) + b"/" + os.fsencode(name) + END


def _new_folder(parent: Path) -> tuple[Path, IO[bytes]]:
    """A new folder and its journal, locked. Another run that takes it for a leftover until it is locked may have removed it."""
    while True:
        folder = parent / f"{PREFIX}{secrets.token_hex(4)}"
        _in_use[folder] = os.getpid()
        folder.mkdir(0o700)
        with suppress(FileNotFoundError):
            journal = (folder / JOURNAL).open("xb")
            with suppress(OSError):  # some network file systems know no locks; nobody removes what cannot be locked
                _lock(journal, wait=True)
            if (folder / JOURNAL).exists():
                return folder, journal
            journal.close()


def _lock(file: IO[bytes] | int, wait: bool) -> None:
    """OSError where another process holds the lock, or there are none here."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    elif not wait:
        raise OSError("no locks here")


def _remove_own(folder: Path, journal: IO[bytes], process: int) -> None:
    if process != os.getpid():
        return
    with journal, suppress(OSError):  # what cannot be removed now is a leftover for the next run
        _remove(folder)
    _in_use.pop(folder, None)


def _remove_leftover(folder: Path) -> None:
    """Remove a work folder of this user's whose process has ended."""
    with suppress(OSError):
        if folder.is_symlink() or (folder / JOURNAL).is_symlink():
            return  # somebody else's doing
        if not (folder / JOURNAL).exists():
            folder.rmdir()  # which succeeds where a process ended before it had a journal
            return
        with (folder / JOURNAL).open("rb") as journal:
            _lock(journal, wait=False)
            if os.fstat(journal.fileno()).st_uid == os.geteuid():
                _remove(folder)


def _remove(folder: Path) -> None:
    """The journal goes last, so that a removal that is interrupted goes on in the next run."""
    journal = folder / JOURNAL
    entries = [entry.partition(b"/") for entry in (journal.read_bytes().split(END)[:-1] if journal.exists() else [])]
    for number, (identity, _, name) in enumerate(entries, 1):
        file = folder.parent / os.fsdecode(name)
        ours = _identity(file) == identity if identity else number == len(entries) and _was_just_made(file, journal)
        if ours and os.path.basename(name) == name and not _is_named(file, folder):
            with suppress(OSError):
                file.unlink()
    for child in folder.iterdir():
        if child != journal:
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    journal.unlink(missing_ok=True)
    folder.rmdir()


def _was_just_made(file: Path, journal: Path) -> bool:
    """Whether an empty file was made right after the last note, so that there was no time to note that."""
    with suppress(OSError):
        status = file.lstat()
        return not status.st_size and 0 <= status.st_mtime - journal.stat().st_mtime < MOMENT_SECONDS
    return False


def _is_named(file: Path, besides: Path) -> bool:
    """Whether a model may name a file, or the journal of another work folder names it as it is."""
    journals = (each for each in file.parent.glob(f"{PREFIX}{RANDOM_NAME}/{JOURNAL}") if each.parent != besides)
    return any(map(partial(_notes, _entry(file.name, file)), journals)) or may_be_named(file)


def _notes(entry: bytes, journal: Path) -> bool:
    try:
        return entry in journal.read_bytes()
    except FileNotFoundError:  # another run has removed it meanwhile
        return False
    except OSError:
        return True
