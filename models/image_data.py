"""The image data sets as they are downloaded, and how their pixels become inputs; without PyTorch."""

import gzip
import io
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

RECORD = 3 * 32 * 32  # bytes of the pixels of a CIFAR image: red, green, blue, each row by row
PICKLED = {  # all that the pickles of CIFAR name: arrays of bytes
    ("numpy.core.multiarray", "_reconstruct"): np.array(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
DAMAGED = (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


class DataError(Exception):
    """The files of a data set are absent or damaged; says which, and what to do."""


class Images(NamedTuple):
    """images (n, channels, height, width) uint8 and labels (n,) int64."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class DataSet:
    """A data set of images.

    Attributes
    ----------
    mean, std : tuple of float
        Of pixel / 255, by channel; what a network reads is (pixel / 255 - mean) / std.
    classes, extent : int
        How many classes there are, and pixels along one edge.
    is_augmented : bool
        Whether training images are mirrored and moved at random.
    readers : tuple
        Each takes a folder and gives (training, test), or None where its files are not there.
    files : str
        What a folder may hold, for a message.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    extent: int
    is_augmented: bool
    readers: tuple[Callable[[Path], tuple[Images, Images] | None], ...]
    files: str


def load(name: str, folder: Path) -> tuple[Images, Images]:
    """
    The training and the test images of a data set.

    Parameters
    ----------
    name : str
        A key of `DATASETS`.
    folder : Path
        Where its files are, as downloaded or unpacked.

    Returns
    -------
    tuple of Images
        (training, test).

    Raises
    ------
    DataError
        Where there are none, or they are damaged.
    """
    for reader in DATASETS[name].readers:
        try:
            found = reader(folder)
        except DAMAGED as error:
            raise DataError(f"{folder}: the files of {name} are damaged ({error}): download them again") from error
        if found is not None:
            return found
    raise DataError(f"{folder} holds no images of {name}: name a folder (--data) with {DATASETS[name].files}")


def _decoded_jpeg(folder: Path) -> tuple[Images, Images] | None:
    """`jpeg`: the training images one after the other, `offsets` (n + 1,), `labels`; test images as they are."""
    training, test = (folder / f"cifar10_jpeg_{part}.npz" for part in ("train", "test"))
    if not (training.is_file() and test.is_file()):
        return None
    with np.load(training, allow_pickle=False) as archive:
        files, offsets, labels = archive["jpeg"].tobytes(), archive["offsets"], archive["labels"]
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(files[begin:end])).convert("RGB")) for begin, end in pairwise(offsets)])
    with np.load(test, allow_pickle=False) as archive:
        judged = Images(archive["images"], archive["labels"].astype(np.int64))
    return Images(np.ascontiguousarray(decoded.transpose(0, 3, 1, 2)), labels.astype(np.int64)), judged


def _contents(folder: Path, inner: str, archive: str, names: tuple[str, ...]) -> Iterator[bytes] | None:
    """The files `names` of the folder, of its folder `inner`, or of the archive in it, which is not unpacked."""
    for place in (folder / inner, folder):
        if all((place / name).is_file() for name in names):
            return ((place / name).read_bytes() for name in names)
    return _archived(folder / archive, inner, names) if (folder / archive).is_file() else None


def _archived(path: Path, inner: str, names: tuple[str, ...]) -> Iterator[bytes]:
    with tarfile.open(path) as archive:
        for name in names:
            member = archive.extractfile(f"{inner}/{name}")
            if member is None:
                raise ValueError(f"{name} of {path.name} is no file")
            yield member.read()


class _ArraysOnly(pickle.Unpickler):
    """A pickle may run any function that it names; this one runs none but those that make arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) not in PICKLED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no file of CIFAR does")
        return PICKLED[module.replace("numpy._core", "numpy.core"), name]


def _unpickled(content: bytes, labels: bytes) -> Images:
    try:
        stored = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, AttributeError, ImportError, IndexError, TypeError) as error:  # all that a damaged one gives
        raise ValueError(str(error)) from error
    if not isinstance(stored, dict):
        raise ValueError("a pickle holds no images")
    pixels = np.asarray(stored[b"data"], np.uint8).reshape(-1, 3, 32, 32)
    return _checked(pixels, np.asarray(stored[labels], np.int64))


def _unpacked(content: bytes, labels: int) -> Images:
    """Records of `labels` bytes, of which the last is the class, and the pixels."""
    records = np.frombuffer(content, np.uint8).reshape(-1, labels + RECORD)
    return _checked(records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1].astype(np.int64))


def _checked(pixels: np.ndarray, labels: np.ndarray) -> Images:
    if len(pixels) != len(labels) or not len(labels):
        raise ValueError(f"{len(pixels)} images and {len(labels)} labels")
    return Images(np.array(pixels), labels)  # a copy that may be written to, which PyTorch asks for


def _cifar(
    inner: str, archive: str, training: tuple[str, ...], test: str, read: Callable[[bytes], Images]
) -> Callable[[Path], tuple[Images, Images] | None]:
    """Reads batches of training images and one of test images."""

    def reader(folder: Path) -> tuple[Images, Images] | None:
        contents = _contents(folder, inner, archive, (*training, test))
        if contents is None:
            return None
        *parts, judged = map(read, contents)
        return Images(*(np.concatenate(each) for each in zip(*parts, strict=True))), judged

    return reader


def _fashion_mnist(folder: Path) -> tuple[Images, Images] | None:
    parts = []
    for part in ("train", "t10k"):
        found = [_file(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
        if None in found:
            return None
        images, labels = (_indexed(path) for path in found if path is not None)
        parts.append(_checked(images[:, None], labels.astype(np.int64)))
    return parts[0], parts[1]


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _indexed(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format: 0, 0, 8 (bytes), number of axes, sizes as big-endian int32, values."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is no IDX file of bytes")
    shape = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_CIFAR10 = (
    _cifar("cifar-10-batches-py", "cifar-10-python.tar.gz", _BATCHES, "test_batch", lambda each: _unpickled(each, b"labels")),
    _cifar(
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        tuple(f"{name}.bin" for name in _BATCHES),
        "test_batch.bin",
        lambda each: _unpacked(each, 1),
    ),
    _decoded_jpeg,
)
_CIFAR100 = (
    _cifar("cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", lambda each: _unpickled(each, b"fine_labels")),
    _cifar("cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin",), "test.bin", lambda each: _unpacked(each, 2)),
)
DATASETS = {
    "cifar10": DataSet(
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
        10,
        32,
        True,
        _CIFAR10,
        "cifar-10-python.tar.gz, cifar-10-binary.tar.gz, what one of them holds, or cifar10_jpeg_train.npz and _test.npz",
    ),
    "cifar100": DataSet(
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        100,
        32,
        True,
        _CIFAR100,
        "cifar-100-python.tar.gz, cifar-100-binary.tar.gz, or what one of them holds",
    ),
    "fashion-mnist": DataSet(
        (0.5,), (0.5,), 10, 28, True, (_fashion_mnist,), "train-images-idx3-ubyte.gz and the three files that belong to it"
    ),
}
"""By name. The means and deviations of CIFAR are those of its training images; FashionMNIST has those of the paper's code."""
