"""Walk a model from node to node over many inputs, holding only the tensors that are still to be read.

Running a network once for every layer that is looked at would cost the square of its depth. A `Walk` runs every node once for
each input: `advance` computes the nodes up to a position and keeps what crosses it, in memory or, beyond a budget, on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, helper, numpy_helper

from onnxmerge.execution.sessions import Session, open_session

MEMORY_BUDGET_BYTES = 1 << 30


Value = np.ndarray | list[np.ndarray]  # a list where the model has a sequence of tensors


def sub_model(model: ModelProto, nodes: Sequence[NodeProto], inputs: Mapping[str, Value], outputs: Iterable[str]) -> bytes:
    """A model of some nodes: their initializers come along, inputs are typed by example, sizes stay open."""
    read = {name for node in nodes for name in reads(node)}
    graph = onnx.GraphProto(name="part")
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in read and tensor.name not in inputs)
    graph.sparse_initializer.extend(tensor for tensor in model.graph.sparse_initializer if tensor.values.name in read)
    graph.input.extend(_typed(name, value) for name, value in inputs.items())
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    part = ModelProto(ir_version=model.ir_version, graph=graph, opset_import=model.opset_import, functions=model.functions)
    return part.SerializeToString()


def _typed(name: str, value: Value) -> onnx.ValueInfoProto:
    if isinstance(value, list):
        kind = helper.np_dtype_to_tensor_dtype(value[0].dtype) if value else onnx.TensorProto.FLOAT
        return helper.make_tensor_sequence_value_info(name, kind, None)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)


def reads(node: NodeProto) -> set[str]:
    """Every tensor that a node reads, in its bodies too."""
    found = {name for name in node.input if name}
    for attribute in node.attribute:
        bodies = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for body in bodies:
            found |= {name for inner in body.node for name in reads(inner)} | {output.name for output in body.output}
    return found


def shallow_first(model: ModelProto) -> None:
    """Reorder the nodes so that of branches that meet the shorter comes first: a skip connection is then known to the longer."""
    nodes = list(model.graph.node)
    makers = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    sources = [sorted({makers[name] for name in reads(node) if name in makers}) for node in nodes]
    depth = [0] * len(nodes)
    for at in range(len(nodes)):
        depth[at] = 1 + max((depth[source] for source in sources[at]), default=0)
    order: list[int] = []
    done = [False] * len(nodes)
    for end in sorted(set(range(len(nodes))).difference(*sources)):
        stack = [end]
        while stack:
            at = stack[-1]
            waiting = [source for source in sources[at] if not done[source]]
            if done[at] or not waiting:
                stack.pop()
                order += [] if done[at] else [at]
                done[at] = True
            else:
                stack.append(min(waiting, key=lambda source: depth[source]))
    del model.graph.node[:]
    model.graph.node.extend(nodes[at] for at in order)


class Store:
    """Values of many batches by (batch, name), in memory until the budget is spent, then arrays go to a temporary folder."""

    def __init__(self, budget_bytes: int = MEMORY_BUDGET_BYTES) -> None:
        self._budget, self._used, self._written = budget_bytes, 0, 0
        self._held: dict[tuple[int, str], Value] = {}
        self._files: dict[tuple[int, str], Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, batch: int, name: str, value: Value) -> None:
        """Hold a value, replacing an older one."""
        self.drop(batch, name)
        if isinstance(value, np.ndarray) and self._used + value.nbytes > self._budget:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="onnxmerge-")
            path = Path(self._folder.name) / f"{self._written}.npy"
            self._written += 1
            np.save(path, value, allow_pickle=False)
            self._files[batch, name] = path
        else:
            self._used += _bytes(value)
            self._held[batch, name] = value

    def get(self, batch: int, name: str) -> Value:
        """The value."""
        path = self._files.get((batch, name))
        return self._held[batch, name] if path is None else np.load(path, mmap_mode="r", allow_pickle=False)

    def drop(self, batch: int, name: str) -> None:
        """Forget a value."""
        value, path = self._held.pop((batch, name), None), self._files.pop((batch, name), None)
        if path is not None:
            path.unlink(missing_ok=True)
        elif value is not None:
            self._used -= _bytes(value)


def _bytes(value: Value) -> int:
    return sum(part.nbytes for part in value) if isinstance(value, list) else value.nbytes


def _plain(value: Value) -> Any:
    """As ONNX Runtime takes it."""
    return value if isinstance(value, list) else np.asarray(value)


@dataclass
class LayerwiseRun:
    """A model under way: nodes before `position` have been run on all `count` batches of feeds."""

    model: ModelProto
    batches: Iterable[Mapping[str, np.ndarray]]
    threads: int | None = None
    folder: Path | None = None  # where external data of the model is
    position: int = 0
    count: int = field(init=False, default=0)
    nodes: list[list[NodeProto]] = field(init=False)
    node_index: dict[str, int] = field(init=False)  # first output of a node -> its position
    live: dict[str, int] = field(init=False)
    store: Store = field(default_factory=Store)
    constants: dict[str, np.ndarray] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = [[node] for node in self.model.graph.node]
        self.node_index = {node.output[0]: index for index, node in enumerate(self.model.graph.node)}
        initializers = {tensor.name for tensor in self.model.graph.initializer}
        initializers |= {tensor.values.name for tensor in self.model.graph.sparse_initializer}
        self._last = {name: at for at, node in enumerate(self.model.graph.node) for name in reads(node)}
        self._fixed = set(initializers)
        for node in self.model.graph.node:
            if reads(node) <= self._fixed:
                self._fixed |= set(node.output)
        self.live = {}
        for feeds in self.batches:
            for name, value in feeds.items():
                self.live[name] = self._last.get(name, -1)
                self.store.put(self.count, name, value)
            self.count += 1

    def replace(self, at: int, nodes: Sequence[NodeProto], constants: Mapping[str, np.ndarray]) -> None:
        """Put other nodes in the place of one not yet run; `constants` are new initializers that they read."""
        if at < self.position:
            raise ValueError(f"node {at} has already been run")
        self.nodes[at] = list(nodes)
        self.constants.update(constants)
        for name, value in constants.items():
            if name in self._fixed:
                old = next(at for at, tensor in enumerate(self.model.graph.initializer) if tensor.name == name)
                del self.model.graph.initializer[old]
            self.model.graph.initializer.append(numpy_helper.from_array(value, name))
            self._fixed.add(name)

    def advance(self, stop: int) -> None:
        """Run the nodes before `stop` and keep what nodes from there on read."""
        if stop <= self.position:
            return
        produced = [name for group in self.nodes[self.position : stop] for node in group for name in node.output if name]
        wanted = [name for name in produced if self._last.get(name, -1) >= stop and name not in self._fixed]
        if wanted:
            self._run(stop, wanted)
        for name in [name for name, last in self.live.items() if last < stop]:
            del self.live[name]
            for number in range(self.count):
                self.store.drop(number, name)
        self.position = stop

    def tensor(self, batch: int, name: str) -> np.ndarray:
        """A tensor that is live at the position."""
        value = self.store.get(batch, name)
        assert isinstance(value, np.ndarray)
        return value

    def run(self, session: Session, batch: int, opened: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
        """A session's outputs on what is held of a batch, and on the constants that it has as inputs."""
        opened = opened or {}
        names = [spec.name for spec in session.inputs]
        return session.run({name: opened[name] if name in opened else _plain(self.store.get(batch, name)) for name in names})

    def ending(self, opened: Mapping[str, np.ndarray]) -> Session:
        """From here to those outputs that are still to come, with some constants (by name, with an example) as further inputs."""
        ahead = {name for group in self.nodes[self.position :] for node in group for name in node.output}
        wanted = [output.name for output in self.model.graph.output if output.name in ahead]
        return self._session(len(self.nodes), wanted, opened)

    def session_for(self, at: int) -> Session:
        """The nodes at one position, to be fed with `tensor`s while the walk stands there."""
        return self._session(at + 1, [name for node in self.nodes[at] for name in node.output if name][-1:])

    def _run(self, stop: int, wanted: list[str]) -> None:
        session = self._session(stop, wanted)
        for number in range(self.count):
            values = self.run(session, number)
            for name in wanted:
                self.store.put(number, name, values[name])
        self.live.update({name: self._last[name] for name in wanted})

    def _session(self, stop: int, wanted: list[str], opened: Mapping[str, np.ndarray] | None = None) -> Session:
        """The nodes that lead from what is held, and from constants, to what is wanted."""
        chosen: list[NodeProto] = []
        needed = set(wanted)
        for node in reversed([node for group in self.nodes[:stop] for node in group]):
            if needed & set(node.output):
                chosen.append(node)
                needed |= {name for name in reads(node) if name not in self.live}
        inputs = {name: self.store.get(0, name) for node in chosen for name in sorted(reads(node)) if name in self.live}
        part = sub_model(self.model, chosen[::-1], {**inputs, **(opened or {})}, wanted)
        return open_session(part, optimise=True, threads=self.threads, label="a part of the model", folder=self.folder)
