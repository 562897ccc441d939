"""Inputs of models and what feeds them, for the tests of synthetic inputs and of calibration data."""

from pathlib import Path

import numpy as np
import pytest

from onnxmerge.data.inputs import calibration_inputs
from onnxmerge.data.synthetic import ImageRange
from onnxmerge.data.synthetic_inputs import synthetic_inputs
from onnxmerge.execution.tensor_specs import TensorSpec

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent")
TYPES = {
    "float32": "float",
    "float16": "float16",
    "float64": "double",
    "int64": "int64",
    "int32": "int32",
    "uint8": "uint8",
    "bool": "bool",
    "object": "string",
}
CIFAR = ImageRange(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))


def spec(name, dims, dtype="float32"):
    return TensorSpec(name, f"tensor({TYPES[dtype]})", np.dtype(dtype), tuple(dims))


def shapes_of(specs, batch=2, extent=16):
    """As one run would have seen them."""
    size = lambda axis, dim: dim if isinstance(dim, int) else extent if axis else batch  # noqa: E731
    return {each.name: tuple(size(axis, dim) for axis, dim in enumerate(each.dims)) for each in specs}


def synthesise(*specs, count=6, seed=0, batch=2, **options):
    return synthetic_inputs(specs, shapes_of(specs, batch), count, seed, **options)


def calibrate(path, *specs, batch=2, image_range=None, reading=None):
    return calibration_inputs(path, specs, shapes_of(specs, batch), image_range, reading)


def whole(inputs, size=1000):
    """Everything by name, joined on axis 0."""
    batches = list(inputs.batches(size))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


IMAGE = spec("x", ("N", 3, 8, 8))
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 3, 8, 8), dtype=np.uint8)
FLOATS = np.random.default_rng(0).standard_normal((7, 3, 8, 8))
