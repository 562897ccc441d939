"""Accuracy on real labelled images for the networks beside the project (../shared), method by method; prints one row a run.

    python benchmarks/accuracy.py [merge] [no-data] [data]

Without arguments all of it, about half an hour on two cores. Skips, saying so, where ../shared is absent. The test images choose
nothing: calibration images are others, and synthetic inputs need none.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxmerge import compress, inspect
from onnxmerge.execution.sessions import open_session

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
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
    def decided(self) -> tuple[int, str]:
        """How many decisions the accuracy counts, and what they are about."""
        return len(self.inputs("test")), "test images"

    def inputs(self, part: str, count: int | None = None) -> np.ndarray:
        """Inputs of the `test` or `calibration` part."""
        raw = np.load(SHARED / "data" / f"{self.images}_{part}.npz")["images"][:count].astype(np.float32) / 255
        raw = raw.reshape(-1, 1, 28, 28) if raw.shape[-1] == 28 else raw.transpose(0, 3, 1, 2) if raw.shape[-1] == 3 else raw
        mean, std = (np.array(self.pixels[name], np.float32).reshape(1, -1, 1, 1) for name in ("mean", "std"))
        return np.ascontiguousarray((raw - mean) / std)

    def accuracy(self, model: Path) -> float:
        """Percent right on the test images."""
        session = open_session(model, optimise=True)
        inputs, labels = self.inputs("test"), np.load(SHARED / "data" / f"{self.images}_test.npz")["labels"]
        batches = ({session.inputs[0].name: inputs[i : i + 200]} for i in range(0, len(inputs), 200))
        scores = [next(iter(session.run(feeds).values())) for feeds in batches]
        return 100.0 * float((np.concatenate(scores).argmax(1) == labels).mean())


class Text(Network):
    """A language model beside the project; of each window the last token is what is predicted from the others."""

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

    def _windows(self, part: str) -> np.ndarray:
        with np.load(ROOT / "models" / f"{self.images}.npz", allow_pickle=False) as archive:
            return np.asarray(archive[part], np.int64)


LENET = Network("lenet-300-100", "fashion_mnist", {"mean": (0.5,), "std": (0.5,)})
RESNET = Network("resnet56-cifar10-bn", "cifar10", CIFAR)
FOLDED = Network("resnet56-cifar10", "cifar10", CIFAR)
VGG = Network("vgg16-cifar10-bn", "cifar10_jpeg", CIFAR)
TEXT = Text("text-llama", "text", {})


@dataclass(frozen=True)
class Run:
    """One compression; calibration: how many unlabelled images, 0 for none; widths: channels that the first groups keep."""

    network: Network
    what: str
    options: dict[str, Any]
    calibration: int = 0
    widths: tuple[int, ...] = field(default=())


def merge_runs() -> Iterator[Run]:
    """The published method and its baseline."""
    for ratio in (0.5, 0.6, 0.7, 0.8):
        for criterion in ("l1-norm", "l2-norm", "l2-gm"):
            for method in ("prune", "merge"):
                options = {"ratio": ratio, "criterion": criterion, "method": method, "threshold": 0.45}
                yield Run(LENET, f"{method} {criterion} {ratio:.0%}", options)
    for network in (RESNET, FOLDED):
        for ratio in (0.3, 0.5):
            for criterion in ("l1-norm", "l2-norm"):
                for method in ("prune", "merge"):
                    options = {"ratio": ratio, "criterion": criterion, "method": method, "scope": "chains"}
                    yield Run(network, f"{method} {criterion} chains {ratio:.0%}", options)


def no_data_runs() -> Iterator[Run]:
    """The default method without any data."""
    for ratio in (0.3, 0.5, 0.7):
        yield Run(RESNET, f"auto chains {ratio:.0%}", {"ratio": ratio, "scope": "chains"})
    yield Run(FOLDED, "auto chains 50%", {"ratio": 0.5, "scope": "chains"})
    yield Run(RESNET, "auto all 30%", {"ratio": 0.3})
    yield Run(VGG, "auto, the paper's widths", {}, widths=PAPER_WIDTHS)
    for ratio in (0.5, 0.7):
        yield Run(VGG, f"auto convolutions {ratio:.0%}", {"ratio": ratio, "exclude": ("/classifier*",)})
    for ratio in (0.5, 0.6, 0.7, 0.8):
        yield Run(LENET, f"auto {ratio:.0%}", {"ratio": ratio})


def data_runs() -> Iterator[Run]:
    """The default method with a few unlabelled images."""
    for network in (RESNET, FOLDED):
        for ratio in (0.5, 0.7):
            yield Run(network, f"auto chains {ratio:.0%}", {"ratio": ratio, "scope": "chains"}, calibration=500)
    yield Run(RESNET, "auto all 30%", {"ratio": 0.3}, calibration=500)
    for ratio in (0.5, 0.7):
        yield Run(VGG, f"auto convolutions {ratio:.0%}", {"ratio": ratio, "exclude": ("/classifier*",)}, calibration=500)
    yield Run(LENET, "auto 80%", {"ratio": 0.8}, calibration=1000)


RUNS = {"merge": merge_runs, "no-data": no_data_runs, "data": data_runs}


def perform(run: Run, folder: Path) -> str:
    """One row: model, what, calibration images, parameters left, accuracy, seconds."""
    options, target = {"round_to": 1, **run.options}, folder / "out.onnx"
    if run.calibration:
        options["calibration"] = folder / f"{run.network.images}.npy"
        np.save(options["calibration"], run.network.inputs("calibration", run.calibration))
    if run.widths:
        names = [group.name for group in inspect(run.network.path).groups]
        del options["round_to"]  # a plan says how many stay
        options["plan"] = dict(zip(names, run.widths, strict=False))
    started = time.perf_counter()
    result = compress(run.network.path, target, verify=False, **options)
    seconds = time.perf_counter() - started
    left = result.after.parameters / result.before.parameters
    accuracy = run.network.accuracy(target)
    return f"{run.network.model:20} {run.what:32} {run.calibration:5} images {left:6.1%} left {accuracy:6.2f} % {seconds:6.1f} s"


def main() -> None:
    """Print the rows of the parts named on the command line."""
    if not SHARED.is_dir():
        print(f"skipped: {SHARED} with the real models and images is absent")
        return
    with tempfile.TemporaryDirectory() as name:
        for network in (LENET, RESNET, FOLDED, VGG):
            print(f"{network.model:20} {'reference':32} {network.accuracy(network.path):34.2f} %", flush=True)
        for part in sys.argv[1:] or RUNS:
            for run in RUNS[part]():
                print(perform(run, Path(name)), flush=True)


if __name__ == "__main__":
    main()
