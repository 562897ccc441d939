"""What a review found: few calibration inputs, nothing to shrink, pinned channels in multiples, files that must stay."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxmerge
from onnxmerge import compress
from onnxmerge.cli import app as cli
from onnxmerge.data.selection import calibration_and_check_inputs, inputs_for
from onnxmerge.errors import OptionError, VerificationError
from onnxmerge.evaluation import benchmark
from onnxmerge.execution.sessions import open_session
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import DEFAULT_FIDELITY, InputOptions, PruningOptions, RuntimeOptions

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
MLP = MODELS / "digits-mlp.onnx"


def inputs(path: Path, count: int) -> Path:
    np.save(path, np.random.default_rng(0).normal(size=(count, 1, 8, 8)).astype(np.float32))
    return path


@pytest.mark.parametrize(("count", "checked", "warned"), [(10, 5, True), (40, 20, True), (200, 50, False)])
@pytest.mark.parametrize("verify", [True, False], ids=["verified", "not-verified"])
def test_a_fidelity_is_searched_on_inputs_that_were_not_solved_on(tmp_path, count, checked, warned, verify):
    calibration = inputs(tmp_path / "x.npy", count)
    result = compress(MLP, tmp_path / "o.onnx", calibration=calibration, fidelity=0.5, bench=False, verify=verify)
    assert result.fidelity is None or result.fidelity.input_count == checked
    assert any(f"rests on {checked} of {count}" in warning for warning in result.warnings) == warned


def test_every_target_is_checked_on_enough_inputs_or_warns(tmp_path):
    for count, checked in ((120, 32), (30, 10)):
        calibration = inputs(tmp_path / "x.npy", count)
        result = compress(MLP, tmp_path / "o.onnx", calibration=calibration, ratio=0.5, bench=False)
        assert result.fidelity.input_count == checked
        assert any("too few to rely on" in warning for warning in result.warnings) == (checked < 32)
    assert any("too few" in warning for warning in onnxmerge.verify(MLP, MLP, calibration=calibration).warnings)


def test_verify_draws_no_input_of_a_compression_whatever_its_seed():
    session, analysed = open_session(MLP, optimise=True), analyse_model(MLP)
    fresh = inputs_for(session, analysed.shapes, InputOptions(seed=1), fresh=True)
    tested = {row.tobytes() for row in fresh.take(fresh.indices)["x"]}
    assert len(tested) == fresh.count
    for seed in range(2):
        options = InputOptions(seed=seed, samples=3072)  # as many as it takes where nothing is said
        drawn = calibration_and_check_inputs(MLP, analysed, options, RuntimeOptions(), PruningOptions())
        for each in drawn:
            assert not tested & {row.tobytes() for row in each.take(each.indices)["x"]}


@pytest.mark.parametrize("asked", [{}, {"target": "macs=0.5"}, {"ratio": 0.5}, {"target": "latency=0.5"}], ids=str)
def test_nothing_is_chosen_to_shrink(tmp_path, asked):
    result = compress(MLP, tmp_path / "o.onnx", exclude=("*",), samples=16, bench=False, **asked)
    assert not result.groups
    assert (result.before.parameters, DEFAULT_FIDELITY) == (result.after.parameters, 0.97)


def test_a_model_of_which_nothing_was_removed_is_timed_only_to_hold_a_threshold(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "DEFAULT_EFFORT", benchmark.TimingEffort(0.1, 2, 5))
    asked = {"exclude": ("*",), "samples": 16, "target": "macs=0.5"}
    assert compress(MLP, tmp_path / "o.onnx", **asked).latency is None
    with pytest.raises(VerificationError, match="is below 100x") as missed:
        compress(MLP, tmp_path / "o.onnx", min_speedup=100, **asked)
    assert missed.value.result.latency is not None


@pytest.mark.parametrize(("count", "told"), [(2, "too few to hold some out"), (64, "")])
def test_inputs_that_are_solved_and_checked_on_are_told(tmp_path, count, told):
    result = compress(MLP, tmp_path / "o.onnx", calibration=inputs(tmp_path / "x.npy", count), ratio=0.5, bench=False)
    assert [told] * bool(told) == [told for warning in result.warnings if "solved on, which flatters it" in warning]


def test_verify_tells_how_far_it_is(tmp_path):
    told = []
    onnxmerge.verify(MLP, MLP, calibration=inputs(tmp_path / "x.npy", 96), progress=lambda *step: told.append(step))
    assert told == [("reading the models", 0.0), *(("comparing outputs", share) for share in (0, 1 / 3, 2 / 3))]


def test_a_quiet_command_still_warns(run, tmp_path):
    code, out, err = run("verify", MLP, MLP, "--calibration", inputs(tmp_path / "x.npy", 4), "--mean", "0.5", "-q")
    assert code == 0
    assert out.strip().startswith("Passed: ")
    assert "warning: the fidelity rests on 4 calibration inputs" in err
    assert "warning: --mean, --std and --input-range are for image files and uint8 pixels" in err


def test_models_in_the_wrong_order_are_told(tmp_path):
    compress(MLP, tmp_path / "o.onnx", ratio=0.5, method="prune", verify=False)
    swapped = [onnxmerge.verify(*pair, samples=4) for pair in ((MLP, tmp_path / "o.onnx"), (tmp_path / "o.onnx", MLP))]
    assert [sum("were the two exchanged?" in warning for warning in each.warnings) for each in swapped] == [0, 1]


def test_lines_in_a_file_have_no_blanks_at_their_ends(run, tmp_path):
    lines = run("verify", MLP, MLP, "--calibration", inputs(tmp_path / "x.npy", 40))[1].splitlines()
    assert len(lines) > 10
    assert not [line for line in lines if line != line.rstrip()]


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_scripts_print_as_the_command_does(script: Path) -> None:
    """By `print_shown`, which leaves no blanks at the ends of lines in a file."""
    assert "Console()" not in script.read_text(encoding="utf-8")


def test_an_output_among_the_calibration_inputs_is_refused(tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    before = inputs(folder / "a.npy", 4).read_bytes()
    with pytest.raises(OptionError, match="holds the calibration inputs"):
        compress(MLP, folder / "a.npy", calibration=folder, ratio=0.5)
    assert (folder / "a.npy").read_bytes() == before


def test_a_report_does_not_overwrite_weights_beside_the_model(tmp_path, capsys):
    source, weights = tmp_path / "model.onnx", tmp_path / "weights.json"
    onnx.save(onnx.load(MLP), source, save_as_external_data=True, location=weights.name, size_threshold=0)
    before = weights.read_bytes()
    commands = {"compress": [str(source), str(tmp_path / "o.onnx"), "--ratio", "0.5"], "inspect": [str(source)]}
    for command, words in commands.items():
        with pytest.raises(SystemExit) as ending:
            cli.main([command, *words, "--report", str(weights)])
        assert ending.value.code == 2
        assert "would overwrite weights of the model in weights.json" in capsys.readouterr().err
    assert weights.read_bytes() == before
    assert not (tmp_path / "o.onnx").exists()


def test_paths_may_be_text(tmp_path):
    found = onnxmerge.verify(str(MLP), str(MLP))
    assert (found.fidelity.worst.fidelity, found.failures, found.passed) == (1.0, (), True)


LISTING = (
    '<ir_version: 8, opset_import: ["": 17]> g (float[N, 16] x) => (int64[2, FOUND] y)'
    " { h = MatMul(x, w)  r = Relu(h)  s = MatMul(r, v)  m = Greater(s, zero)  y = NonZero(m) }"
)


def test_a_model_that_lists_what_it_found_has_a_report_with_sizes_and_times(run, tmp_path: Path, monkeypatch) -> None:
    """How close it stayed cannot be measured, which every report says; without removing anything it can."""
    monkeypatch.setattr(benchmark, "DEFAULT_EFFORT", benchmark.TimingEffort(0.1, 2, 5))
    model, rng = parser.parse_model(LISTING), np.random.default_rng(0)
    stored = {"w": rng.normal(size=(16, 32)), "v": rng.normal(size=(32, 4)), "zero": np.zeros(())}
    model.graph.initializer.extend(numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items())
    onnx.save(model, tmp_path / "model.onnx")
    pages = {kind: tmp_path / f"page.{kind}" for kind in ("json", "html", "md")}
    arguments = ["compress", tmp_path / "model.onnx", tmp_path / "small.onnx", "--ratio", "0.5", "--method", "prune"]
    code, out, err = run(*arguments, "--samples", "32", *(word for page in pages.values() for word in ("--report", page)))
    assert code == 1
    assert err.startswith("onnxmerge: verification failed: how close output 'y' stayed could not be measured")
    assert not (tmp_path / "small.onnx").exists()
    verdict = " ".join(out.rpartition("Failed: ")[2].split())
    assert re.match("how close output 'y' stayed .* Compress; smaller by 49.9% of the parameters", verdict)
    assert "fidelity" not in verdict
    for text in (out, pages["html"].read_text(), pages["md"].read_text()):
        assert "not measured" in text
        assert "latency" in text
        assert not re.search(r"\binf\b", text)
    found = json.loads(pages["json"].read_text())
    assert found["after"]["macs"] < found["before"]["macs"]
    assert found["latency"]["reference"]["median_ms"] > 0
    assert "lists what was found" in found["fidelity"]["outputs"][0]["unmeasured"]
    result = onnxmerge.compress(model, tmp_path / "small.onnx", fidelity=0.9, samples=32, bench=False)
    assert result.fidelity.worst.unmeasured == ""
