"""Moments of the factors of products of two computed tensors: of queries and keys."""

from dataclasses import dataclass

import numpy as np

from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.channel_propagation import Product
from onnxmerge.graph.product_factors import LinearFactor, linear_factors
from onnxmerge.onnxio import surgeon as gs

_SAMPLES = 512  # inputs; of each all pairs of positions count
# Operators between logits and their Softmax.
_BEFORE_SOFTMAX = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Reshape"})


@dataclass(frozen=True, eq=False)
class ProductMoments:
    """By row (head) of a product, float64.

    Attributes
    ----------
    query, key : ndarray of shape (rows, k, k)
        Second moments of the left factor, and of the right one, whose mean over the positions of an input is subtracted where a
        Softmax over these follows.
    factors : tuple of LinearFactor or None
        Query and key as layers write them, where these can take in a new basis.
    logits : ndarray of shape (rows, k, k)
        E (q_a k_a)(q_b k_b) for channels a and b, over all pairs of positions of an input: what is lost when some channels go and
        nothing makes it good is the sum over these.
    """

    query: np.ndarray
    key: np.ndarray
    logits: np.ndarray
    factors: tuple[LinearFactor, LinearFactor] | None


def product_moments(run: LayerwiseRun, channels: Channels, group: ChannelGroup, product: Product) -> ProductMoments:
    """Moments over the inputs of a run that stands at the product."""
    rows, centred = product.factors[0].shape[:-1], _meets_softmax(channels, product.node)
    totals = [np.zeros((int(np.prod(rows)), *product.ids.shape[1:] * 2)) for _ in range(3)]
    count = 0
    for batch in range(run.batch_count):
        if count >= _SAMPLES:
            break
        left, right = (
            _by_row(np.asarray(values, np.float64), terms, product)
            for values, terms in zip(_factors(run, batch, product), product.terms, strict=False)
        )
        left, right = _repeated(left, right)
        if centred:
            right = right - right.mean(-2, keepdims=True)
        query, key = (each.swapaxes(-1, -2) @ each / each.shape[-2] for each in (left, right))
        for total, part in zip(totals, (query, key, query * key), strict=True):
            total += part.sum(0)
        count += len(query)
    query, key, logits = (total / max(count, 1) for total in totals)
    return ProductMoments(query, key, logits, linear_factors(channels, group, product))


def _factors(run: LayerwiseRun, batch: int, product: Product) -> list[np.ndarray]:
    """The left and the right factor, each head of a whole attention on an axis of its own."""
    values = [run.tensor(batch, tensor.name) for tensor in product.node.inputs[:2]]
    return [each.laid_out(value) for each, value in zip(product.heads, values, strict=True)] if product.heads else values


def _by_row(values: np.ndarray, terms: str, product: Product) -> np.ndarray:
    """(inputs, rows, positions, k) of a factor; axes that the channels do not depend on are inputs."""
    shared = [letter for letter in product.terms[2] if all(letter in each for each in product.terms[:2])]
    extents = dict(zip(shared, product.factors[0].shape[:-1], strict=True))
    order = [letter for letter in shared if extents[letter] == 1], [letter for letter in shared if extents[letter] > 1]
    present = [[letter for letter in letters if letter in terms] for letters in order]
    own = [letter for letter in terms if letter not in shared and letter != product.letter]
    moved = values.transpose([terms.index(letter) for letter in (*present[0], *present[1], *own, product.letter)])
    sizes = [int(np.prod([values.shape[terms.index(letter)] for letter in letters])) for letters in (*present, own)]
    return moved.reshape(*sizes, values.shape[terms.index(product.letter)])


def _repeated(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with as many inputs and rows; the positions differ."""
    leading = np.broadcast_shapes(left.shape[:2], right.shape[:2])
    return np.broadcast_to(left, (*leading, *left.shape[2:])), np.broadcast_to(right, (*leading, *right.shape[2:]))


def _meets_softmax(channels: Channels, node: gs.Node) -> bool:
    """Whether a Softmax over the last axis reads the logits, but for masks and scales."""
    if node.op in ("Attention", "MultiHeadAttention"):
        return not node.attrs.get("softcap", 0.0)
    tensor = node.outputs[0]
    while len(tensor.outputs) == 1:
        reader = tensor.outputs[0]
        if reader.op == "Softmax":
            rank = len(channels.shape(tensor) or ())
            return int(reader.attrs.get("axis", -1)) in (-1, rank - 1)
        if reader.op not in _BEFORE_SOFTMAX:
            return False
        tensor = reader.outputs[0]
    return False
