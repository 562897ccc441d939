"""Train the networks of the neuron merging paper and export them where `benchmarks/compare.py` finds them (models/paper).

    pip install .[training]
    python models/train_paper.py wrn-40-4 --dataset cifar100 --data FOLDER    # says how long it takes before it begins
    python models/train_paper.py resnet-56 --data FOLDER --fold --epochs 60 --device cpu --threads 8 --output FOLDER
    python models/train_paper.py vgg-16 --data FOLDER --estimate              # says how long it would take, and ends

FOLDER of --data holds the data set as downloaded, packed or unpacked: CIFAR-10 or CIFAR-100 (for Python, or binary), the four
files of FashionMNIST for lenet-300-100, or cifar10_jpeg_train.npz and cifar10_jpeg_test.npz. Writes NETWORK-DATASET.onnx with
BatchNormalization kept (with --fold also NETWORK-DATASET-folded.onnx, the same weights), and a .npz file beside each: `images`
and `labels` of test images, `calibration` images of the training side without labels, `mean` and `std` of pixel / 255. Test
images choose nothing: the last weights are the ones exported.
"""

import argparse
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from image_data import DATASETS, DataError, DataSet, Images, load
from image_training import Network, check, export, seconds_of_training, sizes, trained, zero_input
from torch import Tensor, nn
from torch.nn import functional
from train_cifar import IMAGES, classifier, convolve

FOLDER = Path(__file__).resolve().parent / "paper"
TESTED, CALIBRATION = 2000, 1000
"""Test images that go with a network, of which a benchmark runs many versions (standard error .7 points at 90 %), and calibration
images."""
VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # widths; 0: pooling


def lenet(classes: int) -> nn.Module:
    """784-300-100, ReLU."""
    layers = {"flatten": nn.Flatten(), "fc1": nn.Linear(784, 300), "relu1": nn.ReLU(), "fc2": nn.Linear(300, 100)}
    return nn.Sequential(OrderedDict({**layers, "relu2": nn.ReLU(), "classifier": nn.Linear(100, classes)}))


