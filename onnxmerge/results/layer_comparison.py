"""How far a candidate is from its reference tensor by tensor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NodeDeviation:
    """A node whose output differs from the reference's beyond rounding.

    Attributes
    ----------
    node : str
        Name of the node.
    operator : str
        Operator type of the node.
    tensor : str
        Name of the output that differs.
    relative_l2_before : float
        Relative L2 error |y - y'| / |y| of the nearest comparable tensors in front of the node, the largest of them.
    relative_l2_after : float
        Relative L2 error of `tensor`; infinite for NaN.
    note : str
        What differs in the node itself (weights, attributes, order of channels), where that explains the deviation.
    """

    node: str
    operator: str
    tensor: str
    relative_l2_before: float
    relative_l2_after: float
    note: str = ""

    @property
    def added_error(self) -> float:
        """relative_l2_after - relative_l2_before, 0 where both are infinite."""
        return 0.0 if self.relative_l2_after == self.relative_l2_before else self.relative_l2_after - self.relative_l2_before


@dataclass(frozen=True)
class LayerComparison:
    """The candidate against the reference tensor by tensor, on the CPU without graph optimisation.

    Attributes
    ----------
    same_channel_counts : bool
        True where no layer lost channels, so that only rounding may differ.
    compared_tensors : int
        Number of tensors with the same name and shape in both models.
    skipped_tensors : int
        Number of tensors that lost channels or are not in both models.
    runs : int
        Number of calls of both models, of one input each unless the model has a fixed batch size.
    first_deviation : NodeDeviation or None
        Node where the deviation starts; None where nothing deviates beyond rounding.
    deviations : list of NodeDeviation
        All nodes that deviate, in the order in which they run.
    unexplained : list of str
        Differences that removing channels cannot explain, a line each.
    """

    same_channel_counts: bool
    compared_tensors: int
    skipped_tensors: int
    runs: int
    first_deviation: NodeDeviation | None
    deviations: tuple[NodeDeviation, ...]
    unexplained: tuple[str, ...]
