"""The outputs of a model that is closed again, so that two large models need not be open at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from onnxmerge.execution.sessions import Session
from onnxmerge.execution.tensor_specs import Feeds
from onnxmerge.execution.tensor_store import TensorStore


@dataclass(frozen=True)
class _Recorded:
    """Stands for ONNX Runtime's session: gives its outputs once more, and what it said of itself."""

    outputs: Iterator[list[Any]]
    options: dict[str, Any]
    assignments: list[Any]

    def run(self, names: list[str], feeds: Feeds) -> list[Any]:
        """The outputs of the next call."""
        return next(self.outputs)

    def get_provider_options(self) -> dict[str, Any]:
        """As ONNX Runtime's session."""
        return self.options

    def get_provider_graph_assignment_info(self) -> list[Any]:
        """As ONNX Runtime's session."""
        return self.assignments


def recorded(session: Session, batches: Iterable[Feeds]) -> Session:
    """Run a session on batches now; what is returned gives the outputs once, in the same order, and does not hold the model.

    They wait in memory up to the limit of a `TensorStore`, and on disk beyond it.
    """
    store, count = TensorStore(), 0
    for feeds in batches:
        for name, value in session.run(feeds).items():
            store.put(count, name, value)
        count += 1
    names = session.output_names
    outputs = ([store.get(batch, name) for name in names] for batch in range(count))
    # ONNX Runtime's own objects would hold its session
    assignments: list[Any] = getattr(session.handle, "get_provider_graph_assignment_info", list)()
    parts = [
        (each.ep_name, [SimpleNamespace(name=node.name, op_type=node.op_type) for node in each.get_nodes()])
        for each in assignments
    ]
    plain = [SimpleNamespace(ep_name=name, get_nodes=partial(list, nodes)) for name, nodes in parts]
    return replace(session, handle=_Recorded(outputs, session.handle.get_provider_options(), plain))
