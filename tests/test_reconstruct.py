"""`reconstruct` and `auto` from file to file: every topology, exact where exactness is possible, the same bytes every time."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from running import built, relative_error, run, tolerance_of, understood, weights_of, written
from test_merge_exactness import BY_HAND, cases, duplicated, group_of
from test_statistics_gram import dense
from test_statistics_walk import sequence_model
from topologies import TOPOLOGIES, Topology, feeds_of
from topologies.net import Net

from onnxmerge.compress import compress
from onnxmerge.errors import ModelError
from onnxmerge.graph.weights import canonical
from onnxmerge.methods import reconstruct as reconstruct_module
from onnxmerge.methods import reference as reference_module
from onnxmerge.methods import solving as solving_module
from onnxmerge.methods.downstream import Outlook
from onnxmerge.methods.planning import decide
from onnxmerge.options import Options
from onnxmerge.proof import inputs_for
from onnxmerge.results import Compression
from onnxmerge.runtime.fidelity import compare
from onnxmerge.runtime.sessions import open_session
from onnxmerge.statistics.inputs import Inputs
from onnxmerge.statistics.readers import reader_of
from onnxmerge.statistics.walk import Walk
from onnxmerge.understanding import Understanding, understand

SAMPLES = 64
FAST = {"samples": SAMPLES, "verify": False, "threads": 1}
SHRINKING = [each for each in TOPOLOGIES.values() if each.runnable and any((each.removable | each.at_most).values())]
# Weights that cannot be removed from at all, though the row allows it (`at_most`).
WHOLE = {"shared-weight-one-in-output", "weight-also-read-as-data"}
# Stored statistics of BatchNormalization are random numbers there, far from those of any inputs. What is fitted to the matched
# reference is worth less in the reference as it is stored, but never less than pruning.
NORMALISED = {each.id for each in SHRINKING if any(node.op_type == "BatchNormalization" for node in built(each).graph.node)}


class Recorder(Walk):
    """Walks that can be asked for afterwards."""

    made: list[Walk] = []

    def __post_init__(self) -> None:
        super().__post_init__()
        self.made.append(self)


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Walk]:
    """The walks of the solve: reference, compressed."""
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(solving_module, "Walk", Recorder)
    return Recorder.made


def walked(walk: Walk) -> onnx.ModelProto:
    """The model that a walk ends with."""
    model = onnx.ModelProto.FromString(walk.model.SerializeToString())
    del model.graph.node[:]
    model.graph.node.extend(node for nodes in walk.nodes for node in nodes)
    return model


def check_inputs(source: Path, understanding: Understanding, samples: int = SAMPLES) -> Inputs:
    return inputs_for(open_session(source, optimise=False, threads=1), understanding.shapes, Options(samples=samples, seed=5))


def fidelity(source: Path, target: Path, inputs: Inputs) -> float:
    pair = [open_session(path, optimise=False, threads=1) for path in (source, target)]
    return compare(pair[0], pair[1], inputs.batches(32), "").worst.fidelity


def shrunk(source: Path, target: Path, method: str, **options: object) -> Compression:
    return compress(source, target, Options(method=method, **{**FAST, **options}))


def ratios(topology: Topology) -> list[float]:
    return [0.3, 0.5]


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("topology", [pytest.param(each, id=each.id) for each in SHRINKING if each.id not in WHOLE])
def test_every_topology_ends_no_worse_than_pruned(topology: Topology, ratio: float, tmp_path: Path, walks: list[Walk]) -> None:
    """And the file computes what the solve saw: nothing that was decided is lost on the way."""
    source = written(built(topology), tmp_path)
    inputs = check_inputs(source, understand(source))
    result = shrunk(source, tmp_path / "ours.onnx", "reconstruct", ratio=ratio)
    assert result.groups
    compressed = walks[-1]
    plain = shrunk(source, tmp_path / "pruned.onnx", "prune", ratio=ratio)
    assert [(group.name, group.kept) for group in plain.groups] == [(group.name, group.kept) for group in result.groups]
    ours, pruned = (fidelity(source, tmp_path / name, inputs) for name in ("ours.onnx", "pruned.onnx"))
    assert ours > pruned - 1e-3
    if topology.id not in NORMALISED:
        feeds = feeds_of(topology)
        expected = run(walked(compressed), feeds)
        assert relative_error(expected, run(tmp_path / "ours.onnx", feeds)) < tolerance_of(topology, 1e-4)


@pytest.mark.parametrize("topology", [pytest.param(TOPOLOGIES[name], id=name) for name in sorted(WHOLE)])
def test_nothing_to_remove_is_said_in_one_line(topology: Topology, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing can be removed"):
        shrunk(written(built(topology), tmp_path), tmp_path / "out.onnx", "reconstruct", ratio=0.5)


def test_a_sequence_between_two_layers_is_no_obstacle(tmp_path: Path) -> None:
    model = sequence_model()
    model.graph.node.insert(0, helper.make_node("Conv", ["x", "stem"], ["stem_y"], name="stem"))
    model.graph.node[1].input[0] = "stem_y"
    weight = np.random.default_rng(1).normal(size=(3, 3, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "stem"))
    result = shrunk(written(model, tmp_path), tmp_path / "out.onnx", "reconstruct", ratio=0.3)
    assert [group.method for group in result.groups] == ["reconstruct"]


# The ridge pulls what carries little variance towards zero, and least squares in half precision end there.
LESS_EXACT = {
    "float16-conv_a": 5e-3,
    "float16-conv_b": 5e-3,
    "channel-shuffle-uneven-grouped_b": 1e-2,
    "channel-shuffle-grouped_a": 1e-3,
    "conv-transpose-conv_a": 1e-3,
    "conv-transpose-grouped-conv_a": 1e-3,
    "fan-out-conv-and-gemm-conv_a": 1e-3,
    "densenet-layer_2": 1e-3,
    "two-inputs-conv_a": 1e-3,
}
# Copies are no copies once BatchNormalization is matched to the inputs: their factor is in the weight, not in its parameters.
UNMATCHED = {name for name in BY_HAND if name in NORMALISED}


@pytest.mark.parametrize(
    ("topology", "producers"), [param for param in cases() if param.values[0].id not in UNMATCHED], ids=lambda value: str(value)
)
def test_multiples_of_other_channels_go_without_loss(
    topology: Topology, producers: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    duplicates, feeds = duplicated(topology, producers), feeds_of(topology)
    group = group_of(understood(duplicates.model, tmp_path).channels, producers)
    copies = np.isin(group.producers[0].places, duplicates.copy).any(1)
    source, target = written(duplicates.model, tmp_path), tmp_path / "out.onnx"
    counts = ((group.name, group.size - int(copies.sum())),)
    shrunk(source, target, "reconstruct", include=producers[:1], counts=counts)
    allowed = LESS_EXACT.get(f"{topology.id}-{producers[0]}", 1e-4)
    assert relative_error(run(duplicates.model, feeds), run(target, feeds)) < allowed
