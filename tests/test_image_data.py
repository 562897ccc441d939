"""The data sets that networks are trained on, read as they are downloaded: every form gives the same images."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import image_data
import numpy as np
import pytest
from PIL import Image

DRAWN = np.random.default_rng(0)
PIXELS = DRAWN.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(12) % 10
PARTS = [*np.split(np.arange(10), 5), np.arange(10, 12)]  # five batches to train on, one of test images


def pickled(part: np.ndarray, name: bytes) -> bytes:
    return pickle.dumps({b"data": PIXELS[part].reshape(-1, 3072), name: LABELS[part].tolist()}, protocol=4)


def records(part: np.ndarray, before: int) -> bytes:
    """`before` more bytes, then the class, then the pixels."""
    return b"".join(bytes([7] * before + [int(LABELS[at])]) + PIXELS[at].tobytes() for at in part)


def jpeg(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()


BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
ALL = [np.arange(10), np.arange(10, 12)]
FORMS = {
    "CIFAR-10 for Python": (
        "cifar10",
        "cifar-10-batches-py",
        {n: pickled(p, b"labels") for n, p in zip(BATCHES, PARTS, strict=True)},
    ),
    "CIFAR-10, binary": (
        "cifar10",
        "cifar-10-batches-bin",
        {f"{n}.bin": records(p, 0) for n, p in zip(BATCHES, PARTS, strict=True)},
    ),
    "CIFAR-100 for Python": (
        "cifar100",
        "cifar-100-python",
        {n: pickled(p, b"fine_labels") for n, p in zip(("train", "test"), ALL, strict=True)},
    ),
    "CIFAR-100, binary": (
        "cifar100",
        "cifar-100-binary",
        {n: records(p, 1) for n, p in zip(("train.bin", "test.bin"), ALL, strict=True)},
    ),
}
ARCHIVES = {"cifar-10-batches-py": "cifar-10-python", "cifar-10-batches-bin": "cifar-10-binary"}


def pack(folder: Path, inner: str, files: dict[str, bytes]) -> None:
    with tarfile.open(folder / f"{ARCHIVES.get(inner, inner)}.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{inner}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def unpack(folder: Path, inner: str, files: dict[str, bytes]) -> None:
    (folder / inner).mkdir(parents=True)
    for name, content in files.items():
        (folder / inner / name).write_bytes(content)


@pytest.mark.parametrize("how", ["packed", "unpacked", "inside"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(tmp_path, form, how):
    name, inner, files = FORMS[form]
    (pack if how == "packed" else unpack)(tmp_path, inner, files)
    training, test = image_data.load(name, tmp_path / inner if how == "inside" else tmp_path)
    for found, part in ((training, ALL[0]), (test, ALL[1])):
        np.testing.assert_array_equal(found.images, PIXELS[part])
        np.testing.assert_array_equal(found.labels, LABELS[part])


def test_the_decoded_images(tmp_path):
    files = [jpeg(PIXELS[at]) for at in ALL[0]]
    offsets, content = np.cumsum([0, *map(len, files)]), np.frombuffer(b"".join(files), np.uint8)
    np.savez(tmp_path / "cifar10_jpeg_train.npz", jpeg=content, offsets=offsets, labels=LABELS[ALL[0]])
    np.savez(tmp_path / "cifar10_jpeg_test.npz", images=PIXELS[ALL[1]], labels=LABELS[ALL[1]])
    training, test = image_data.load("cifar10", tmp_path)
    np.testing.assert_array_equal(training.images, PIXELS[ALL[0]])  # PNG loses nothing
    np.testing.assert_array_equal(test.labels, LABELS[ALL[1]])


def fashion_mnist(folder: Path, packed: bool, count: int = 5) -> np.ndarray:
    images = DRAWN.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", np.arange(count, dtype=np.uint8) % 10)):
            content = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()
            path = folder / f"{part}-{kind}-ubyte{'.gz' * packed}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return images


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_fashion_mnist(tmp_path, packed):
    images = fashion_mnist(tmp_path, packed)
    training, _ = image_data.load("fashion-mnist", tmp_path)
    np.testing.assert_array_equal(training.images, images[:, None])
    np.testing.assert_array_equal(training.labels, np.arange(5))


class Runs:
    """What a hostile pickle would run."""

    def __reduce__(self):
        return print, ("ran",)


DAMAGED = {
    "a pickle that runs something": pickle.dumps({b"data": Runs(), b"fine_labels": []}),
    "a pickle that ends early": pickled(ALL[0], b"fine_labels")[:-9],
    "no pickle": b"\x00\x01\x02",
    "a pickle of something else": pickle.dumps([1, 2]),
    "more labels than images": pickle.dumps({b"data": PIXELS[:1].reshape(1, -1), b"fine_labels": [1, 2]}, protocol=4),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_refused_and_run_nothing(tmp_path, capsys, what):
    unpack(tmp_path, "cifar-100-python", {"train": DAMAGED[what], "test": pickled(ALL[1], b"fine_labels")})
    with pytest.raises(image_data.DataError, match=r"cifar100 are damaged .*download them again"):
        image_data.load("cifar100", tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", image_data.DATASETS)
def test_an_empty_folder_is_told_what_it_needs(tmp_path, name):
    with pytest.raises(image_data.DataError, match=r"holds no images of .*: name a folder \(--data\) with"):
        image_data.load(name, tmp_path)


def test_a_packed_file_that_ends_early(tmp_path):
    fashion_mnist(tmp_path, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(image_data.DataError, match="damaged"):
        image_data.load("fashion-mnist", tmp_path)
