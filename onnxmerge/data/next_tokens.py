"""Texts that a language model predicts itself, in the place of random tokens.

Random tokens lead a language model where its text never does. It is asked for better ones, as LLM-QAT does (Liu et al., arXiv
2305.17888), but for all positions of a window at once: a sweep replaces every token by one drawn from the model's prediction for
its place, and sweeps are repeated. The random number of a place stays the same, so that after k sweeps the first k tokens are
those that drawing one after the other gives (Jacobi's method: Song et al., "Accelerating feedforward computation via parallel
nonlinear equation solving", ICML 2021), and the others fit those shortly before them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxmerge.data.feed_sources import Indices
from onnxmerge.data.inputs import Inputs
from onnxmerge.execution.sessions import Session

# A byte model of 0.46 M parameters predicts 65.7 % of the next bytes. With half of its widths, solved on 96 windows, 49.6 % where
# these hold random bytes, and after 4, 8, 16 and 32 sweeps 54.0, 55.3, 56.1 and 56.0 %; 57.4 % with bytes drawn one after the
# other (128 runs), 57.5 % with real text. Models that know many ids are large, and a sweep takes them long.
SWEEPS, SWEEPS_OF_MANY, MANY_IDS = 16, 4, 4096
WINDOWS = 48
"""At least, to solve on, and to compare outputs on: each gives as many samples as it has tokens."""
BLOCK = 256
"""Ids whose probabilities are summed before the one is looked for: ten times as fast as all cumulated sums of 50,000."""
SAME = 1e-3
"""Relative difference of predictions that count as the same."""


def predicted_input(shapes: Mapping[str, Sequence[int]], id_limits: Mapping[str, int], output: str) -> str | None:
    """The input of ids (batch, length) for each of which the first output has a number for every id; None where there is none."""
    found = [
        name
        for name, limit in id_limits.items()
        if len(shapes.get(name, ())) == 2 and shapes[name][1] > 2 and tuple(shapes.get(output, ())) == (*shapes[name], limit)
    ]
    return found[0] if len(found) == 1 else None


def sweeps_for(ids: int) -> int:
    """How often all tokens are replaced, by how many ids a model knows."""
    return SWEEPS if ids <= MANY_IDS else SWEEPS_OF_MANY


def with_predicted_tokens(inputs: Inputs, session: Session, name: str, sweeps: int, seed: int) -> Inputs:
    """Windows of tokens as a model predicts them from those before.

    Parameters
    ----------
    inputs : Inputs
        Synthetic, random tokens.
    session : Session
        The model; its first output is (batch, length, ids), the larger the likelier the id is the next one.
    name : str
        The model's input of tokens (batch, length).
    sweeps : int
        How often all tokens are replaced.
    seed : int
        Of the random numbers.
    """

    def take(indices: Indices) -> dict[str, np.ndarray]:
        feeds = inputs.take(indices)
        tokens = feeds[name]
        chances = [np.random.default_rng([seed, SWEEPS, int(row)]).random(tokens.shape[1] - 1) for row in indices]
        for _ in range(sweeps):
            predicted = _predictions(session, {**feeds, name: tokens})
            following = [drawn(scores[:-1], each) for scores, each in zip(predicted, chances, strict=True)]
            tokens = np.concatenate([tokens[:, :1], np.stack(following).astype(tokens.dtype)], axis=1)
        return {**feeds, name: tokens}

    return replace(inputs, take=take, description=f"{inputs.description} that the model itself predicts")


def drawn(scores: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """Ids drawn from softmax(scores): the first whose cumulated probability reaches a chance.

    Parameters
    ----------
    scores : ndarray of shape (..., ids)
    chances : ndarray of shape (...)
        In [0, 1).

    Returns
    -------
    ndarray of shape (...), int64

    Examples
    --------
    >>> drawn(np.log([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]), np.array([0.4, 0.6])).tolist()
    [0, 1]
    """
    weights = np.exp(scores - scores.max(-1, keepdims=True)).reshape(-1, scores.shape[-1])
    starts = np.arange(0, weights.shape[1], BLOCK)
    sums = np.add.reduceat(weights, starts, axis=1).cumsum(1, dtype=np.float64)
    wanted = np.reshape(chances, -1) * sums[:, -1]
    block = np.minimum((sums < wanted[:, None]).sum(1), len(starts) - 1)
    wanted -= np.where(block > 0, sums[np.arange(len(sums)), block - 1], 0.0)
    ids = np.minimum(starts[block][:, None] + np.arange(BLOCK), weights.shape[1] - 1)
    within = np.take_along_axis(weights, ids, 1).cumsum(1, dtype=np.float64)
    position = np.minimum((within < wanted[:, None]).sum(1), BLOCK - 1)
    return np.asarray(ids[np.arange(len(ids)), position].reshape(scores.shape[:-1]))


def _predictions(session: Session, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(next(iter(session.run(feeds).values())))


def looks_back_only(session: Session, feeds: Mapping[str, np.ndarray], name: str) -> bool:
    """Whether no prediction depends on later tokens: others in the second half leave those of the first half as they are."""
    tokens = feeds[name]
    half = tokens.shape[1] // 2
    other = np.concatenate([tokens[:, :half], np.broadcast_to(tokens[:, :1], tokens[:, half:].shape)], axis=1)
    before, after = (_predictions(session, {**feeds, name: each})[:, :half] for each in (tokens, other))
    return bool(np.abs(before - after).max() <= SAME * np.abs(before).max())
