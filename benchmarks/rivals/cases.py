"""The networks of the comparison, the groups that every method prunes, and how many channels these keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from digits import MODELS
from trained_networks import CIFAR, FOLDED, LENET, PAPER_WIDTHS, RESNET, TEXT, VGG, Network, trained

from onnxmerge import PruningOptions
from onnxmerge.evaluation.node_views import read_graph_view
from onnxmerge.execution.sessions import ModelSource, open_session
from onnxmerge.graph.analysed_model import AnalysedModel, analyse_model
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.onnxio.export import export
from onnxmerge.pipeline.candidates import candidate_of
from onnxmerge.pruning.decision import PruningDecision
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.importance import kept_channels
from onnxmerge.pruning.kept_counts import kept_count

LAYERS = ("Conv", "Gemm", "MatMul")


class NotRun(Exception):
    """Why a method gives no model for a case."""


@dataclass(frozen=True, eq=False)
class Case:
    """A network, and the share of the channels that leaves every group of a scope.

    Attributes
    ----------
    network : Network
        The model and its images.
    share : str
        What is removed, as the table says it.
    ratio : float or None
        The share of every group; None for the widths of the neuron merging paper.
    scope : Mapping[str, Any]
        Options of the program that name the groups.
    folder : Path or None
        Where the model is, if not beside the project.
    instead_of : Network or None
        The network beside the project in whose place this one is measured where that one is absent.
    """

    network: Network
    share: str
    ratio: float | None
    scope: Mapping[str, Any]
    folder: Path | None = None
    instead_of: Network | None = None

    @property
    def is_present(self) -> bool:
        """Whether the model and its images are at hand."""
        return self.path.exists() and self.network.has_images

    @property
    def is_needed(self) -> bool:
        """Whether no network that goes before it is at hand."""
        return self.instead_of is None or not self.instead_of.path.exists()

    @property
    def path(self) -> Path:
        """The file of the model."""
        return self.network.path if self.folder is None else self.folder / self.network.path.name

    @cached_property
    def analysed(self) -> AnalysedModel:
        """The model, read and analysed."""
        return analyse_model(self.path)

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """The groups that shrink."""
        if self.ratio is not None:
            return self._found
        return [group for group, width in zip(self._found, PAPER_WIDTHS, strict=False) if width < group.size]

    @cached_property
    def _found(self) -> list[ChannelGroup]:
        return prunable_groups(self.analysed.channels, PruningOptions(ratio=self.ratio or 0.5, **self.scope))[0]

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many channels every group keeps, by its name."""
        if self.ratio is None:
            published = dict(zip((group.name for group in self._found), PAPER_WIDTHS, strict=False))
            return {group.name: published[group.name] for group in self.groups}
        return {group.name: kept_count(group, self.ratio) for group in self.groups}

    def options(self) -> dict[str, Any]:
        """Options of the program that give these counts."""
        if self.ratio is None:
            return {"plan": self.counts}
        return {"ratio": self.ratio, "round_to": 1, **self.scope}

    def kept(self, group: ChannelGroup, criterion: str) -> np.ndarray:
        """The channels of a group that a criterion of their weights keeps, as `prune` has them."""
        return kept_channels(group, self.counts[group.name], PruningOptions(ratio=self.ratio or 0.5, criterion=criterion))

    def write(self, removals: list[Removal], replacements: Mapping[str, Replacement], target: Path) -> None:
        """Write the model that keeps these channels."""
        decision = PruningDecision(tuple(removals), dict(replacements), ())
        onnx.save(export(candidate_of(self.analysed, decision).model), target)

    def inputs(self, count: int) -> np.ndarray:
        """Calibration inputs, of which no labels are known."""
        return self.network.inputs("calibration", count)


def absorbed(removals: Sequence[Removal]) -> dict[str, Replacement]:
    """Consumers with the scaling matrices of removals absorbed, whatever stands in these; by key of the layer."""
    replacements: dict[str, Replacement] = {}
    for removal in removals:
        if removal.scaling is None:
            continue
        change = partial(mixed, kept=removal.kept, scaling=removal.scaling)
        for consumer in removal.group.consumers:
            before = replacements.get(consumer.key)
            weight = consumer.layer.stored_weight if before is None else before.weight
            replacements[consumer.key] = Replacement(consumer.with_columns(weight, change))
    return replacements


def mixed(columns: np.ndarray, kept: np.ndarray, scaling: np.ndarray) -> np.ndarray:
    """Columns (out, n, positions) of which those of the kept channels are V Z; scaling Z (n, k), which may be dense."""
    columns[:, kept] = np.moveaxis(np.tensordot(columns, scaling, axes=(1, 0)), 2, 1)
    return columns


def outputs(model: ModelSource, inputs: np.ndarray, threads: int | None = 1) -> np.ndarray:
    """The first output for each input, in calls of 100."""
    session = open_session(model, optimise=True, threads=threads)
    calls = ({session.inputs[0].name: inputs[at : at + 100]} for at in range(0, len(inputs), 100))
    return np.concatenate([next(iter(session.run(feeds).values())) for feeds in calls])


def widths(model: ModelSource) -> list[tuple[int, ...]]:
    """The shape of the weight of every layer, in the order of the graph, transposed where it is stored so."""
    layers = read_graph_view(model, str(model) if isinstance(model, Path) else "a model").layers
    return [tuple(sorted(shapes[0])) for operator, shapes in layers if operator in LAYERS and shapes and len(shapes[0]) > 1]


def _cases() -> list[Case]:
    def uniform(network: Network, ratios: tuple[float, ...], **rest: Any) -> list[Case]:
        of_case = {name: rest.pop(name) for name in ("folder", "instead_of") if name in rest}
        what = rest.pop("what", "")
        return [Case(network, f"{ratio:.0%}{what}", ratio, rest, **of_case) for ratio in ratios]

    transformer, ratios = Network("cifar-vit", VGG.images, CIFAR), (0.3, 0.5, 0.7)
    convolutions = {"exclude": ("/classifier*",)}
    lenet, vgg, resnet = trained("lenet-300-100", "fashion-mnist"), trained("vgg-16", "cifar10"), trained("resnet-56", "cifar10")
    return [
        *uniform(LENET, (0.5, 0.7, 0.8)),
        *uniform(lenet, (0.5, 0.7, 0.8), instead_of=LENET),
        Case(VGG, "the paper's", None, convolutions),
        *uniform(VGG, ratios, **convolutions),
        Case(vgg, "the paper's", None, convolutions, instead_of=VGG),
        *uniform(vgg, ratios, **convolutions, instead_of=VGG),
        *uniform(RESNET, ratios, scope="chains"),
        *uniform(FOLDED, ratios, scope="chains"),
        *uniform(resnet, ratios, scope="chains", instead_of=RESNET),
        *uniform(trained("resnet-56", "cifar10", folded=True), ratios, scope="chains", instead_of=FOLDED),
        *uniform(trained("wrn-40-4", "cifar10"), ratios, scope="chains"),
        Case(trained("vgg-16", "cifar100"), "the paper's", None, convolutions),
        *uniform(trained("vgg-16", "cifar100"), ratios, **convolutions),
        *uniform(trained("resnet-56", "cifar100"), ratios, scope="chains"),
        *uniform(trained("wrn-40-4", "cifar100"), ratios, scope="chains"),
        *uniform(transformer, ratios, include=("*/fc1/*",), folder=MODELS),
        *uniform(transformer, (0.3, 0.5), what=" and attention", folder=MODELS),
        *uniform(TEXT, (0.3, 0.5), folder=MODELS),
    ]


CASES = _cases()
