"""What the program does wrong with a random graph. Every check gives an outcome: done, refused with a reason, or a fault."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from running import run

from onnxmerge.errors import OnnxMergeError, Reason, Refusal
from onnxmerge.graph.layers import Consumer
from onnxmerge.graph.merge_validity import pre_activations
from onnxmerge.graph.product_factors import linear_factors
from onnxmerge.onnxio.export import export
from onnxmerge.pipeline.compress import compress
from onnxmerge.results import Compression

from .copies import Copies, analysed, with_copies
from .generate import Generated
from .masked_oracle import NotAPart, masked

TOLERANCE = 1e-4
"""Of outputs in float32 behind at most some forty layers: what rounding gave in thousands of graphs is below 2e-5."""
LOOSE = 2e-2
"""Of outputs behind layers that were solved with a ridge."""
CALIBRATION_DRAWS = 48
"""Draws of inputs that layers are solved on. Synthetic inputs match BatchNormalization, whose random statistics match nothing."""
FAULTS = ("wrong", "late refusal", "traceback", "untrue message")


@dataclass(frozen=True)
class Outcome:
    """What became of one model: "done", "refused", or one of `FAULTS`, with what was seen."""

    kind: str
    text: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether the program is at fault."""
        return self.kind in FAULTS


def compressed(graph: Generated, folder: Path, **options: object) -> tuple[onnx.ModelProto, Compression] | Outcome:
    """The smaller model and what the program says of it; an outcome where there is none."""
    target = folder / "out.onnx"
    try:
        sizes = {} if "calibration" in options else {"input_shape": graph.input_shape}
        result = compress(graph.model, target, verify=False, bench=False, provider="cpu", threads=1, **sizes, **options)
    except OnnxMergeError as error:
        return Outcome("late refusal" if "would not run" in str(error) or "ONNX" in str(error) else "refused", str(error))
    except Exception:
        return Outcome("traceback", traceback.format_exc())
    for refusal in result.refusals:
        if refusal.reason is Reason.DOES_NOT_RUN:
            return Outcome("late refusal", f"{refusal.where}: {refusal.text}")
    return onnx.load(target), result


def difference(
    reference: onnx.ModelProto, model: onnx.ModelProto, small: onnx.ModelProto, graph: Generated, tolerance: float = TOLERANCE
) -> str:
    """How the outputs of `small` differ from those of `reference`, "" where they do not.

    A second draw of inputs must differ too: where a rounding error meets a threshold (Greater, TopK), one output may jump.
    """
    for number in range(1 + graph.is_dynamic):
        for seed in (0, 1):
            feeds = graph.feeds(number, seed)
            expected, whole, found = (run(each, feeds) for each in (reference, model, small))
            if [(y.shape, y.dtype) for y in whole] != [(y.shape, y.dtype) for y in found]:
                return f"outputs are {[y.shape for y in found]}, not {[y.shape for y in whole]}"
            errors = [relative(*each) for each in zip(expected, whole, found, strict=True)]
            if max(errors) <= tolerance:
                break
        else:
            return f"relative error {max(errors):.2g} with sizes {number}"
    return ""


def relative(expected: np.ndarray, whole: np.ndarray, found: np.ndarray) -> float:
    """|y - y'| / |y|, L2; against the unpruned output where all that is expected is zeros."""
    expected, whole, found = (np.asarray(each, np.float64) for each in (expected, whole, found))
    is_finite = np.isfinite(expected)  # not everywhere: without some channels, a divisor may be zero
    if not np.array_equal(is_finite, np.isfinite(found)):
        return np.inf
    expected, whole, found = (each[is_finite] for each in (expected, whole, found))
    size = max(np.linalg.norm(expected), 1e-2 * np.linalg.norm(whole))
    return float(np.linalg.norm(expected - found) / (size or 1.0))


def prune_outcome(graph: Generated, folder: Path, **options: object) -> Outcome:
    """Channels leave by their norm; what is left must equal the masked reference."""
    ratio = (0.3, 0.5, 0.8)[graph.seed % 3]
    found = compressed(graph, folder, ratio=ratio, method="prune", **options)
    if isinstance(found, Outcome):
        return found
    small, _ = found
    try:
        onnx.checker.check_model(small, full_check=True)
        text = changed_interface(graph.model, small) or unlike_masked(graph.model, small, graph)
        if text:  # numbers behind a convolution may have gone into its weights
            simple = export(analysed(graph, folder).model)
            text = difference(simple, simple, graph.model, graph) or unlike_masked(simple, small, graph)
    except Exception as error:
        return Outcome("late refusal", f"the result is not valid or does not run: {error}")
    return Outcome("wrong", text) if text else Outcome("done")


def unlike_masked(model: onnx.ModelProto, small: onnx.ModelProto, graph: Generated) -> str:
    """How a smaller model differs from a reference with the same channels masked, "" where it does not."""
    try:
        return difference(masked(model, small, graph.feeds()), model, small, graph)
    except NotAPart as error:
        return str(error)


def changed_interface(model: onnx.ModelProto, small: onnx.ModelProto) -> str:
    """Which input or output is declared otherwise than before, "" for none."""
    constants = {tensor.name for tensor in (*model.graph.initializer, *small.graph.initializer)}
    for name in ("input", "output"):
        before, after = ([each for each in getattr(one.graph, name) if each.name not in constants] for one in (model, small))
        if [each.SerializeToString() for each in before] != [each.SerializeToString() for each in after]:
            return f"an {name} is declared otherwise than before"
    return ""


