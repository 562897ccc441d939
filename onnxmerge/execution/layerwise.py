"""Run a model layer by layer over many batches, keeping only the tensors that are still to be read.

Running the network from its inputs for every layer that is looked at would cost the square of its depth. A `LayerwiseRun` runs
every node once for each batch and can stop before any of them: what a layer reads can be looked at, and the layer replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from onnxmerge.execution.few_positions import at_few_positions
from onnxmerge.execution.sessions import Session, open_session
from onnxmerge.execution.submodel import submodel
from onnxmerge.execution.tensor_store import TensorStore, Value
from onnxmerge.onnxio.traversal import tensors_read


@dataclass
class LayerwiseRun:
    """A model of which the nodes before `position` have been run on every batch.

    Attributes
    ----------
    model : ModelProto
        Never changed: runs share it, and its weights.
    batches : iterable of mapping of str to ndarray
        The feeds; read once, when the run is made.
    threads : int or None
        Of ONNX Runtime; None: every CPU.
    folder : Path or None
        Where external data of the model is.
    position : int
        Index of the first node that has not been run.
    batch_count : int
        Number of batches.
    nodes : list of list of NodeProto
        By index what stands in the place of a node of the model.
    node_index : dict of str to int
        Output of a node -> its index.
    available : dict of str to int
        The tensors that `tensor` gives -> index of the last node that reads them.
    tensors : TensorStore
        The values of these.
    constants : mapping of str to ndarray
        Initializers that stand in the place of those of the model, and those that `replace_node` adds.

    Examples
    --------
    >>> from onnx import parser
    >>> model = parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     g (float[N] x) => (float[N] y) { a = Neg(x)  b = Relu(a)  y = Add(a, b) }''')
    >>> run = LayerwiseRun(model, [{"x": np.array([-1, 2], np.float32)}], threads=1)
    >>> run.run_until(2)
    >>> sorted(run.available)
    ['a', 'b']
    >>> run.tensor(0, "b").tolist()
    [1.0, 0.0]
    """

    model: ModelProto
    batches: Iterable[Mapping[str, np.ndarray]]
    threads: int | None = None
    folder: Path | None = None
    position: int = field(init=False, default=0)
    batch_count: int = field(init=False, default=0)
    nodes: list[list[NodeProto]] = field(init=False)
    node_index: dict[str, int] = field(init=False)
    available: dict[str, int] = field(init=False, default_factory=dict)
    tensors: TensorStore = field(default_factory=TensorStore)
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = [[node] for node in self.model.graph.node]
        self.node_index = {name: index for index, node in enumerate(self.model.graph.node) for name in node.output}
        self._last_reader = {name: index for index, node in enumerate(self.model.graph.node) for name in tensors_read(node)}
        self._constant_names = {tensor.name for tensor in self.model.graph.initializer}
        self._constant_names |= {tensor.values.name for tensor in self.model.graph.sparse_initializer}
        for node in self.model.graph.node:
            if tensors_read(node) <= self._constant_names:
                self._constant_names |= set(node.output)
        for feeds in self.batches:
            for name, value in feeds.items():
                self.available[name] = self._last_reader.get(name, -1)
                self.tensors.put(self.batch_count, name, value)
            self.batch_count += 1

    def replace_node(self, index: int, nodes: Sequence[NodeProto], constants: Mapping[str, np.ndarray]) -> None:
        """Put other nodes in the place of one that has not been run.

        Parameters
        ----------
        index : int
            Of the node.
        nodes : sequence of NodeProto
            They give at least the outputs of the node.
        constants : mapping of str to ndarray
            Initializers that they read; one of a name that is there already is replaced.

        Raises
        ------
        ValueError
            Where the node has been run.
        """
        if index < self.position:
            raise ValueError(f"node {index} has already been run")
        self.nodes[index] = list(nodes)
        self.constants = {**self.constants, **constants}
        self._constant_names.update(constants)

    def hold(self, name: str, index: int) -> None:
        """Keep a tensor, also one that is still to come, until the run has passed the node at an index."""
        self._last_reader[name] = max(self._last_reader.get(name, -1), index)
        if name in self.available:
            self.available[name] = self._last_reader[name]

    def revise_node(
        self, index: int, nodes: Sequence[NodeProto], constants: Mapping[str, np.ndarray], path: tuple[str, str]
    ) -> None:
        """Put other nodes in the place of one that has been run, and compute again what it leads to.

        index, nodes, constants: as `replace_node` has them; path: an available tensor that the node reads, and the one that is
        computed again. What else nodes between them read is available, as far as it does not depend on the node.
        """
        self.nodes[index] = list(nodes)
        self.constants = {**self.constants, **constants}
        self._constant_names.update(constants)
        source, output = path
        changed = dependents(self.model.graph.node[index : self.position])
        read = {name: self.tensors.get(0, name) for name in self.available if name == source or name not in changed}
        session = self.session_between(read, output)
        for batch in range(self.batch_count):
            self.tensors.put(batch, output, self.run_session(session, batch)[output])

    def run_until(self, index: int, keep: str = "") -> None:
        """Run the nodes before an index, and keep what nodes from there on read; and one tensor more, up to the next call."""
        if index <= self.position:
            return
        produced = [name for group in self.nodes[self.position : index] for node in group for name in node.output if name]
        crossing = [name for name in produced if self._last_reader.get(name, -1) >= index or name == keep]
        crossing = [name for name in crossing if name not in self._constant_names]
        read = [name for name, last in self.available.items() if last < index and name != keep]
        session = self._session(index, crossing) if crossing else None
        for batch in range(self.batch_count):
            values = {} if session is None else self.run_session(session, batch)
            for name in read:
                self.tensors.drop(batch, name)
            for name in crossing:
                self.tensors.put(batch, name, values.pop(name))
        self.available = {name: last for name, last in self.available.items() if name not in read}
        self.available |= {name: self._last_reader.get(name, -1) for name in crossing}
        self.position = index

    def tensor(self, batch: int, name: str) -> np.ndarray:
        """A tensor that is available at the position, not a sequence."""
        value = self.tensors.get(batch, name)
        assert isinstance(value, np.ndarray)
        return value

    def run_session(self, session: Session, batch: int, extra_inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
        """A session's outputs by name, on the tensors of a batch, and on values for the inputs that it has beside these."""
        extra = extra_inputs or {}
        names = [spec.name for spec in session.inputs]
        return session.run({name: extra[name] if name in extra else _as_feed(self.tensors.get(batch, name)) for name in names})

    def session_to_outputs(self, extra_inputs: Mapping[str, np.ndarray], steps: Mapping[str, int] | None = None) -> Session:
        """From the position to the graph outputs that are still to come.

        extra_inputs: by name, with an example, the initializers that become inputs; steps: see `at_few_positions`.
        """
        ahead = {name for group in self.nodes[self.position :] for node in group for name in node.output}
        outputs = [output.name for output in self.model.graph.output if output.name in ahead]
        return self._session(len(self.nodes), outputs, extra_inputs, steps)

    def session_between(self, sources: Mapping[str, Value], output: str) -> Session:
        """From some tensors, each with an example, to one that nodes before the position give."""
        return self._session(self.position, [output], sources=sources)

    def session_of_node(self, index: int) -> Session:
        """The nodes at an index, from the tensors that are available at the position to the last of their outputs."""
        return self._session(index + 1, [name for node in self.nodes[index] for name in node.output if name][-1:])

    def _session(
        self,
        stop: int,
        outputs: list[str],
        extra_inputs: Mapping[str, np.ndarray] | None = None,
        steps: Mapping[str, int] | None = None,
        sources: Mapping[str, Value] | None = None,
    ) -> Session:
        """The nodes before an index that lead from available tensors, or from `sources`, and constants to the outputs."""
        available = self.available if sources is None else sources
        chosen: list[NodeProto] = []
        needed = set(outputs)
        for node in reversed([node for group in self.nodes[:stop] for node in group]):
            if needed & set(node.output):
                chosen.append(node)
                needed |= {name for name in tensors_read(node) if name not in available}
        read = [name for node in chosen for name in sorted(tensors_read(node)) if name in available]
        inputs = {name: self.tensors.get(0, name) if sources is None else sources[name] for name in read}
        inputs |= extra_inputs or {}
        nodes = chosen[::-1]
        if steps:
            ranks = {tensor.name: len(tensor.dims) for tensor in self.model.graph.initializer}
            ranks |= {name: np.ndim(value) for values in (self.constants, inputs) for name, value in values.items()}
            nodes, outputs = at_few_positions(nodes, outputs, ranks, steps)
        part = submodel(self.model, nodes, inputs, outputs, self.constants)
        label = "a part of the model"
        return open_session(part, optimise=True, threads=self.threads, label=label, folder=self.folder, arena=False)


def dependents(nodes: Sequence[NodeProto]) -> set[str]:
    """Names of what the first of some nodes, in the order of the graph, gives, and of what the others compute from that."""
    found = set(nodes[0].output)
    for node in nodes[1:]:
        if not found.isdisjoint(tensors_read(node)):
            found.update(node.output)
    return found - {""}


def _as_feed(value: Value) -> Any:
    """As ONNX Runtime takes it: a mapped array as a plain one."""
    return value if isinstance(value, list) else np.asarray(value)
