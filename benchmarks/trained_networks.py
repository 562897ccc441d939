"""Trained networks with the inputs and labels that judge them: beside the project (../shared), of models/, and those that
`models/train_paper.py` trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxmerge.execution.sessions import open_session

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
TRAINED = ROOT / "models" / "paper"
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
PAPER_WIDTHS = (32, 64, 128, 128, *(256,) * 9)


@dataclass(frozen=True)
class Network:
    """A model, its images, and how pixels become its inputs."""

    model: str
    images: str
    pixels: dict[str, Any]

    @property
    def path(self) -> Path:
        return SHARED / "models" / f"{self.model}.onnx"

    @property
    def has_images(self) -> bool:
        """Whether the inputs that judge it are at hand."""
        return self._file("test").exists()

    @property
    def decided(self) -> tuple[int, str]:
        """How many decisions the accuracy counts, and what they are about."""
        return len(self.inputs("test")), "test images"

    def inputs(self, part: str, count: int | None = None) -> np.ndarray:
        """Inputs of the `test` or `calibration` part."""
        raw = self._stored(part, "images")[:count].astype(np.float32) / 255
        raw = raw.reshape(-1, 1, 28, 28) if raw.shape[-1] == 28 else raw.transpose(0, 3, 1, 2) if raw.shape[-1] == 3 else raw
        mean, std = (self._scale(name).reshape(1, -1, 1, 1) for name in ("mean", "std"))
        return np.ascontiguousarray((raw - mean) / std)

    def labels(self) -> np.ndarray:
        """Of the test images."""
        return self._stored("test", "labels")

    def accuracy(self, model: Path) -> float:
        """Percent right on the test images."""
        session = open_session(model, optimise=True)
        inputs = self.inputs("test")
        batches = ({session.inputs[0].name: inputs[i : i + 200]} for i in range(0, len(inputs), 200))
        scores = [next(iter(session.run(feeds).values())) for feeds in batches]
        return 100.0 * float((np.concatenate(scores).argmax(1) == self.labels()).mean())

    def _scale(self, name: str) -> np.ndarray:
        return np.array(self.pixels[name], np.float32)

    def _file(self, part: str) -> Path:
        return SHARED / "data" / f"{self.images}_{part}.npz"

    def _stored(self, part: str, array: str) -> np.ndarray:
        with np.load(self._file(part), allow_pickle=False) as archive:
            return np.asarray(archive[array])


class Trained(Network):
    """A network that `models/train_paper.py` trains; its images lie beside it."""

    @property
    def path(self) -> Path:
        return TRAINED / f"{self.model}.onnx"

    @property
    def command(self) -> str:
        """What makes it, in the root of the project."""
        network, dataset = self.model.removesuffix("-folded").removesuffix(f"-{self.images}"), self.images
        folded = " --fold" * self.model.endswith("-folded")
        return f"python models/train_paper.py {network} --dataset {dataset}{folded} --data FOLDER"

    def _scale(self, name: str) -> np.ndarray:
        return self._stored("test", name)

    def _file(self, part: str) -> Path:
        return self.path.with_suffix(".npz")

    def _stored(self, part: str, array: str) -> np.ndarray:
        return super()._stored(part, "calibration" if part == "calibration" else array)


class Text(Network):
    """A language model of the project; of each window the last token is what is predicted from the others."""

    @property
    def path(self) -> Path:
        return ROOT / "models" / f"{self.model}.onnx"

    @property
    def decided(self) -> tuple[int, str]:
        """All positions of the windows."""
        return self.inputs("test").size, "next tokens"

    def inputs(self, part: str, count: int | None = None) -> np.ndarray:
        """Tokens (n, length) of the `test` or `calibration` part."""
        return self._windows(part)[:count, :-1]

    def accuracy(self, model: Path) -> float:
        """Percent of the next tokens right, all positions of the test windows."""
        session, windows = open_session(model, optimise=True), self._windows("test")
        calls = (windows[at : at + 50] for at in range(0, len(windows), 50))
        hits = [next(iter(session.run({"tokens": call[:, :-1]}).values())).argmax(-1) == call[:, 1:] for call in calls]
        return 100.0 * float(np.concatenate(hits).mean())

    def _file(self, part: str) -> Path:
        return ROOT / "models" / f"{self.images}.npz"

    def _windows(self, part: str) -> np.ndarray:
        return self._stored(part, part).astype(np.int64)


def trained(network: str, dataset: str, folded: bool = False) -> Trained:
    """A network as `models/train_paper.py` names it."""
    return Trained(f"{network}-{dataset}{'-folded' * folded}", dataset, {})


LENET = Network("lenet-300-100", "fashion_mnist", {"mean": (0.5,), "std": (0.5,)})
RESNET = Network("resnet56-cifar10-bn", "cifar10", CIFAR)
FOLDED = Network("resnet56-cifar10", "cifar10", CIFAR)
VGG = Network("vgg16-cifar10-bn", "cifar10_jpeg", CIFAR)
TEXT = Text("text-llama", "text", {})
