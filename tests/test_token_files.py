"""Token ids of texts: padded with a mask, from lines and from archives, and what cannot be fed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import onnxmerge
from onnxmerge.data.inputs import Inputs, calibration_inputs
from onnxmerge.errors import InputError
from onnxmerge.execution.tensor_specs import TensorSpec

TEXTS = [[5, 6, 7], [8], [9, 10]]
BERT = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
IDS = [[5, 6, 7], [8, 0, 0], [9, 10, 0]]


def specs_of(names: tuple[str, ...], length: int | str = "T", dtype: str = "int64") -> list[TensorSpec]:
    return [TensorSpec(name, f"tensor({dtype})", np.dtype(dtype), ("N", length)) for name in names]


def fed(path: Path, *specs: TensorSpec) -> Inputs:
    return calibration_inputs(path, specs, {spec.name: (2, 16) for spec in specs})


def written(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def archives(folder: Path, records: list[dict[str, Any]]) -> Path:
    for number, record in enumerate(records):
        np.savez(folder / f"{number}.npz", **record)
    return folder


@pytest.mark.parametrize("kind", ["lines", "named", "archives"])
def test_texts_of_different_lengths_are_padded_with_a_mask(tmp_path: Path, kind: str) -> None:
    named = [{"input_ids": ids} for ids in TEXTS]
    path = archives(tmp_path, named) if kind == "archives" else written(tmp_path / "a.jsonl", TEXTS if kind == "lines" else named)
    inputs = fed(path, *specs_of(BERT))
    feeds = inputs.take(inputs.indices)
    assert [feeds[name].tolist() for name in BERT[:3]] == [IDS, [[1, 1, 1], [1, 0, 0], [1, 1, 0]], [[0, 0, 0]] * 3]
    assert feeds["position_ids"].tolist() == [[0, 1, 2]] * 3


def test_what_a_record_gives_is_taken_and_fixed_lengths_are_filled(tmp_path: Path) -> None:
    record = {"input_ids": [5, 6], "attention_mask": [1, 1], "token_type_ids": [0, 1]}
    inputs = fed(written(tmp_path / "a.jsonl", [record]), *specs_of(BERT[:3], 4, "int32"))
    feeds = inputs.take(inputs.indices)
    assert [feeds[name].tolist() for name in BERT[:3]] == [[[5, 6, 0, 0]], [[1, 1, 0, 0]], [[0, 1, 0, 0]]]
    assert feeds["input_ids"].dtype == np.int32


def test_a_folder_of_archives_feeds_several_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"a": rng.random((3, 4)), "b": rng.random(2)} for _ in range(5)]
    specs = [
        TensorSpec(name, "tensor(float)", np.dtype(np.float32), dims) for name, dims in (("a", ("N", 3, 4)), ("b", ("N", 2)))
    ]
    inputs = calibration_inputs(archives(tmp_path, rows), specs, {"a": (2, 3, 4), "b": (2, 2)})
    for name in "ab":
        np.testing.assert_allclose(inputs.take(inputs.indices)[name], [row[name] for row in rows], rtol=1e-6)


REFUSED: dict[str, tuple[tuple[str, ...], int | str, list[Any], str]] = {
    "no mask": (("input_ids",), "T", TEXTS, r"texts of 1 to 3 ids for a length of 3, and the model has no input for a mask"),
    "too long": (BERT, 2, TEXTS, r"no. 1 of .* has 3 ids, the model takes 2"),
    "which input": (("a", "b"), "T", TEXTS, r"line 1 is a list, but the ids could be for a, b"),
    "an input that is missing": (BERT, "T", [{"attention_mask": [1]}], r"has attention_mask, the model's inputs are input_ids"),
    "an input too many": (BERT, "T", [{"input_ids": [1], "labels": [1]}], r"has input_ids, labels, the model's inputs are"),
    "two lengths": (BERT, "T", [{"input_ids": [1, 2], "attention_mask": [1]}], r"lists of one length are needed"),
    "no ids": (BERT, "T", [[]], r"lists of one length are needed"),
    "words": (BERT, "T", ["some words"], r"line 1 is no list of token ids"),
    "huge": (BERT, "T", [[10**30]], r"cannot be read"),
    "nothing": (BERT, "T", [], r"holds no token ids"),
}


@pytest.mark.parametrize(("names", "length", "lines", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_fed(tmp_path: Path, names: tuple[str, ...], length: int | str, lines: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fed(written(tmp_path / "a.jsonl", lines), *specs_of(names, length))


def test_token_ids_are_for_models_of_token_ids(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds token ids, but input 'x' needs float32"):
        fed(written(tmp_path / "a.jsonl", TEXTS), TensorSpec("x", "tensor(float)", np.dtype(np.float32), ("N", 3)))


MASKED_MEAN = """<ir_version: 8, opset_import: ["" : 17]>
g (int64[N,T] input_ids, int64[N,T] attention_mask) => (float[N,4] y)
<float[37,12] table, float[12,16] a, float[16,4] b, int64[1] last = {2}>
{ e = Gather(table, input_ids)  m = Cast<to=1>(attention_mask)  w = Unsqueeze(m, last)  k = Mul(e, w)
  s = ReduceSum<keepdims=0>(k, one)  h = MatMul(s, a)  r = Relu(h)  y = MatMul(r, b) }"""


def test_commands_take_them(tmp_path: Path) -> None:
    model, rng = parser.parse_model(MASKED_MEAN.replace("last = {2}", "last = {2}, int64[1] one = {1}")), np.random.default_rng(0)
    for info in model.graph.value_info:
        shape = tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), info.name))
    del model.graph.value_info[:]
    texts = [rng.integers(0, 37, rng.integers(2, 9)).tolist() for _ in range(40)]
    path = written(tmp_path / "a.jsonl", texts)
    result = onnxmerge.compress(model, tmp_path / "small.onnx", calibration=path, ratio=0.5, bench=False)
    assert [each.shape[1] for each in result.inputs] == [max(map(len, texts))] * 2
    assert [each.origin for each in result.inputs] == ["calibration"] * 2
    assert result.groups
