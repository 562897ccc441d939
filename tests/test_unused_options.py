"""Options without effect beside the others are refused in one line, and put aside where a pyproject.toml holds them."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxmerge
from onnxmerge.errors import InputError, OptionError, UnusedOptionError
from onnxmerge.options import InputOptions, PruningOptions, RuntimeOptions, Thresholds

MODEL = Path(__file__).resolve().parents[1] / "models" / "digits-mlp.onnx"
PRUNED = {"ratio": 0.25, "method": "prune"}
VALUES: dict[str, Any] = {
    "ratio": 0.5,
    "target": "macs=0.5",
    "fidelity": 0.9,
    "max_changed_decisions": 0.1,
    "plan": {"a": 1},
    "minimize": "macs",
    "round_to": 4,
    "time_limit": "5m",
    "method": "merge",
    "criterion": "l1-norm",
    "threshold": 0.2,
    "cosine_weight": 0.5,
    "input_range": (0.0, 255.0),
    "mean": 0.5,
    "std": 0.5,
    "fit": "crop",
    "color": "bgr",
    "samples": 8,
    "batch": 4,
    "provider": "cpu",
    "tf32": True,
    "cudnn_search": "default",
    "cuda_graph": True,
    "require_smaller": True,
    **dict.fromkeys(("min_fidelity", "min_cosine", "min_top1_agreement", "max_relative_l2", "max_params", "max_macs"), 0.5),
    "min_speedup": 1.1,
}
"""Option -> a value that is not its default."""
OF_EVERY_INSPECTION = {
    "scope",
    "whole_heads",
    "include",
    "exclude",
    "calibration",
    "input_shape",
    "seed",
    "threads",
    "max_memory",
}
OF_SENSITIVITY = {
    *("method", "criterion", "threshold", "cosine_weight", "round_to"),
    *("input_range", "mean", "std", "fit", "color", "samples"),
}


def test_every_option_has_an_effect_on_an_inspection_or_is_refused() -> None:
    kinds = PruningOptions, InputOptions, RuntimeOptions, Thresholds
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert names == VALUES.keys() | OF_EVERY_INSPECTION
    for name, value in VALUES.items():
        with pytest.raises(UnusedOptionError, match=f"`{name}` has no effect: drop it") as told:
            onnxmerge.inspect(MODEL, **{name: value})
        assert told.value.option == name
        with pytest.raises(UnusedOptionError) if name not in OF_SENSITIVITY else Ends():
            onnxmerge.inspect(
                "no-such.onnx", sensitivity=True, **{name: value, **({"calibration": "x"} if name in "fit color" else {})}
            )


class Ends:
    """For options that are taken: the first work, which is to read a file, is what fails."""

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        assert kind is not None
        assert not issubclass(kind, OptionError)
        return True


UNUSED: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "batch, not timed": (
        onnxmerge.compress,
        {"ratio": 0.5, "bench": False, "batch": 4},
        "`bench=False` times nothing, so that `batch`",
    ),
    "batch, not verified": (
        onnxmerge.compress,
        {"ratio": 0.5, "verify": False, "batch": 4},
        "`verify=False` times nothing, so that `batch`",
    ),
    "CUDA graph": (onnxmerge.compress, {"bench": False, "cuda_graph": True}, "`bench=False` times nothing, so that `cuda_graph`"),
    "threshold of merging": (onnxmerge.compress, {"method": "prune", "threshold": 0.5}, "`method=prune` merges nothing, so that"),
    "weight of merging": (
        onnxmerge.sweep,
        {"method": "reconstruct", "cosine_weight": 0.5},
        "`method=reconstruct` merges nothing",
    ),
    "criterion": (
        onnxmerge.compress,
        {"method": "merge", "criterion": "reconstruction"},
        "`method=merge` looks at weights alone",
    ),
    "time limit of a ratio": (
        onnxmerge.compress,
        {"ratio": 0.5, "time_limit": 9},
        "`ratio` says how small at once, and nothing is",
    ),
    "time limit of a plan": (
        onnxmerge.compress,
        {"plan": {"a": 1}, "time_limit": 9},
        "`plan` says how small at once, and nothing",
    ),
    "pixels of no inputs": (
        onnxmerge.compress,
        {**PRUNED, "verify": False, "mean": 0.5},
        "method prune runs no inputs, so that `mean`",
    ),
    "images": (
        onnxmerge.compress,
        {"fit": "crop"},
        "no images are read, so that `fit` has no effect: drop it, or give them as `cali",
    ),
    "images of verify": (onnxmerge.verify, {"color": "bgr"}, "no images are read, so that `color` has no effect"),
    "images of bench": (onnxmerge.bench, {"color": "bgr"}, "no images are read, so that `color` has no effect"),
    "batch of a sweep": (
        onnxmerge.sweep,
        {"targets": "ratio=0.5,0.3", "bench": False, "batch": 4},
        "`bench=False` times nothing, so that `batch` has no effect",
    ),
    "provenance of nothing": (
        onnxmerge.sweep,
        {"provenance": False},
        "`provenance=False` is for models that are kept, and none is",
    ),
    "batch of verify": (onnxmerge.verify, {"batch": 4}, "a verification times nothing, so that `batch` has no effect: drop it"),
}


@pytest.mark.parametrize(("verb", "given", "message"), UNUSED.values(), ids=UNUSED)
def test_what_has_no_effect_is_refused_before_any_work(
    verb: Callable[..., Any], given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    files = [] if verb is onnxmerge.sweep else [tmp_path / "no-such-either.onnx"]
    with pytest.raises(UnusedOptionError, match=re.escape(message)):
        verb(tmp_path / "no-such.onnx", *files, **given)


USED: dict[str, tuple[str, ...]] = {
    "batch of a latency": ("--target", "latency=0.9", "--no-bench", "--batch", "4", "--method", "prune"),
    "batch of multiples": ("--ratio", "0.5", "--round-to", "measured", "--no-verify", "--batch", "4", "--method", "prune"),
    "batch of predicted time": ("--target", "macs=0.9", "--no-bench", "--batch", "4", "--method", "prune"),
    "threshold of auto": ("--ratio", "0.5", "--threshold", "0.5", "--no-bench"),
    "criterion of auto": ("--ratio", "0.5", "--criterion", "reconstruction", "--no-bench"),
    "time limit": ("--target", "macs=0.5", "--time-limit", "1h", "--no-bench", "--method", "prune"),
}


@pytest.mark.parametrize("given", USED.values(), ids=USED)
def test_what_has_an_effect_is_taken(run: Any, tmp_path: Path, given: tuple[str, ...]) -> None:
    code, _, err = run("compress", MODEL, tmp_path / "o.onnx", "--samples", "16", "-q", *given)
    assert (code, "no effect" in err) == (0, False), err


COMMANDS = {
    "a model that is not compared is not timed": (
        ("compress", MODEL, "o.onnx", "--no-verify", "--bench"),
        "--no-verify compares nothing, and what is not compared is not timed by --bench: drop one",
    ),
    "batch": (
        ("compress", MODEL, "o.onnx", "--ratio", "0.5", "--batch", "8", "--no-bench"),
        "--no-bench times nothing, so that --batch has no effect: drop one of the two",
    ),
    "no sensitivity": (
        ("inspect", MODEL, "--method", "merge"),
        "no sensitivities are measured, so that --method has no effect: drop it, or give --sensitivity",
    ),
    "provider of an inspection": (("inspect", MODEL, "--provider", "cuda"), "No such option '--provider'"),
    "quiet and verbose": (("inspect", MODEL, "-q", "-v"), "--quiet and --verbose say how much is told: drop one of the two"),
    "nothing kept": (
        ("sweep", MODEL, "--no-provenance"),
        "--no-provenance is for models that are kept, and none is: name a folder, or drop it",
    ),
}


@pytest.mark.parametrize(("command", "message"), COMMANDS.values(), ids=COMMANDS)
def test_the_command_says_it_in_one_line(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[Any, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"onnxmerge: {message}")
    assert not list(tmp_path.iterdir())


FILES = {  # file, typed, what of the file holds
    "both of the file": ("batch = 4\n[tool.onnxmerge.compress]\nno-bench = true", (), "bench=False"),
    "typed against it": ("batch = 4\nscope = 'all'", ("--no-bench",), "scope=all"),
    "the file against what is typed": ("[tool.onnxmerge.compress]\nno-bench = true", ("--batch", "4"), ""),
    "several": ("fit = 'crop'\ncolor = 'bgr'\nthreshold = 0.5\ncosine-weight = 0.5\ntime-limit = '5m'", ("--no-bench",), ""),
}


@pytest.mark.parametrize(("text", "typed", "holds"), FILES.values(), ids=FILES)
def test_what_a_file_holds_for_all_commands_is_put_aside(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, typed: tuple[str, ...], holds: str
) -> None:
    monkeypatch.delenv("ONNXMERGE_NO_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text(f"[tool.onnxmerge]\n{text}\n")
    given = ("compress", MODEL, "o.onnx", "--ratio", "0.25", "--method", "prune", *typed)
    code, out, err = run(*given, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["defaults"] == (f"{holds} from {tmp_path / 'pyproject.toml'}" if holds else "")
    assert (told["latency"] is None) is ("--batch" not in typed)
    assert "put aside " in run(*given, "-v")[2]


def test_sizes_of_calibration_inputs_are_of_use_to_an_inspection(run: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((8, 1, 8, 8), np.float32))
    code, out, _ = run("inspect", MODEL, "--calibration", tmp_path / "x.npy", "--seed", "3", "--threads", "1")
    assert (code, "of the calibration inputs" in out or "fixed in the model" in out) == (0, True)


def test_pixels_of_another_size_give_sizes_with_fit_alone(tmp_path: Path) -> None:
    """What `fit` is asked for is not refused as without effect."""
    body = "a = Conv<pads=[1, 1, 1, 1]>(x, k)  b = Relu(a)  c = Conv(b, l)  d = GlobalAveragePool(c)  y = Flatten(d)"
    head = '<ir_version: 8, opset_import: ["": 17]>'
    model = onnx.parser.parse_model(f"{head} g (float[N, 3, 16, 16] x) => (float[N, 6] y) {{ {body} }}")
    for name, shape in (("k", (8, 3, 3, 3)), ("l", (6, 8, 1, 1))):
        value = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    pixels = np.zeros((4, 3, 20, 20), np.uint8)
    merged = {"method": "merge", "ratio": 0.5, "verify": False, "calibration": pixels}
    with pytest.raises(InputError, match="`fit` brings images to that size"):
        onnxmerge.inspect(model, calibration=pixels)
    assert onnxmerge.inspect(model, calibration=pixels, fit="crop").groups
    assert onnxmerge.compress(model, tmp_path / "small.onnx", fit="crop", **merged).groups
    with pytest.raises(UnusedOptionError, match="`color` has no effect"):
        onnxmerge.inspect(model, calibration=pixels, color="bgr", fit="crop")
