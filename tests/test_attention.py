"""Attention in the forms of exports: widths of heads, what is left is the masked reference, and the best basis of the logits."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from random_graphs import Generated
from random_graphs.faults import prune_outcome
from running import analysed, built, run, weights_of
from topologies import TOPOLOGIES

from onnxmerge.algorithms.elimination import eliminate
from onnxmerge.algorithms.product_bases import product_basis
from onnxmerge.pipeline.compress import compress

pytestmark = pytest.mark.usefixtures("harmless_models")

HEADS = {"attention-llama": 4}
FIXED = {"attention-vit", "attention-module", "attention-module-any-batch", "attention-block"}
"""Those whose number of tokens is a literal."""
ROWS = [name for name in TOPOLOGIES if name.startswith("attention-")]
OPTIONS = {"verify": False, "bench": False, "threads": 1, "round_to": 1}
SOLVED = {"method": "reconstruct", "input_shape": {"x": (1, 5, 16)}, **OPTIONS}


@pytest.mark.parametrize("name", ROWS)
def test_every_head_loses_its_share(name: str, tmp_path: Path) -> None:
    """Six of eight channels of query, key and value stay in every head, and those that the output projection reads."""
    compress(built(TOPOLOGIES[name]), tmp_path / "small.onnx", ratio=0.3, method="prune", **OPTIONS)
    shapes = {key: value.shape for key, value in weights_of(onnx.load(tmp_path / "small.onnx")).items()}
    count, rotary = HEADS.get(name, 2), 6
    widths = {"query": count * rotary, "key": 2 * rotary, "value": 2 * 6, "qkv": 3 * 2 * 6, "dense": count * 6, "projection": 12}
    found = {
        layer: [extent for key, shape in shapes.items() if key.startswith(f"{layer}_w") for extent in shape] for layer in widths
    }
    assert found["qkv"] or (found["query"] and found["key"])
    assert all(not shape or widths[layer] in shape for layer, shape in found.items())


@pytest.mark.parametrize("name", ROWS)
def test_what_is_left_is_the_masked_reference(name: str, tmp_path: Path) -> None:
    tokens = 5 if name in FIXED else ("L", Fraction(1))
    batch = 2 if name == "attention-module" else ("N", Fraction(1))
    outcome = prune_outcome(Generated(1, built(TOPOLOGIES[name]), {"x": (batch, tokens, 16)}), tmp_path)
    assert outcome.kind == "done", outcome.text


def test_logits_lose_no_more_than_their_smallest_singular_values(tmp_path: Path) -> None:
    """Queries against centred keys of all inputs, head by head: a matrix, whose best approximation of rank 4 numpy finds."""
    model = built(TOPOLOGIES["attention-bert"])
    product = next(node for node in model.graph.node if node.op_type == "Div").input[0]
    factors = next(tuple(node.input) for node in model.graph.node if node.output[0] == product)
    feeds = {"x": np.random.default_rng(0).normal(size=(40, 5, 16)).astype(np.float32)}
    options = {"ratio": 0.5, "include": ("query",), "calibration": feeds, **SOLVED}
    result = compress(model, tmp_path / "small.onnx", **options)
    assert [(group.name, group.method, group.kept) for group in result.groups] == [("query", "reconstruct", 8)]
    whole, small = (logits_of(each, feeds, factors) for each in (model, onnx.load(tmp_path / "small.onnx")))
    for head in range(2):
        values = np.linalg.svd(whole[head], compute_uv=False)
        lost = np.square(whole[head] - small[head]).sum()
        np.testing.assert_allclose(lost, np.square(values[4:]).sum(), rtol=1e-3)


def logits_of(model: onnx.ModelProto, feeds: dict[str, np.ndarray], factors: tuple[str, ...]) -> list[np.ndarray]:
    """For each head, of every query with every key of which the mean over its input is subtracted."""
    query, key = (value.astype(np.float64) for value in run(model, feeds, factors)[-2:])
    key = key.swapaxes(2, 3)
    key = key - key.mean(2, keepdims=True)
    rows = [each.transpose(1, 0, 2, 3).reshape(2, -1, each.shape[-1]) for each in (query, key)]
    return [one @ other.T for one, other in zip(*rows, strict=True)]


def test_shared_keys_take_one_basis() -> None:
    """The loss over all heads that share a key is that of the sum of their queries' moments."""
    rng = np.random.default_rng(1)
    queries, key = rng.normal(size=(3, 50, 6)), rng.normal(size=(70, 6))
    basis = product_basis(sum(each.T @ each for each in queries), key.T @ key, damping=0.0)
    for count in (2, 5):
        lost = sum(
            np.square(each @ key.T - each @ basis.query[:, :count] @ (key @ basis.key[:, :count]).T).sum() for each in queries
        )
        values = np.linalg.svd(np.concatenate(queries) @ key.T, compute_uv=False)
        np.testing.assert_allclose(lost, np.square(values[count:]).sum(), rtol=1e-9)
        np.testing.assert_allclose(basis.share[count:].sum(), lost / np.square(values).sum(), rtol=1e-9)


def test_what_nothing_makes_good_costs_the_sum_over_all_pairs() -> None:
    """In every order, also over the blocks in which removals are applied; one of each row at a time."""
    root = np.random.default_rng(2).uniform(size=(150, 120))
    products, rows = root.T @ root, np.arange(120) % 2
    found = eliminate([(None, products)], conv_groups=rows)
    for count in (1, 2, 60, 101):
        gone = found.order[:count]
        np.testing.assert_allclose(found.cost[count - 1], products[np.ix_(gone, gone)].sum() / products.sum(), rtol=1e-9)
        assert abs(np.bincount(rows[gone], minlength=2) @ [1, -1]) <= 1


def test_a_rotation_is_not_repaired_and_pairs_go_together(tmp_path: Path) -> None:
    model = built(TOPOLOGIES["attention-llama"])
    group = next(each for each in analysed(model, tmp_path).channels.groups if each.products)
    assert group.size == 4
    feeds = {"x": np.random.default_rng(0).normal(size=(8, 5, 16)).astype(np.float32)}
    result = compress(model, tmp_path / "small.onnx", ratio=0.5, calibration=feeds, **SOLVED)
    methods = {group.name: group.method for group in result.groups}
    assert methods == {group.name: "prune", "value": "reconstruct", "gate": "reconstruct"}
