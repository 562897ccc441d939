"""A ResNet of torchvision: exported with BatchNormalization kept, compressed without data, timed.

`pip install torchvision`, then `python examples/resnet.py --weights DEFAULT`, which downloads trained weights. Without that
option they are random: the sizes and times are the same, the fidelity is not.
"""

import argparse
from pathlib import Path

import torch
import torchvision

import onnxmerge

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def main(arguments: list[str] | None = None) -> None:
    """Export, compress, time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("resnet-smaller.onnx"))
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--weights", help="DEFAULT for trained ones")
    parser.add_argument("--images", type=Path, help="a folder; without it the program makes its own")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--target", default="macs=0.7")
    given = parser.parse_args(arguments)
    model = given.output.with_name(f"{given.network}.onnx")
    export(torchvision.models.get_model(given.network, weights=given.weights), given.size, model)
    inputs = {"samples": given.samples, "input_shape": f"1,3,{given.size},{given.size}", **IMAGENET}
    if given.images:
        inputs["calibration"] = given.images
    result = onnxmerge.compress(model, given.output, target=given.target, threads=1, **inputs)
    blocks = [group.name for group in result.groups if not group.kept]
    interval = f"{1 / result.latency.latency_ratio_high:.2f} to {1 / result.latency.latency_ratio_low:.2f}"
    print(f"{len(result.groups)} channel groups compressed, {len(blocks)} blocks gone as a whole")
    print(f"{result.after.macs / result.before.macs:.0%} of the MACs left, {interval} times as fast, ", end="")
    print(f"fidelity {result.fidelity.worst.fidelity:.3f}")


def export(network: torch.nn.Module, size: int, path: Path) -> None:
    """With BatchNormalization kept: without data it tells what every channel was on real images."""
    torch.onnx.export(
        network.eval(),
        (torch.zeros(1, 3, size, size),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["images"],
        output_names=["scores"],
        dynamic_axes={"images": {0: "batch"}, "scores": {0: "batch"}},
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )


if __name__ == "__main__":
    main()
