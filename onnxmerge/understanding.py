"""A file understood: the model, its tensors' shapes in a tiny run, its channel groups and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from onnxmerge.errors import ModelError, OptionError
from onnxmerge.graph.analysis import analyse
from onnxmerge.graph.channels import ChannelGroup, Channels
from onnxmerge.graph.cost import total_macs, total_parameters
from onnxmerge.graph.flow import label
from onnxmerge.graph.io import Model, load
from onnxmerge.graph.weights import weight_of
from onnxmerge.options import Options
from onnxmerge.results import Refusal, Size
from onnxmerge.runtime.shapes import Observations, observe_twice, random_values


@dataclass(frozen=True)
class Understanding:
    """The model, ready to be decided on.

    observed: every tensor in the tiny run, elsewhere: in a run with other dynamic sizes, None where there is none.
    """

    model: Model
    channels: Channels
    observed: Observations
    size: Size
    elsewhere: Observations | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> concrete shape."""
        return {name: seen.shape for name, seen in self.observed.items()}

    def feeds(self, seen: Observations) -> dict[str, np.ndarray]:
        """Random inputs of the shapes of a run."""
        generator = np.random.default_rng(0)
        inputs = [tensor.name for tensor in self.model.graph.inputs]
        return {name: random_values(generator, seen[name].shape, seen[name].dtype) for name in inputs}


def understand(path: Path) -> Understanding:
    """Load, run once or twice on tiny inputs, follow the channels. Raises ModelError with one clear line."""
    model = load(path)
    first, second = observe_twice(path, label=path.name)
    shapes = {name: seen.shape for name, seen in first.items()}
    others = None if second is None else {name: seen.shape for name, seen in second.items()}
    values = {name: seen.value for name, seen in first.items() if seen.value is not None}
    channels = analyse(model, shapes, others, values)
    for weighted in channels.flow.weighted:
        if not np.isfinite(weight_of(channels.flow, weighted)).all():
            raise ModelError(f"{path}: the weight of {label(weighted.node)} holds NaN or infinity; export the model anew")
    return Understanding(model, channels, first, measure(model, shapes, path.stat().st_size), second)


def measure(model: Model, shapes: dict[str, tuple[int, ...]], file_bytes: int) -> Size:
    """Parameters, MACs for the shapes given, bytes."""
    return Size(total_parameters(model), total_macs(model, shapes), file_bytes)


def chosen_groups(channels: Channels, options: Options) -> tuple[list[ChannelGroup], list[Refusal]]:
    """The groups that scope, include and exclude leave, and why the others are left out. OptionError for an idle pattern."""
    names = [link.name for group in channels.groups for link in group.producers]
    for pattern in (*options.include, *options.exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise OptionError(
                f"no node that starts removable channels is named like {pattern!r}; `onnxmerge inspect MODEL` lists them"
            )
    chosen, refusals = [], []
    for group in channels.groups:
        reason = _left_out(group, options)
        if reason:
            refusals += [Refusal(name, reason) for name in group.layers]
        else:
            chosen.append(group)
    return chosen, refusals


def _left_out(group: ChannelGroup, options: Options) -> str:
    names = [link.name for link in group.producers]
    if options.scope == "chains" and len(names) > 1:
        return f"--scope chains leaves groups with {len(names)} producers alone"
    if options.include and not _any_match(names, options.include):
        return "not named by --include"
    return "named by --exclude" if _any_match(names, options.exclude) else ""


def _any_match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
