"""Train four small image classifiers of different kinds on CIFAR-10 and export them to this folder.

    pip install .[training]
    python models/train_cifar.py all    # trains, exports, measures; prints the rows of the README table
    python models/train_cifar.py vit --epochs 2 --threads 4 --data DIR --output DIR --checkpoints

DIR of --data holds CIFAR-10 as downloaded, or cifar10_jpeg_train.npz (`jpeg`: all files one after the other, `offsets`, `labels`)
and cifar10_jpeg_test.npz (`images` uint8 (n, 3, 32, 32), `labels`). The test images choose nothing: the last weights are the
ones exported. Fixed seeds give the same weights again on the same machine, PyTorch release and number of threads.
"""

import argparse
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from image_data import DATASETS, DataError, Images, load
from image_training import Network, check, export, sizes, trained, zero_input
from torch import Tensor, nn
from torch.nn import functional

FOLDER = Path(__file__).resolve().parent
IMAGES = FOLDER.parents[1] / "shared" / "data"
DATA = DATASETS["cifar10"]


def convolve(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: nn.Module | None = None) -> nn.Module:
    """Convolution, BatchNormalization and, where given, the activation; the names become those of the ONNX nodes."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers = {"conv": convolution, "norm": nn.BatchNorm2d(outputs)}
    return nn.Sequential(OrderedDict(layers if act is None else {**layers, "act": act}))


def classifier(features: dict[str, nn.Module], channels: int, classes: int = 10) -> nn.Sequential:
    """The features, mean over space, class scores."""
    head = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "classifier": nn.Linear(channels, classes)}
    return nn.Sequential(OrderedDict({**features, **head}))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, scale by sigmoid(conv(silu(conv(mean)))) where asked, project 1x1; added to x where it fits."""

    def __init__(self, inputs: int, expanded: int, outputs: int, stride: int, kernel: int, act: nn.Module, excite: bool) -> None:
        super().__init__()
        self.joins = stride == 1 and inputs == outputs
        self.expand = convolve(inputs, expanded, 1, act=act)
        self.depthwise = convolve(expanded, expanded, kernel, stride, expanded, act)
        self.squeeze = nn.Conv2d(expanded, inputs // 4, 1) if excite else None
        self.excite = nn.Conv2d(inputs // 4, expanded, 1) if excite else None
        self.project = convolve(expanded, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        if self.squeeze is not None and self.excite is not None:
            y = y * torch.sigmoid(self.excite(functional.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y) if self.joins else self.project(y)


class DenseLayer(nn.Module):
    """x with `growth` channels appended that norm-relu-conv1x1-norm-relu-conv3x3 computes from it."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.norm2(y)))], 1)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x is (n, tokens, width)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.width, self.scale = heads, width, (width // heads) ** -0.5
        self.norm1, self.qkv, self.projection = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens = x.shape[:2]
        split_heads = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, self.width // self.heads)
        query, key, value = split_heads.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query * self.scale @ key.transpose(-2, -1)).softmax(-1)
        x = x + self.projection((weights @ value).transpose(1, 2).reshape(n, tokens, self.width))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches of 7x7 every 5 pixels (36 tokens), learned positions, blocks, mean over the tokens, ten class scores."""

    def __init__(self, width: int = 64, heads: int = 4, hidden: int = 128, depth: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 7, 5)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 36, width))
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads, hidden) for _ in range(depth)])
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))


def mobile(widths: list[tuple[int, int, int, int, int]], last: int, act: nn.Module, excite: bool) -> nn.Module:
    """A stem of stride 2, inverted residuals (inputs, expanded, outputs, stride, kernel), a 1x1 convolution, the classifier."""
    blocks = {f"block{i}": InvertedResidual(*width, act, excite) for i, width in enumerate(widths, 1)}
    stem, head = convolve(3, widths[0][0], 3, 2, act=act), convolve(widths[-1][2], last, 1, act=act)
    return classifier({"stem": stem, **blocks, "head": head}, last)


def mobilenetv2() -> nn.Module:
    """Seven inverted residuals with ReLU6 on 16x16, 8x8 and 4x4."""
    first = [(24, 72, 24, 1, 3), (24, 72, 40, 2, 3), (40, 160, 40, 1, 3), (40, 160, 40, 1, 3)]
    return mobile([*first, (40, 160, 64, 2, 3), (64, 256, 64, 1, 3), (64, 256, 64, 1, 3)], 256, nn.ReLU6(), False)


