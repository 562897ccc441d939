"""A compact builder of small ONNX models: every call adds one node and returns the name of its output tensor."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Net:
    """One graph under construction. Weights are He-scaled and seeded, so activations stay of order one."""

    def __init__(self, rng: np.random.Generator, opset: int = 17, ir: int = 8, dtype: str = "float32", batch: str | int = "N"):
        self.rng, self.opset, self.ir, self.batch = rng, opset, ir, batch
        self.dtype = np.dtype(dtype)
        self.element_type = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.domains: dict[str, int] = {"": opset}

    def input(self, name: str, *shape: int | str) -> str:
        """A graph input; the batch dimension is put in front."""
        self.inputs.append(helper.make_tensor_value_info(name, self.element_type, [self.batch, *shape]))
        return name

    def output(self, tensor: str, *shape: int | str) -> None:
        """A graph output with its declared shape; the batch dimension is put in front."""
        self.outputs.append(helper.make_tensor_value_info(tensor, self.element_type, [self.batch, *shape]))

    def const(self, name: str, values: np.ndarray | list | float, dtype: object = None) -> str:
        """An initializer: lists of int are int64, everything else has the dtype of the model."""
        array = np.asarray(values)
        kind = np.int64 if array.dtype.kind == "i" else self.dtype
        self.initializers.append(numpy_helper.from_array(array.astype(dtype or kind), name))
        return name

    def op(self, op_type: str, *tensors: str, name: str = "", outs: int = 1, domain: str = "", **attributes) -> str | list[str]:
        """Any node. An unnamed one is called after its operator and its position."""
        name = name or f"{op_type.lower()}_{len(self.nodes)}"
        names = [f"{name}_y"] if outs == 1 else [f"{name}_y{i}" for i in range(outs)]
        self.nodes.append(helper.make_node(op_type, list(tensors), names, name=name, domain=domain, **attributes))
        if domain:
            self.domains[domain] = 1
        return names[0] if outs == 1 else names

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def he(self, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
        return self.rng.normal(0, np.sqrt(2 / fan_in), shape)

    def small(self, *shape: int) -> np.ndarray:
        return self.rng.normal(0, 0.2, shape)

    def positive(self, *shape: int) -> np.ndarray:
        return self.rng.uniform(0.5, 1.5, shape)

    def conv(
        self, x: str, name: str, c_in: int, c_out: int, kernel=3, *, group=1, bias=True, rank=2, weight="", **attributes
    ) -> str:
        """Conv called `name`, padded to the same size unless `pads` is given. `weight` names an existing tensor."""
        spatial = (kernel,) * rank if isinstance(kernel, int) else tuple(kernel)
        if not weight:
            fan_in = c_in // group * int(np.prod(spatial))
            weight = self.const(f"{name}_w", self.he((c_out, c_in // group, *spatial), fan_in))
        biases = (self.const(f"{name}_b", self.small(c_out)),) if bias else ()
        attributes.setdefault("pads", [k // 2 for k in spatial] * 2)
        return self.op("Conv", x, weight, *biases, name=name, kernel_shape=spatial, group=group, **attributes)

    def conv_transpose(self, x: str, name: str, c_in: int, c_out: int, *, kernel=2, group=1, **attributes) -> str:
        """ConvTranspose with stride 2: weights are (in, out / group, kernel, kernel)."""
        weight = self.const(f"{name}_w", self.he((c_in, c_out // group, kernel, kernel), c_in // group))
        bias = self.const(f"{name}_b", self.small(c_out))
        return self.op("ConvTranspose", x, weight, bias, name=name, group=group, strides=[2, 2], **attributes)

    def gemm(self, x: str, name: str, c_in: int, c_out: int, *, trans_b=1, bias=True, **attributes) -> str:
        weight = self.he((c_out, c_in) if trans_b else (c_in, c_out), c_in)
        biases = (self.const(f"{name}_b", self.small(c_out)),) if bias else ()
        return self.op("Gemm", x, self.const(f"{name}_w", weight), *biases, name=name, transB=trans_b, **attributes)

    def matmul(self, x: str, name: str, c_in: int, c_out: int) -> str:
        return self.op("MatMul", x, self.const(f"{name}_w", self.he((c_in, c_out), c_in)), name=name)

    def batch_norm(self, x: str, name: str, channels: int) -> str:
        values = {
            "scale": self.positive(channels),
            "bias": self.small(channels),
            "mean": self.small(channels),
            "var": self.positive(channels),
        }
        tensors = [self.const(f"{name}_{part}", value) for part, value in values.items()]
        return self.op("BatchNormalization", x, *tensors, name=name, epsilon=1e-5)

    def integer(self, value: int) -> onnx.TensorProto:
        """(1,) int64, as an attribute: what ConstantOfShape fills in."""
        return helper.make_tensor("value", TensorProto.INT64, [1], [value])

    def constant_node(self, name: str, values: np.ndarray) -> str:
        """A Constant node whose output tensor is called `name`."""
        tensor = numpy_helper.from_array(np.asarray(values, self.dtype), name)
        self.nodes.append(helper.make_node("Constant", [], [name], name=f"constant_{name}", value=tensor))
        return name

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "topology", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="onnxmerge-tests")
        model.ir_version = self.ir
        return model

    def body(self, name: str, tensor: str, make) -> onnx.GraphProto:
        """A subgraph without inputs, filled by `make(net) -> tensor`; it may read outer tensors."""
        inner = Net(self.rng, self.opset, self.ir, str(self.dtype))
        result = make(inner)
        inner.nodes.append(helper.make_node("Identity", [result], [tensor], name=f"{name}_identity"))
        value = helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None)
        return helper.make_graph(inner.nodes, name, [], [value], inner.initializers)