def vgg16(classes: int) -> nn.Module:
    """13 convolutions with BatchNormalization, five poolings, one linear layer."""
    features: dict[str, nn.Module] = {}
    inputs = 3
    for number, width in enumerate(VGG):
        features[f"{'block' if width else 'pool'}{number}"] = (
            convolve(inputs, width, 3, act=nn.ReLU()) if width else nn.MaxPool2d(2)
        )
        inputs = width or inputs
    return classifier(features, inputs, classes)


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))); where channels grow, x is every second pixel with zeros around (option A)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.added = 2 if inputs != outputs else 1, (outputs - inputs) // 2
        self.inside = convolve(inputs, outputs, 3, self.stride, act=nn.ReLU())
        self.outside = convolve(outputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.outside(self.inside(x))
        if self.added:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return functional.relu(x + y)


def resnet56(classes: int) -> nn.Module:
    """Three stages of nine blocks: 16, 32 and 64 channels."""
    features: dict[str, nn.Module] = {"stem": convolve(3, 16, 3, act=nn.ReLU())}
    inputs = 16
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(9):
            features[f"block{stage}_{block}"] = Block(inputs, width)
            inputs = width
    return classifier(features, inputs, classes)


class WideBlock(nn.Module):
    """x + conv(relu(norm(conv(z)))) with z = relu(norm(x)); where channels or size change, conv1x1(z) + ..."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.inside = convolve(inputs, outputs, 3, stride, act=nn.ReLU())
        self.outside = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        z = functional.relu(self.norm(x))
        return self.outside(self.inside(z)) + (x if self.shortcut is None else self.shortcut(z))


def wide_resnet(classes: int) -> nn.Module:
    """WideResNet-40-4: three stages of six blocks, 64, 128 and 256 channels, BatchNormalization before each convolution."""
    features: dict[str, nn.Module] = {"stem": nn.Conv2d(3, 16, 3, 1, 1, bias=False)}
    inputs = 16
    for stage, width in enumerate((64, 128, 256), 1):
        for block in range(6):
            features[f"block{stage}_{block}"] = WideBlock(inputs, width, 2 if stage > 1 and block == 0 else 1)
            inputs = width
    return classifier({**features, "norm": nn.BatchNorm2d(inputs), "relu": nn.ReLU()}, inputs, classes)


def momentum(rate: float, decay: float) -> Callable[..., torch.optim.Optimizer]:
    """Stochastic gradient descent with Nesterov momentum."""
    return partial(torch.optim.SGD, lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)


NETWORKS = {
    "lenet-300-100": Network(lenet, 30, partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05), 128, "784-300-100, ReLU"),
    "vgg-16": Network(vgg16, 60, momentum(0.05, 5e-4), 128, "13 convolutions"),
    "resnet-56": Network(resnet56, 100, momentum(0.2, 5e-4), 256, "27 residual blocks, shortcuts of option A"),
    "wrn-40-4": Network(wide_resnet, 60, momentum(0.1, 5e-4), 128, "18 wide residual blocks, BatchNormalization first"),
}
"""The rates of the papers (a larger batch, a larger rate), in one cycle in the place of steps, which needs fewer epochs."""


def make(name: str, training: Images, test: Images, options: argparse.Namespace) -> None:
    """Train, export and check one network."""
    data = DATASETS[options.dataset]
    network, device = NETWORKS[name], options.device
    classes = data.classes
    network = Network(partial(network.build, classes), network.epochs, network.optimizer, network.batch, network.words)
    epochs = options.epochs or network.epochs
    seconds = seconds_of_training(network, data, training, epochs, device)
    where = f"the CPU (threads: {options.threads})" if device == "cpu" else torch.cuda.get_device_name()
    print(f"{name} on {options.dataset}, epochs: {epochs}, on {where}: about {duration(seconds)}", flush=True)
    if options.estimate:
        return
    began = time.perf_counter()
    for epoch, (newest, loss) in enumerate(trained(network, data, training, epochs, device), 1):
        model, passed = newest, time.perf_counter() - began
        left = duration(passed / epoch * (epochs - epoch))
        print(f"epoch {epoch} of {epochs}, loss {loss:.3f}, {duration(passed)} passed, {left} left", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    for ending in ("", "-folded") if options.fold else ("",):
        path = options.output / f"{name}-{options.dataset}{ending}.onnx"
        export(model, path, zero_input(data), keep_batch_normalization=not ending)
        right = 100.0 * float((check(path, model, data, test.images).argmax(1) == test.labels).mean())
        write_images(path.with_suffix(".npz"), data, training, test)
        size = "{:,} parameters, {:,} MACs".format(*sizes(model, data))
        print(f"{path}: {network.words}; {size}, {right:.2f} % of {len(test.labels):,} test images right", flush=True)


def write_images(path: Path, data: DataSet, training: Images, test: Images) -> None:
    """The images that go with a network."""
    drawn = np.random.default_rng(0).permutation(len(training.images))[:CALIBRATION]
    pixels = {"mean": np.array(data.mean, np.float32), "std": np.array(data.std, np.float32)}
    judged = {"images": test.images[:TESTED], "labels": test.labels[:TESTED]}
    np.savez_compressed(path, **judged, calibration=training.images[drawn], **pixels)


def duration(seconds: float) -> str:
    """In words."""
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--dataset", choices=DATASETS, help="default: cifar10, for lenet-300-100 fashion-mnist")
    parser.add_argument("--data", type=Path, default=IMAGES, help="folder of the images")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the exported files")
    parser.add_argument("--epochs", type=int, help="instead of the network's own number")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a CPU")
    parser.add_argument("--fold", action="store_true", help="export also with BatchNormalization folded")
    parser.add_argument("--estimate", action="store_true", help="say how long training would take, and end")
    options = parser.parse_args(arguments)
    is_lenet = options.network == "lenet-300-100"
    options.dataset = options.dataset or ("fashion-mnist" if is_lenet else "cifar10")
    if is_lenet != (options.dataset == "fashion-mnist"):
        parser.error(f"{options.network} reads images of another size than those of {options.dataset}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU: --device cpu")
    if options.epochs is not None and options.epochs < 1:
        parser.error("--epochs: at least 1")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.backends.cudnn.benchmark = True
    try:
        training, test = load(options.dataset, options.data)
    except DataError as error:
        parser.error(str(error))
    make(options.network, training, test, options)


if __name__ == "__main__":
    main(sys.argv[1:])
