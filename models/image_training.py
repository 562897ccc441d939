"""What training scripts of image classifiers share: the loop, the export to ONNX, and its measures."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from image_data import DataSet, Images
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

SEED = 0
PADDING = 4  # pixels by which a random crop may move the image
TOLERANCE = 1e-4  # largest difference of a class score between PyTorch and ONNX Runtime
WARM_UP, TIMED = 2, 4  # steps before an estimate of the training time, and of it
PER_CALL = 250  # images that are judged at once


@dataclass(frozen=True)
class Network:
    """How to build and train one network, one-cycle learning rate up to that of the optimizer.

    Attributes
    ----------
    build : Callable
        Makes the untrained network.
    epochs : int
        Passes over the training images.
    optimizer : Callable
        Makes the optimizer of parameters.
    batch : int
        Images of a step.
    words : str
        What it is, for tables.
    keeps_batch_normalization : bool
        Whether its export keeps BatchNormalization; else PyTorch folds it.
    """

    build: Callable[..., nn.Module]
    epochs: int
    optimizer: Callable[..., torch.optim.Optimizer]
    batch: int
    words: str
    keeps_batch_normalization: bool = True


def to_inputs(images: Tensor, data: DataSet) -> Tensor:
    """(n, channels, height, width) uint8 -> float32 model inputs, (pixel / 255 - mean) / std."""
    mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (data.mean, data.std))
    return (images.float() / 255 - mean) / std


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of (n, c, h, w) mirrored or not and moved by up to PADDING pixels; the border is reflected. uint8 stays."""
    (n, _, height, width), device = images.shape, images.device
    padded = functional.pad(images.float(), [PADDING] * 4, mode="reflect").to(torch.uint8)
    shift = torch.randint(0, 2 * PADDING + 1, (2, n, 1), generator=generator).to(device)
    mirrored = (torch.rand(n, 1, generator=generator) < 0.5).to(device)
    across = torch.arange(width, device=device)
    rows = shift[0] + torch.arange(height, device=device)
    columns = shift[1] + torch.where(mirrored, across.flip(0), across)
    crops = padded[torch.arange(n, device=device).view(n, 1, 1), :, rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2)  # channels last in memory, which is what convolutions want


def train(network: Network, data: DataSet, images: Images, epochs: int, device: str = "cpu") -> Iterator[tuple[nn.Module, float]]:
    """After each step (the network in training mode, loss); on a GPU in mixed precision."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = network.build().to(device, memory_format=torch.channels_last)
    optimizer = network.optimizer(model.parameters())
    batches, rate = len(images.labels) // network.batch, optimizer.defaults["lr"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches, pct_start=0.2)
    pixels, labels = (torch.from_numpy(part).to(device) for part in images)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)[: batches * network.batch].view(batches, network.batch)
        for batch in order.to(device):
            seen = augment(pixels[batch], generator) if data.is_augmented else pixels[batch]
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
                scores = model(to_inputs(seen, data))
            loss = functional.cross_entropy(scores.float(), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            yield model, loss.detach()


def trained(
    network: Network, data: DataSet, images: Images, epochs: int, device: str = "cpu"
) -> Iterator[tuple[nn.Module, float]]:
    """After each epoch (the network in training mode, mean loss of the epoch)."""
    steps = train(network, data, images, epochs, device)
    batches = len(images.labels) // network.batch
    for _ in range(epochs):
        found = list(islice(steps, batches))
        yield found[-1][0], float(torch.stack([loss for _, loss in found]).mean())


def seconds_of_training(network: Network, data: DataSet, images: Images, epochs: int, device: str) -> float:
    """About how long `train` will take, from a few steps of another copy."""
    steps = train(network, data, images, max(epochs, WARM_UP + TIMED), device)
    float(list(islice(steps, WARM_UP))[-1][1])  # reading a loss waits until the GPU is done
    started = time.perf_counter()
    float(list(islice(steps, TIMED))[-1][1])
    return (time.perf_counter() - started) / TIMED * epochs * (len(images.labels) // network.batch)


def export(model: nn.Module, path: Path, example: Tensor, keep_batch_normalization: bool) -> None:
    """Write opset 17, IR 8, dynamic batch; PyTorch folds BatchNormalization unless told to keep it. example: one input."""
    kept: dict[str, Any] = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    torch.onnx.export(
        on_cpu(model),
        (example,),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        **(kept if keep_batch_normalization else {}),
    )


def on_cpu(model: nn.Module) -> nn.Module:
    """A copy for inference."""
    return copy.deepcopy(model).eval().to("cpu", memory_format=torch.contiguous_format)


def zero_input(data: DataSet) -> Tensor:
    """One input."""
    return torch.zeros(1, len(data.mean), data.extent, data.extent)


def check(path: Path, model: nn.Module, data: DataSet, images: np.ndarray) -> np.ndarray:
    """Class scores (n, classes) of the file by ONNX Runtime; raises unless PyTorch gives the same within TOLERANCE."""
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session, reference = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), on_cpu(model)
    found, expected = [], []
    for begin in range(0, len(images), PER_CALL):
        x = to_inputs(torch.from_numpy(images[begin : begin + PER_CALL]), data).contiguous()
        found.append(session.run(["y"], {"x": x.numpy()})[0])
        with torch.no_grad():
            expected.append(reference(x).numpy())
    scores, wanted = np.concatenate(found), np.concatenate(expected)
    difference = float(np.abs(scores - wanted).max())
    print(f"{path.name}: largest difference of PyTorch and ONNX Runtime {difference:.1e} in {len(images)} images", flush=True)
    if not difference < TOLERANCE:
        raise RuntimeError(f"{path}: scores differ by {difference}, more than {TOLERANCE}")
    return scores


def sizes(model: nn.Module, data: DataSet) -> tuple[int, int]:
    """Trained parameters, and MACs of convolutions and matrix products for one image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        on_cpu(model)(zero_input(data))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2
