"""Where a candidate leaves its reference: what the layer-wise comparison says. Part of the results."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NodeDrift:
    """A node whose output differs from the reference's beyond rounding.

    error_in, error_out: relative L2 |y - y'| / |y| of the nearest comparable tensors in front of it (the worst) and of its
    output `tensor`; infinite for NaN. note: what of the node's own is different, where that explains it.
    """

    node: str
    operator: str
    tensor: str
    error_in: float
    error_out: float
    note: str = ""

    @property
    def jump(self) -> float:
        """How much error this node adds."""
        return self.error_out - self.error_in if self.error_out != self.error_in else 0.0


@dataclass(frozen=True)
class LayerDrift:
    """The candidate against the reference, tensor by tensor, on the CPU without optimisation.

    same_layers: no layer lost channels, so that only rounding may differ; compared: tensors of the same name and shape in
    both; not_comparable: those that lost channels; first: where the drift starts, None without any; nodes: all that drift, in
    the order they run; mistakes: what no removal of channels explains.
    """

    same_layers: bool
    compared: int
    not_comparable: int
    inputs: int
    first: NodeDrift | None
    nodes: tuple[NodeDrift, ...]
    mistakes: tuple[str, ...]
