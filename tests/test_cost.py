"""How often compressing runs the model: passes over the inputs that are solved on, as docs/cost.md states them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from running import chain, solve_consumers_alone

from onnxmerge import compress, sweep
from onnxmerge.data.balance import held
from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import inputs_for
from onnxmerge.execution.sessions import Session, open_session
from onnxmerge.execution.tensor_specs import batch_size
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import InputOptions, PruningOptions, silent
from onnxmerge.pruning.group_selection import prunable_groups
from onnxmerge.pruning.layer_statistics import layer_statistics_of
from onnxmerge.pruning.sensitivity import PASSES as SENSITIVITY_PASSES
from onnxmerge.pruning.sensitivity import measure_sensitivities

MODEL, INPUTS = "digits-resnet.onnx", 48
PASSES = {
    "ratio": ({"ratio": 0.5}, 7.5),
    "prune": ({"ratio": 0.5, "method": "prune"}, 0.2),
    "size": ({"target": "macs=0.5"}, 10.5),
    "fidelity": ({"fidelity": 0.9}, 36),
}
PRODUCERS = 0.5
"""Passes of a candidate that changes of producers add."""
POINT = 15
"""Passes of a further point of a sweep, of which eleven are the check, on 256 inputs."""


@cache
def layers(model: bytes | Path) -> int:
    proto = onnx.ModelProto.FromString(model) if isinstance(model, bytes) else onnx.load(model)
    return sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in proto.graph.node)


def counting(done: list[int]) -> Callable[[Session, dict[str, np.ndarray]], dict[str, Any]]:
    """`Session.run` that counts inputs times layers."""
    run = Session.run

    def counted(session: Session, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
        is_model = isinstance(session.handle, onnxruntime.InferenceSession)  # else outputs that were recorded
        done[0] += is_model * batch_size(feeds) * layers(session.reopen.args[0])  # type: ignore[attr-defined]
        return run(session, feeds)

    return counted


@pytest.fixture
def passes(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """How often the model was run so far on all `INPUTS`, by layers."""
    done = [0]
    monkeypatch.setattr(Session, "run", counting(done))
    whole = INPUTS * layers(models_folder / MODEL)
    return lambda: done[0] / whole


@pytest.mark.parametrize(("options", "most"), PASSES.values(), ids=PASSES.keys())
def test_passes_of_a_command(
    options: dict[str, Any], most: float, models_folder: Path, tmp_path: Path, passes: Callable[[], float]
) -> None:
    compress(models_folder / MODEL, tmp_path / "out.onnx", **options, samples=INPUTS, verify=False, threads=1)
    assert passes() <= most, passes()


def test_changes_of_producers_add_a_part_of_a_pass(
    models_folder: Path, tmp_path: Path, passes: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer whose rows change is run once more, or twice where the change is taken back."""
    taken = [0.0]
    for is_updated in (True, False):
        if not is_updated:
            solve_consumers_alone(monkeypatch)
        compress(models_folder / MODEL, tmp_path / "out.onnx", ratio=0.5, samples=INPUTS, verify=False, threads=1)
        taken.append(passes() - sum(taken))
    assert 0.0 < taken[1] - taken[2] <= PRODUCERS, taken


@pytest.mark.parametrize("groups", [8, 40])
def test_sensitivities_cost_the_same_whatever_the_number_of_groups(
    groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a chain: its measurements take `PASSES` at most, the reference on the same inputs is run twice."""
    done = [0]
    monkeypatch.setattr(Session, "run", counting(done))
    source = chain(tmp_path, (16,) * groups)
    analysed = analyse_model(source)
    inputs = inputs_for(open_session(source, optimise=False, threads=1), analysed.shapes, InputOptions(), 384)
    statistics = layer_statistics_of(analysed, inputs, 1, silent)
    done[0] = 0
    measure_sensitivities(statistics, prunable_groups(analysed.channels, PruningOptions())[0], PruningOptions())
    assert 0.5 < done[0] / (384 * (groups + 1)) <= SENSITIVITY_PASSES + 0.5


def test_the_points_of_a_sweep_share_statistics_and_sensitivities(models_folder: Path, passes: Callable[[], float]) -> None:
    settings = {"samples": INPUTS, "threads": 1, "bench": False, "round_to": 1}
    sweep(models_folder / MODEL, "macs=0.6", **settings)
    one = passes()
    sweep(models_folder / MODEL, "macs=0.6,0.5,ratio=0.5", **settings)
    assert passes() - one <= one + 2 * POINT, (one, passes())


def test_inputs_are_made_once() -> None:
    made: list[int] = []

    def take(indices: np.ndarray) -> dict[str, np.ndarray]:
        made.extend(indices.tolist())
        return {"x": np.stack([np.full(3, index, np.float32) for index in indices])}

    inputs = held(Inputs(5, "", None, np.array([4, 2, 9, 7, 1]), take, by_row=True))
    for size in (2, 3, 5):
        np.testing.assert_array_equal(np.concatenate([feeds["x"][:, 0] for feeds in inputs.batches(size)]), inputs.indices)
    assert made == inputs.indices.tolist()
