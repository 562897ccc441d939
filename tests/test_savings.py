"""What groups save adds up to what the model saves, counted in the files."""

from pathlib import Path

import pytest

from onnxmerge import compress, inspect

MODELS = Path(__file__).resolve().parents[1] / "models"


@pytest.mark.parametrize("name", ["digits-mlp", "digits-resnet-bn"])
def test_savings_of_groups_add_up(name: str, tmp_path: Path) -> None:
    done = compress(MODELS / f"{name}.onnx", tmp_path / "out.onnx", method="prune", ratio=0.5, verify=False)
    saved = [1 - getattr(done.after, what) / getattr(done.before, what) for what in ("parameters", "macs")]
    assert [sum(group.parameters_saved for group in done.groups), sum(group.macs_saved for group in done.groups)] == (
        pytest.approx(saved, abs=1e-3)  # consumers may gain a bias
    )
    assert all(0 <= group.time_saved < 1 for group in done.groups)
    most = inspect(MODELS / f"{name}.onnx").groups
    assert saved[1] < sum(group.macs_saved for group in most) < 1


def test_what_a_layer_between_two_groups_saves_is_shared(tmp_path: Path) -> None:
    """With half of the channels of all groups gone, each of two layers around a group gives it half of 3/4, or of 1/2 alone."""
    done = compress(MODELS / "digits-mlp.onnx", tmp_path / "out.onnx", method="prune", ratio=0.5, verify=False)
    before = done.before.macs
    first, second = done.groups
    inputs, outputs = 64, 10
    middle = first.channels * second.channels
    assert inputs * first.channels + middle + second.channels * outputs == before
    assert first.macs_saved * before == 0.5 * inputs * first.channels + 0.75 / 2 * middle
    assert second.macs_saved * before == 0.5 * second.channels * outputs + 0.75 / 2 * middle
