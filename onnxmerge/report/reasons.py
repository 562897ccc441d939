"""Refusals and notes with the same reason, together."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from onnxmerge.errors import Refusal
from onnxmerge.report.wording import as_command_line, percent, printable, shortened
from onnxmerge.results import GroupResult


@dataclass(frozen=True)
class SharedReason:
    """A reason and all that it holds for.

    Attributes
    ----------
    text : str
        The reason in words.
    layers : tuple of str
        Layers that keep all of their channels for this reason, or groups that it is a note on.
    obstacles : tuple of str
        Nodes and tensors that prevent the removal, where refusals name them.
    parameters_share : float
        Share of the model's parameters in the layers, 0 to 1.
    """

    text: str
    layers: tuple[str, ...]
    obstacles: tuple[str, ...]
    parameters_share: float = 0.0

    def heading(self, width: int) -> str:
        """The reason; the obstacle where it is the only one and the reason does not name it; what its layers hold."""
        only = self.obstacles[0] if len(self.obstacles) == 1 and self.layers else ""
        text = f"{self.text} ({shortened(only, width)})" if only and printable(only) not in self.text else self.text
        if not self.parameters_share:
            return text
        return f"{text} - {percent(self.parameters_share)} of the parameters"

    @property
    def names(self) -> tuple[str, ...]:
        """What is listed below the heading."""
        return self.layers or self.obstacles


def reasons(refusals: Iterable[Refusal]) -> list[SharedReason]:
    """Refusals with the same reason together, as `Reason.order` says, the largest shares of the parameters first, then
    those that hold for most layers.

    A refusal without an obstacle is about its own node. Beside refusals of the same reason that name an obstacle this node is
    one more obstacle; where none of them does it is a layer.
    """
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    order: dict[str, int] = {}
    found = []
    for refusal in refusals:
        text = as_command_line(refusal.text)
        found.append((refusal.where, text, refusal.obstacle))
        shares[printable(text)][refusal.where] = refusal.parameters_share
        order[printable(text)] = refusal.reason.order
    shared = _together(found)
    shared = [replace(each, parameters_share=sum(shares[each.text].get(name, 0.0) for name in each.layers)) for each in shared]
    return sorted(shared, key=lambda each: (order[each.text], -each.parameters_share, -len(each.layers)))


def notes(groups: Iterable[GroupResult]) -> list[SharedReason]:
    """Notes on groups, those with the same text together."""
    return _together((group.name, as_command_line(group.note), "") for group in groups if group.note)


def _together(found: Iterable[tuple[str, str, str]]) -> list[SharedReason]:
    """From (layer, reason, obstacle); either name may be empty."""
    by_text: dict[str, list[tuple[str, str]]] = {}
    for layer, text, obstacle in found:
        by_text.setdefault(text, []).append((layer, obstacle))
    shared = []
    for text, pairs in by_text.items():
        blocked = [layer for layer, obstacle in pairs if obstacle]
        alone = [layer for layer, obstacle in pairs if not obstacle]
        obstacles = [obstacle for _, obstacle in pairs if obstacle] + alone if blocked else []
        shared.append(SharedReason(printable(text), _unique(blocked or alone), _unique(obstacles)))
    return shared


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, names)))
