"""Synthetic texts of language models: what the model predicts for each place from the places before it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxmerge.data.first_layers import input_properties
from onnxmerge.data.next_tokens import SWEEPS
from onnxmerge.data.selection import inputs_for
from onnxmerge.execution.sessions import open_session
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import InputOptions

IDS = 7
LENGTH = SWEEPS


def language_model(path: Path, mixing: np.ndarray, following: np.ndarray) -> Path:
    """Scores (batch, length, ids) = mixing (length, length) @ following[tokens]."""
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        text (int64[batch, {LENGTH}] tokens) => (float[batch, {LENGTH}, {IDS}] scores)
        {{ known = Gather(following, tokens)  scores = MatMul(mixing, known) }}""")
    for name, values in (("mixing", mixing), ("following", following)):
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(model, path)
    return path


def drawn(path: Path, count: int = 40) -> tuple[str, np.ndarray]:
    """What synthetic inputs are, and their tokens."""
    analysed, session = analyse_model(path), open_session(path, optimise=True)
    properties = input_properties(analysed.channels.facts)
    inputs = inputs_for(session, analysed.shapes, InputOptions(), count, properties)
    return inputs.description, np.concatenate([feeds["tokens"] for feeds in inputs.batches(9)])


def test_each_token_follows_the_one_before(tmp_path: Path) -> None:
    surely_the_next = 40.0 * np.roll(np.eye(IDS), 1, axis=1)
    description, tokens = drawn(language_model(tmp_path / "next.onnx", np.eye(LENGTH), surely_the_next))
    assert "that the model itself predicts" in description
    np.testing.assert_array_equal(tokens[:, 1:], (tokens[:, :-1] + 1) % IDS)
    assert len(np.unique(tokens[:, 0])) == IDS


def test_tokens_have_the_predicted_probabilities(tmp_path: Path) -> None:
    chances = np.random.default_rng(1).dirichlet(np.ones(IDS), size=IDS)
    _, tokens = drawn(language_model(tmp_path / "chances.onnx", np.eye(LENGTH), np.log(chances)), 1500)
    pairs = np.zeros((IDS, IDS))
    np.add.at(pairs, (tokens[:, :-1], tokens[:, 1:]), 1.0)
    found = pairs / pairs.sum(1, keepdims=True)
    np.testing.assert_allclose(found, chances, atol=5 * np.sqrt(0.25 / pairs.sum(1).min()))


@pytest.mark.parametrize("mixing", [np.ones((LENGTH, LENGTH)), np.eye(LENGTH)[::-1]], ids=["all", "backwards"])
def test_a_model_that_looks_ahead_gets_random_tokens(tmp_path: Path, mixing: np.ndarray) -> None:
    description, _ = drawn(language_model(tmp_path / "ahead.onnx", mixing, np.eye(IDS)))
    assert "predicts" not in description
