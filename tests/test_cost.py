"""How often compressing runs the model: passes over the inputs that are solved on, as docs/cost.md states them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxmerge import compress
from onnxmerge.data.balance import held
from onnxmerge.data.inputs import Inputs
from onnxmerge.execution.sessions import Session
from onnxmerge.execution.tensor_specs import batch_size

INPUTS = 48
PASSES = {
    "ratio": ({"ratio": 0.5}, 9.2),
    "prune": ({"ratio": 0.5, "method": "prune"}, 0.2),
    "size": ({"target": "macs=0.5"}, 28),
    "fidelity": ({"fidelity": 0.9}, 80),
}


def layers(model: onnx.ModelProto) -> int:
    return sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in model.graph.node)


@pytest.mark.parametrize(("options", "most"), PASSES.values(), ids=PASSES.keys())
def test_passes_of_a_command(
    options: dict[str, Any], most: float, models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = models_folder / "digits-resnet.onnx"
    run, done = Session.run, [0]

    def counted(session: Session, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
        model = session.reopen.args[0]  # type: ignore[attr-defined]
        proto = onnx.ModelProto.FromString(model) if isinstance(model, bytes) else onnx.load(model)
        done[0] += batch_size(feeds) * layers(proto)
        return run(session, feeds)

    monkeypatch.setattr(Session, "run", counted)
    compress(source, tmp_path / "out.onnx", **options, samples=INPUTS, verify=False, threads=1)
    assert done[0] / (INPUTS * layers(onnx.load(source))) <= most


def test_inputs_are_made_once() -> None:
    made: list[int] = []

    def take(indices: np.ndarray) -> dict[str, np.ndarray]:
        made.extend(indices.tolist())
        return {"x": np.stack([np.full(3, index, np.float32) for index in indices])}

    inputs = held(Inputs(5, "", None, np.array([4, 2, 9, 7, 1]), take, by_row=True))
    for size in (2, 3, 5):
        np.testing.assert_array_equal(np.concatenate([feeds["x"][:, 0] for feeds in inputs.batches(size)]), inputs.indices)
    assert made == inputs.indices.tolist()
