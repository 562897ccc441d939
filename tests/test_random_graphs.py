"""The program against random graphs: done, or refused with a reason. Thousands more: `make fuzz`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from random_graphs import Generated, generate
from random_graphs.faults import OUTCOMES, changed_interface, difference
from random_graphs.generate import attempt, drawn
from random_graphs.graph import Skip
from random_graphs.masked_oracle import NotAPart, masked
from random_graphs.shrink import described, shrunk
from topologies import TOPOLOGIES

from onnxmerge.graph.operators.table import OPERATORS
from onnxmerge.pipeline.compress import compress

pytestmark = pytest.mark.usefixtures("harmless_models")

NEW = (*range(20_000, 20_020), *range(30_000, 30_020), *range(40_000, 40_014))
SEEDS = {
    "prune": (*range(40), *NEW),
    "merge": (*range(16), *NEW[:5], *NEW[20:25], *NEW[40:43]),
    "reconstruct": (*range(6), *NEW[40:44]),
    "limit": range(6),
    "heads": NEW[40:46],
}
"""Seeds that every `make test` tries, by check: about 16 CPU seconds. `NEW` ones have the steps of `limited_sizes.py`,
`recurrent.py` and `attention.py`."""
CASES: dict[str, tuple[int, ...]] = {
    "prune": (94, 95, 111, 141, 151, 167, 185, 10012, 10313, 10396, 10977, 20066, 40116, 40668, 46884, 36663),
    "merge": (74, 10269, 10699),
    "reconstruct": (14, 20, 23, 40062, 60062),
    "limit": (9,),
    "heads": (48328,),
}
"""Further seeds that failed once: what `make fuzz` finds is kept here."""
PAIRS = [(check, seed) for check, seeds in SEEDS.items() for seed in (*seeds, *CASES.get(check, ()))]


@pytest.mark.parametrize(("check", "seed"), PAIRS)
def test_done_or_refused(check: str, seed: int, tmp_path: Path) -> None:
    outcome = OUTCOMES[check](generate(seed), tmp_path)
    assert not outcome.is_fault, f"{outcome.kind}: {outcome.text}"
    assert outcome.kind == "done" or outcome.text or outcome.kind == "nothing to copy"


# fmt: off
COVERING = (
    1, 2, 4, 6, 8, 9, 13, 15, 20, 21, 22, 25, 30, 31, 33, 35, 38, 39, 40, 41, 42, 44, 45, 49, 53, 55, 63, 66, 67, 79, 90, 98,
    102, 119, 125, 128, 129, 149, 155, 170, 171, 173, 194, 197, 198, 217, 221, 225, 228, 235, 243, 249, 250, 256, 261, 268,
    285, 286, 300, 311, 357, 375, 389, 405, 418, 559, 589, 694, 1031, 20122,
)
# fmt: on
"""Seeds whose graphs held every operator when this was written; where the generator has changed since, others are tried too."""


def operators_of(seed: int) -> set[str]:
    """Operators of what is drawn first, which need not run."""
    try:
        return {node.op_type for node in drawn(seed, 0).model.graph.node if not node.domain}
    except Skip:
        return set()


def test_every_operator_of_the_table_occurs() -> None:
    """In models that ONNX Runtime runs: every row of the table for operators of ONNX, and nothing that is not in it."""
    missing, others = {name for name in OPERATORS if onnx.defs.has(name)}, set()
    for seed in (*COVERING, *range(20_000, 26_000)):
        operators = operators_of(seed)
        others |= operators - set(OPERATORS)
        if operators & missing and attempt(seed, 0) is not None:
            missing -= operators
        if not missing:
            break
    assert not missing
    assert not others


def test_models_are_valid_and_the_same_for_a_seed() -> None:
    graphs = [generate(seed) for seed in range(60)]
    for graph in graphs:
        onnx.checker.check_model(graph.model, full_check=True)
    assert [graph.model.SerializeToString() for graph in graphs[:10]] == [
        generate(seed).model.SerializeToString() for seed in range(10)
    ]
    assert {graph.model.opset_import[0].version for graph in graphs} >= {7, 25}
    assert sum(attempt(seed, 0) is None for seed in range(100)) < 15


TOPOLOGY = TOPOLOGIES["conv-bn-relu"]
WHOLE = Generated(0, TOPOLOGY.build(np.random.default_rng(1)), dict(TOPOLOGY.feeds))


def pruned(folder: Path) -> onnx.ModelProto:
    """Half of the channels of `WHOLE` removed."""
    compress(WHOLE.model, folder / "small.onnx", ratio=0.5, method="prune", verify=False)
    return onnx.load(folder / "small.onnx")


def with_tensor(model: onnx.ModelProto, start: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """A copy with the initializer whose name begins so changed."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.startswith(start))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), tensor.name))
    return model


def test_the_masked_oracle_accepts_what_is_right(tmp_path: Path) -> None:
    small = pruned(tmp_path)
    reference = masked(WHOLE.model, small, WHOLE.feeds())
    assert [node.op_type for node in reference.graph.node].count("Mul") == 2
    assert difference(reference, WHOLE.model, small, WHOLE) == ""
    assert difference(WHOLE.model, WHOLE.model, small, WHOLE) != ""


@pytest.mark.parametrize("start", ["conv_a_w", "bn_a_scale", "bn_a_mean", "conv_b_w"])
def test_the_masked_oracle_notices_channels_in_another_order(start: str, tmp_path: Path) -> None:
    small = pruned(tmp_path)
    wrong = with_tensor(small, start, lambda values: np.roll(values, 1, axis=0))
    assert "relative error" in difference(masked(WHOLE.model, wrong, WHOLE.feeds()), WHOLE.model, wrong, WHOLE)


def test_the_masked_oracle_notices_other_weights(tmp_path: Path) -> None:
    wrong = with_tensor(pruned(tmp_path), "conv_b_w", lambda values: values * np.float32(1.001))
    with pytest.raises(NotAPart, match="conv_b_y"):
        masked(WHOLE.model, wrong, WHOLE.feeds())


def test_a_changed_output_is_noticed(tmp_path: Path) -> None:
    wrong = pruned(tmp_path)
    wrong.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "M"
    assert changed_interface(WHOLE.model, wrong) == "an output is declared otherwise than before"


def test_a_failing_model_is_made_smaller() -> None:
    def has_softmax(graph: Generated) -> bool:
        return any(node.op_type == "Softmax" for node in graph.model.graph.node)

    whole = next(graph for graph in map(generate, range(100)) if has_softmax(graph) and len(graph.model.graph.node) > 20)
    small = shrunk(whole, has_softmax)
    assert has_softmax(small)
    assert len(small.model.graph.node) < len(whole.model.graph.node) / 2
    assert "Softmax" in described(small.model)
