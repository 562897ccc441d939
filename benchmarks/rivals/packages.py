"""Other packages on the same weights: onnxsim and Torch-Pruning. Both are optional: `pip install onnxmerge[rivals]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxmerge.graph.rewrite import Removal
from rivals.cases import Case, NotRun, outputs

CALIBRATION = 500
CLOSE = 1e-3
"""Largest relative difference of what PyTorch and ONNX Runtime compute."""


def write_onnxsim(case: Case, settings: dict[str, Any], target: Path) -> None:
    """onnxsim: `simplify`, which folds BatchNormalization, then `apply_structured_pruning`, and its closed-form fine-tuning."""
    import onnxsim  # noqa: PLC0415  # optional
    from onnxsim.pruning import apply_structured_pruning  # noqa: PLC0415

    if case.ratio is None:
        raise NotRun("takes one sparsity for all layers")
    simple, _ = onnxsim.simplify(onnx.load(case.path))
    pruned = apply_structured_pruning(simple, sparsity=case.ratio, importance_norm=settings["importance_norm"])
    if [list(each.dims) for each in pruned.graph.initializer] == [list(each.dims) for each in simple.graph.initializer]:
        raise NotRun("removes nothing from this model")
    if settings.get("finetune"):
        images = case.inputs(CALIBRATION)
        pruned = onnxsim.apply_pruning_finetune(simple, pruned, calibration_data=[{simple.graph.input[0].name: images}])
    onnx.save(pruned, target)


def write_torch_pruning(case: Case, settings: dict[str, Any], target: Path) -> None:
    """Torch-Pruning: its dependency graph and importance on the network rebuilt in PyTorch, the counts of the case.

    The channels that it keeps are taken out of the ONNX file too, and both results must compute the same.
    """
    import torch  # noqa: PLC0415  # optional
    import torch_pruning as tp  # noqa: PLC0415

    from rivals.onnx_to_torch import rebuilt  # noqa: PLC0415

    network, images = rebuilt(onnx.load(case.path)), case.inputs(16)
    _same(outputs(case.path, images), network, images)
    graph = tp.DependencyGraph().build_dependency(network, example_inputs=torch.from_numpy(images[:1]))
    importance = _importance(tp, settings["importance"])
    removals = []
    for group in case.groups:
        layer = network.layer(group.producers[0].name)
        prune = tp.prune_linear_out_channels if isinstance(layer, torch.nn.Linear) else tp.prune_conv_out_channels
        scores = importance(graph.get_pruning_group(layer, prune, list(range(group.size)))).detach().numpy()
        order = np.argsort(-scores, kind="stable")
        count = case.counts[group.name]
        graph.get_pruning_group(layer, prune, np.sort(order[count:]).tolist()).prune()
        removals.append(Removal(group, np.sort(order[:count]), "torch-pruning"))
    case.write(removals, {}, target)
    _same(outputs(target, images), network, images)


def _importance(tp: Any, name: str) -> Any:
    if name == "l1":
        return tp.importance.MagnitudeImportance(p=1, group_reduction="first")
    return tp.importance.GroupMagnitudeImportance(p=2)


def _same(expected: np.ndarray, network: Any, images: np.ndarray) -> None:
    import torch  # noqa: PLC0415

    with torch.no_grad():
        found = network(torch.from_numpy(images)).numpy()
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    if difference > CLOSE:
        raise ValueError(f"PyTorch and ONNX Runtime differ by {difference:.1e} of the largest output")
