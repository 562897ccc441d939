"""Train the project's own small models on scikit-learn's digits and write everything that lies in this folder.

    pip install .[training]
    python models/train.py                    # trains, exports, measures: digits*.onnx, digits.npz, models.json, README table
    python models/train.py --validate         # a fifth of the training images judges instead; writes nothing
    python models/train.py --only digits-mlp  # one network; the other entries of models.json stay

The test images choose nothing: epochs, widths and augmentation were settled with --validate, and the last weights are
the ones exported. One thread and fixed seeds give the same weights again on the same machine and PyTorch release.
"""

import argparse
import hashlib
import json
import math
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from image_training import export
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

FOLDER = Path(__file__).resolve().parent
SEED = 0
TEST_IMAGES = 597
CALIBRATION_IMAGES = 300
SCALE = 255.0
MEAN = 0.3054  # of the training images after division by SCALE
STD = 0.3758
BATCH = 64
ORIGIN = "trained by models/train.py on scikit-learn's digits (UCI Optical Recognition of Handwritten Digits)"
LICENCE = "CC BY 4.0"
TABLE_START = "<!-- table: written by train.py -->"
TABLE_END = "<!-- end of table -->"


class Residual(nn.Module):
    """relu(conv-bn-relu-conv-bn + shortcut); the shortcut is the identity, or a strided 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


class SqueezeExcite(nn.Module):
    """x * hardsigmoid(conv(relu(conv(mean over space))))."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, squeeze-and-excite, project 1x1; added to the input where the shapes agree."""

    def __init__(self, inputs: int, expanded: int, outputs: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.joins = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, expanded, 1, bias=False),
            nn.BatchNorm2d(expanded),
            activation(),
            nn.Conv2d(expanded, expanded, 3, stride, 1, groups=expanded, bias=False),
            nn.BatchNorm2d(expanded),
            activation(),
            SqueezeExcite(expanded, expanded // 4),
            nn.Conv2d(expanded, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.joins else self.body(x)


def resnet() -> nn.Module:
    """Three stages of two residual blocks, 16-32-64 channels, a GlobalAveragePool head."""
    stem = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    widths = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    blocks = [Residual(*width) for width in widths]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mobile() -> nn.Module:
    """Depthwise blocks with squeeze-and-excite, HardSwish then SiLU; Flatten of 32 x 2 x 2 into the classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        InvertedResidual(16, 48, 24, 2, nn.Hardswish),
        InvertedResidual(24, 72, 24, 1, nn.Hardswish),
        InvertedResidual(24, 96, 32, 2, nn.SiLU),
        InvertedResidual(32, 128, 32, 1, nn.SiLU),
        nn.Flatten(),
        nn.Linear(128, 96),
        nn.Hardswish(),
        nn.Linear(96, 10),
    )


def mlp() -> nn.Module:
    """64-256-128-10 with ReLU."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


@dataclass(frozen=True)
class Network:
    """How to build and train one network, and which files it is exported to: (file, BatchNormalization kept, words)."""

    build: Callable[[], nn.Module]
    epochs: int
    learning_rate: float
    files: tuple[tuple[str, bool, str], ...]


NETWORKS = {
    "digits-resnet": Network(
        resnet,
        60,
        4e-3,
        (
            ("digits-resnet-bn.onnx", True, "residual network 16-32-64; BatchNormalization kept"),
            ("digits-resnet.onnx", False, "the same weights, default options: BatchNormalization folded"),
        ),
    ),
    "digits-mobile": Network(
        mobile,
        90,
        4e-3,
        (("digits-mobile.onnx", True, "depthwise, squeeze-and-excite, HardSwish, SiLU, Flatten; BatchNormalization kept"),),
    ),
    "digits-mlp": Network(mlp, 150, 2e-3, (("digits-mlp.onnx", False, "MLP 64-256-128-10, ReLU"),)),
}


@dataclass(frozen=True)
class Digits:
    """images (n, 1, 8, 8) uint8 in 0..255 and labels (n,) uint8."""

    images: np.ndarray
    labels: np.ndarray

    def __getitem__(self, index: np.ndarray) -> "Digits":
        return Digits(self.images[index], self.labels[index])


def split(digits: Digits, held_out: int) -> tuple[Digits, Digits]:
    """(rest, held out), stratified by label."""
    everything = np.arange(len(digits.labels))
    rest, held = train_test_split(everything, test_size=held_out, random_state=SEED, stratify=digits.labels)
    return digits[rest], digits[held]


def load() -> tuple[Digits, Digits]:
    """(training, test); the 0..16 of the data set become round(value * 255 / 16)."""
    source = load_digits()
    images = np.round(source.images[:, None] * (255.0 / 16.0)).astype(np.uint8)
    return split(Digits(images, source.target.astype(np.uint8)), TEST_IMAGES)


def to_inputs(images: np.ndarray) -> np.ndarray:
    """(n, 1, 8, 8) uint8 -> float32 model inputs, (pixel / SCALE - MEAN) / STD."""
    return ((images.astype(np.float32) / np.float32(SCALE) - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of (n, 1, 8, 8) moved by up to a pixel, turned by up to 10 degrees, scaled by up to 10 %; background outside."""
    n = len(x)
    random = torch.rand(n, 4, generator=generator) * 2 - 1
    angle, scale = random[:, 0] * math.radians(10), 1 + 0.1 * random[:, 1]
    shift = random[:, 2:] * (2 / x.shape[-1])
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    affine = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], 1).view(n, 2, 3)
    grid = functional.affine_grid(affine, list(x.shape), align_corners=False)
    black = -MEAN / STD
    return functional.grid_sample(x - black, grid, align_corners=False) + black


def train(network: Network, digits: Digits) -> nn.Module:
    """The network after its last epoch, in eval mode."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = network.build()
    x, y = torch.from_numpy(to_inputs(digits.images)), torch.from_numpy(digits.labels.astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=network.learning_rate, weight_decay=0.02)
    batches = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, network.learning_rate, total_steps=network.epochs * batches)
    for _ in range(network.epochs):
        order = torch.randperm(len(x), generator=generator)[: batches * BATCH].view(batches, BATCH)
        for batch in order:
            loss = functional.cross_entropy(model(augment(x[batch], generator)), y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy_percent(path: Path, digits: Digits) -> float:
    """Share of right answers, by ONNX Runtime on the CPU, in percent to two places."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(["y"], {"x": to_inputs(digits.images)})
    return round(100.0 * float((scores.argmax(1) == digits.labels).mean()), 2)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parameters(model: onnx.ModelProto) -> int:
    """Numbers in the floating-point initializers; a kept BatchNormalization counts four a channel."""
    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in floating)


def describe(path: Path, kept: bool, words: str, network: str, digits: Digits) -> dict[str, object]:
    """The entry of models.json for one exported file."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    options = "training=PRESERVE, do_constant_folding=False" if kept else "default options"
    return {
        "file": path.name,
        "what": words,
        "origin": ORIGIN,
        "made": f"python models/train.py --only {network}; PyTorch {torch.__version__}, TorchScript exporter, {options}",
        "licence": LICENCE,
        "sha256": sha256(path),
        "size_bytes": path.stat().st_size,
        "parameters": parameters(model),
        "opset": model.opset_import[0].version,
        "ir_version": model.ir_version,
        "input": {"name": "x", "shape": ["batch", 1, 8, 8], "scale": SCALE, "mean": [MEAN], "std": [STD]},
        "output": {"name": "y", "shape": ["batch", 10]},
        "accuracy_percent": accuracy_percent(path, digits),
    }


def write_data(path: Path, training: Digits, test: Digits) -> dict[str, object]:
    """Write digits.npz, the same bytes every time; returns its entry of models.json."""
    _, calibration = split(training, CALIBRATION_IMAGES)
    arrays = {"images": test.images, "labels": test.labels, "calibration": calibration.images}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            buffer = BytesIO()
            np.save(buffer, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED)
    return {
        "file": path.name,
        "origin": "scikit-learn's digits (UCI Optical Recognition of Handwritten Digits), pixel = round(value * 255 / 16)",
        "licence": LICENCE,
        "sha256": sha256(path),
        "test_images": len(test.labels),
        "calibration_images": CALIBRATION_IMAGES,
    }


def write_table(readme: Path, facts: dict) -> None:
    """Put the table of models between the two marks of README.md."""
    lines = ["| file | what | parameters | bytes | accuracy | sha256 |", "|---|---|---:|---:|---:|---|"]
    for entry in facts["models"]:
        numbers = f"{entry['parameters']:,} | {entry['size_bytes']:,} | {entry['accuracy_percent']:.2f} %"
        lines.append(f"| `{entry['file']}` | {entry['what']} | {numbers} | `{entry['sha256']}` |")
    data = facts["data"]
    words = f"{data['test_images']} test images with labels, {data['calibration_images']} calibration images without"
    lines.append(f"| `{data['file']}` | {words} | | | | `{data['sha256']}` |")
    before, rest = readme.read_text(encoding="utf-8").split(TABLE_START)
    _, after = rest.split(TABLE_END)
    readme.write_text("\n".join([before + TABLE_START, *lines, TABLE_END + after]), encoding="utf-8")


def make(names: list[str], training: Digits, test: Digits) -> None:
    """Train and export the named networks, then write digits.npz, models.json and the table."""
    index = FOLDER / "models.json"
    known = json.loads(index.read_text(encoding="utf-8"))["models"] if index.exists() else []
    entries = {entry["file"]: entry for entry in known}
    for name in names:
        model = train(NETWORKS[name], training)
        for file, kept, words in NETWORKS[name].files:
            export(model, FOLDER / file, torch.zeros(1, 1, 8, 8), kept)
            entries[file] = describe(FOLDER / file, kept, words, name, test)
            print(f"{file}: {entries[file]['accuracy_percent']:.2f} % of {len(test.labels)} test images")
    order = [file for network in NETWORKS.values() for file, _, _ in network.files]
    data = write_data(FOLDER / "digits.npz", training, test)
    facts = {"data": data, "models": [entries[file] for file in order if file in entries]}
    index.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    write_table(FOLDER / "README.md", facts)


def validate(names: list[str], training: Digits) -> None:
    """Train on four fifths of the training images and print the accuracy on the rest."""
    rest, held_out = split(training, len(training.labels) // 5)
    for name in names:
        begin = time.perf_counter()
        model = train(NETWORKS[name], rest)
        with torch.no_grad():
            right = model(torch.from_numpy(to_inputs(held_out.images))).argmax(1).numpy() == held_out.labels
        print(f"{name}: {100 * right.mean():.2f} % of {len(right)} validation images, {time.perf_counter() - begin:.0f} s")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NETWORKS, action="append", help="train this network only; repeatable")
    parser.add_argument("--validate", action="store_true", help="judge on a part of the training images; write nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    training, test = load()
    names = options.only or list(NETWORKS)
    if options.validate:
        validate(names, training)
    else:
        make(names, training, test)


if __name__ == "__main__":
    main(sys.argv[1:])