def efficientnet() -> nn.Module:
    """Seven MBConv with SiLU, squeeze-and-excite and kernels of 3 and 5 on 16x16, 8x8 and 4x4."""
    first = [(24, 72, 24, 1, 3), (24, 72, 32, 2, 5), (32, 128, 32, 1, 5), (32, 128, 32, 1, 3)]
    return mobile([*first, (32, 128, 64, 2, 3), (64, 256, 64, 1, 5), (64, 256, 64, 1, 3)], 256, nn.SiLU(), True)


def densenet() -> nn.Module:
    """Three dense blocks of 2, 4 and 7 layers, 16 channels a layer, on 16x16, 8x8 and 4x4; transitions halve the channels."""
    features: dict[str, nn.Module] = {"stem": nn.Conv2d(3, 32, 3, 2, 1, bias=False)}
    channels = 32
    for i, layers in enumerate((2, 4, 7), 1):
        features[f"dense{i}"] = nn.Sequential(*[DenseLayer(channels + 16 * j, 16) for j in range(layers)])
        channels += 16 * layers
        features |= {f"norm{i}": nn.BatchNorm2d(channels), f"relu{i}": nn.ReLU()}
        if i < 3:
            features |= {f"transition{i}": nn.Conv2d(channels, channels // 2, 1, bias=False), f"pool{i}": nn.AvgPool2d(2)}
            channels //= 2
    return classifier(features, channels)


def adam(rate: float) -> Callable[..., torch.optim.Optimizer]:
    """AdamW up to this learning rate."""
    return partial(torch.optim.AdamW, lr=rate, weight_decay=0.05)


NETWORKS = {
    "mobilenetv2": Network(mobilenetv2, 9, adam(5e-3), 128, "inverted residuals, depthwise, ReLU6; BatchNormalization kept"),
    "vit": Network(
        VisionTransformer, 14, adam(2e-3), 128, "patches, learned positions, LayerNorm, 4 heads, GELU, mean over tokens", False
    ),
    "densenet": Network(densenet, 4, adam(5e-3), 128, "dense blocks with Concat, BatchNormalization before ReLU, kept"),
    "efficientnet": Network(
        efficientnet, 5, adam(5e-3), 128, "MBConv with SiLU, squeeze-and-excite; BatchNormalization folded", False
    ),
}


def table_row(path: Path, network: Network, model: nn.Module, accuracy: float, epochs: int, cpu_minutes: float) -> str:
    """The row of the README table for one file."""
    parameters, macs = sizes(model, DATA)
    options = "`training=PRESERVE, do_constant_folding=False`" if network.keeps_batch_normalization else "default options"
    measured = f"{parameters:,} | {macs:,} | {path.stat().st_size:,} | {accuracy:.1f} % | {epochs} | {cpu_minutes:.1f}"
    return f"| `{path.name}` | {network.words} | {measured} | {options} |"


def make(name: str, training: Images, test: Images, options: argparse.Namespace) -> None:
    """Train, export and check one network; print its row of the README table."""
    network, path = NETWORKS[name], options.output / f"cifar-{name}.onnx"
    epochs, begin = options.epochs or network.epochs, time.process_time()
    for epoch, (model, loss) in enumerate(trained(network, DATA, training, epochs), 1):
        minutes = (time.process_time() - begin) / 60
        print(f"{name}: epoch {epoch} of {epochs}, loss {loss:.3f}, {minutes:.1f} CPU minutes", flush=True)
        if options.checkpoints and epoch < epochs:
            export(model, path.with_suffix(".unfinished.onnx"), zero_input(DATA), network.keeps_batch_normalization)
    export(model, path, zero_input(DATA), network.keeps_batch_normalization)
    right = check(path, model, DATA, test.images).argmax(1) == test.labels
    print(table_row(path, network, model, 100.0 * float(right.mean()), epochs, minutes), flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=[*NETWORKS, "all"])
    parser.add_argument("--data", type=Path, default=IMAGES, help="folder of the CIFAR-10 images")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the exported files")
    parser.add_argument("--epochs", type=int, help="instead of each network's own number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoints", action="store_true", help="export cifar-NAME.unfinished.onnx after each epoch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    try:
        training, test = load("cifar10", options.data)
    except DataError as error:
        parser.error(str(error))
    for name in NETWORKS if options.network == "all" else [options.network]:
        make(name, training, test, options)


if __name__ == "__main__":
    main(sys.argv[1:])