def merge_outcome(graph: Generated, folder: Path) -> Outcome:
    """Positive multiples leave: the outputs stay, or merging is refused with a reason."""
    copies = with_copies(graph, folder, equal=False)
    options = {"method": "merge", "plan": copies.plan, "threshold": 0.999}
    return copies_outcome(copies, folder, TOLERANCE, believes_in_multiples, **options)


def believes_in_multiples(copies: Copies, folder: Path, result: Compression) -> bool:
    """Whether what merging compares are multiples: where a bias is one number for all channels, they are not."""
    channels = analysed(copies.graph, folder).channels
    merged = {group.name for group in result.groups}
    for group in [group for group in channels.groups if group.name in merged]:
        found = pre_activations(channels, group)
        assert not isinstance(found, Refusal)
        rows = np.concatenate([found.scale[:, None] * found.rows, found.offset[:, None]], axis=1)
        bases, multiples, factors = copies.pairs[group.name]
        if not np.allclose(rows[multiples], factors[:, None] * rows[bases], rtol=1e-4, atol=1e-5):
            return False
    return True


def reconstruct_outcome(graph: Generated, folder: Path) -> Outcome:
    """Copies leave: the outputs stay as far as the ridge allows, whatever lies between."""
    copies = with_copies(graph, folder, equal=True)
    draws = [graph.feeds(seed=number) for number in range(2, 2 + CALIBRATION_DRAWS)]
    calibration = {name: np.concatenate([draw[name] for draw in draws]) for name in graph.inputs}
    options = {"method": "reconstruct", "plan": copies.plan, "calibration": calibration}
    return copies_outcome(copies, folder, LOOSE, are_solved_copies, **options)


def are_solved_copies(copies: Copies, folder: Path, result: Compression) -> bool:
    """Whether every consumer reads equal values from a channel and its copy, and every group was solved."""
    if any(group.method != "reconstruct" for group in result.groups):
        return False  # consumers that share a weight are not solved
    channels = analysed(copies.graph, folder).channels
    if any(not link.layer.is_linear for group in channels.groups for link in group.producers):
        return False  # what units of a state read of one another is not solved
    products = [(group, product) for group in channels.groups for product in group.products]
    if any(linear_factors(channels, group, product) is None for group, product in products):
        return False  # queries and keys that nothing makes good
    consumers = [(group.name, link) for group in channels.groups if group.name in copies.pairs for link in group.consumers]
    names = tuple(dict.fromkeys(link.layer.source for _, link in consumers))
    feeds = copies.graph.feeds()
    seen = dict(zip(names, run(copies.graph.model, feeds, names)[len(copies.graph.model.graph.output) :], strict=True))
    return all(are_multiples(seen[link.layer.source], link, *copies.pairs[name]) for name, link in consumers)


def are_multiples(values: np.ndarray, link: Consumer, bases: np.ndarray, copies: np.ndarray, factors: np.ndarray) -> bool:
    """Whether a consumer reads factor times the same from a copy as from its base."""
    values = np.moveaxis(values, link.layer.input_axis, 0)
    one, other = (values[link.positions[each]] for each in (bases, copies))
    return bool(np.allclose(other, one * factors.reshape(-1, *(1,) * (one.ndim - 1)), rtol=1e-3, atol=1e-4))


def limit_outcome(graph: Generated, folder: Path) -> Outcome:
    """What is said to be the least that can stay: no ratio may go below."""
    found = compressed(graph, folder, target="params=0.01", method="prune", samples=16)
    if isinstance(found, Outcome):
        return found
    _, result = found
    said = [re.search(r"at least ([0-9.]+)%", warning) for warning in result.warnings]
    least = max((float(match[1]) for match in said if match), default=0.0)
    other = compressed(graph, folder, ratio=0.99, method="prune")
    if isinstance(other, Outcome):
        return other
    share = 100 * other[1].after.parameters / other[1].before.parameters
    text = f"at least {least}% must stay, but a ratio of 0.99 leaves {share:.1f}%"
    return Outcome("untrue message", text) if share < least - 0.1 else Outcome("done")


def copies_outcome(copies: Copies, folder: Path, tolerance: float, is_exact: Callable, **options: object) -> Outcome:
    """What became of a model whose copies were to be removed; `is_exact`: whether nothing may be lost then."""
    if not copies.plan:
        return Outcome("nothing to copy")
    found = compressed(copies.graph, folder, **options)
    if isinstance(found, Outcome):
        return found
    small, result = found
    if not result.groups:
        return Outcome("refused", "; ".join(refusal.text for refusal in result.refusals))
    text = not_valid(small) or changed_interface(copies.graph.model, small)
    if text:
        return Outcome("late refusal", text)
    text = difference(copies.graph.model, copies.graph.model, small, copies.graph, tolerance)
    if not text:
        return Outcome("done")
    return Outcome("wrong", text) if is_exact(copies, folder, result) else Outcome("approximate", text)


def not_valid(small: onnx.ModelProto) -> str:
    """What the checker says, "" for nothing."""
    try:
        onnx.checker.check_model(small, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error)
    return ""


OUTCOMES: dict[str, Callable[[Generated, Path], Outcome]] = {
    "prune": prune_outcome,
    "merge": merge_outcome,
    "reconstruct": reconstruct_outcome,
    "limit": limit_outcome,
    "heads": partial(prune_outcome, whole_heads=True),
}
"""The checks, by the method that they try."""
