"""What a session says of its inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnxmerge.onnxio.external_data import DATA_TYPES

Feeds = Mapping[str, np.ndarray]

NO_SIZES = (None, "", "?")  # an exporter writes "?" for every open axis, so that it is no name
# ONNX Runtime's names of types that ONNX calls otherwise than by the same word in capitals
_ONNX_NAMES = {"float": "FLOAT", "double": "DOUBLE"}


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output.

    Attributes
    ----------
    name : str
        Its name.
    type : str
        As ONNX Runtime writes it: "tensor(float)"; as declared in the file.
    dtype : dtype
        Of the values; object for strings, and for everything that is not a tensor; float32 for bfloat16.
    dims : tuple of (int, str or None)
        By axis its size, the name of a symbolic one, None for an unknown one.
    setting : int, bool or None
        What a setting is where its value is made up; None where nothing tells, and then it is 1.
    is_whole : bool
        Whether an output has one and the same size whatever the batch is.
    """

    name: str
    type: str
    dtype: np.dtype
    dims: tuple[int | str | None, ...]
    setting: Any = None
    is_whole: bool = False

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The dims with None for everything dynamic."""
        return tuple(dim if isinstance(dim, int) else None for dim in self.dims)

    @property
    def is_tensor(self) -> bool:
        """False for sequences, maps and optionals."""
        return self.type.startswith("tensor(")

    @property
    def is_setting(self) -> bool:
        """Whether it is one integer or boolean, such as a sampling rate: the same wherever its value is made up."""
        is_single = all(dim == 1 for dim in self.dims)
        return self.is_tensor and self.dtype.kind in "iub" and is_single

    def set_to(self, shape: tuple[int, ...]) -> np.ndarray:
        """The value of a setting where it is made up."""
        return np.full(shape, 1 if self.setting is None else self.setting, self.dtype)


def spec_of(argument: onnxruntime.NodeArg) -> TensorSpec:
    """The specification of an input or output, from what a session returns."""
    dims = tuple(None if dim in NO_SIZES or (isinstance(dim, int) and dim < 0) else dim for dim in argument.shape or ())
    return TensorSpec(argument.name, argument.type, _dtype_of(argument.type), dims)


def _dtype_of(type_text: str) -> np.dtype:
    match = re.fullmatch(r"tensor\((\w+)\)", type_text)
    if match is None or match[1] == "string":
        return np.dtype(object)
    name = _ONNX_NAMES.get(match[1], match[1].upper())
    return helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(name))


def batch_size(feeds: Feeds, axes: Mapping[str, int] = MappingProxyType({})) -> int:
    """How many inputs the feeds of one call are.

    axes: the batch's axis by input, of those that have one. Where none is known it is the commonest size of axis 0, the first of
    them where several are as common; 1 without any.
    """
    known = [value.shape[axes[name]] for name, value in feeds.items() if name in axes]
    sizes = known or [len(value) for value in feeds.values() if np.ndim(value)]
    return max(sizes, key=sizes.count, default=1)


def input_specs(proto: ModelProto) -> tuple[TensorSpec, ...]:
    """The graph inputs that must be fed, from a file; the same that a session tells."""
    stored = {tensor.name for tensor in proto.graph.initializer} | {each.values.name for each in proto.graph.sparse_initializer}
    return tuple(_declared_spec(value) for value in proto.graph.input if value.name not in stored)


def _declared_spec(value: ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in DATA_TYPES:
        return TensorSpec(value.name, value.type.WhichOneof("value") or "of no type", np.dtype(object), ())
    sizes = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param for dim in kind.shape.dim]
    dims = tuple(None if size in NO_SIZES else size for size in sizes)
    as_given = TensorProto.FLOAT if kind.elem_type == TensorProto.BFLOAT16 else kind.elem_type  # see `open_session`
    return TensorSpec(value.name, "tensor(declared)", helper.tensor_dtype_to_np_dtype(as_given), dims)
