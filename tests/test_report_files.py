"""Report files: refused before any work, whole or not there, the same content as the page's for programs, a schema that holds."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from json_schemas import breaking_changes, schema_of
from samples import COMPRESSION, EVIL, FIDELITY, LATENCY, OUTPUT, PROVENANCE, RESULTS, VERIFICATION, evil

import onnxmerge
from onnxmerge.errors import OptionError
from onnxmerge.report.documents import KINDS, Provenance, as_json, document, json_text
from onnxmerge.report.writing import check_reports, write_report
from onnxmerge.results import Size

ROOT = Path(__file__).resolve().parents[1]
MLP = ROOT / "models" / "digits-mlp.onnx"
SCHEMAS = ROOT / "docs" / "schemas"
ALL_KINDS = pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)


# schemas


@ALL_KINDS
def test_schemas_are_those_of_the_dataclasses(kind):
    """`make schemas` writes them anew."""
    assert json.loads((SCHEMAS / f"{kind.name}-{kind.version}.json").read_text(encoding="utf-8")) == schema_of(kind)


@ALL_KINDS
def test_every_field_is_described(kind):
    schema = schema_of(kind)
    for described in (schema, *schema["$defs"].values()):
        assert described["description"]
        assert all(field["description"] for name, field in described["properties"].items() if name != "schema")


def test_documentation_names_every_kind():
    introduction = (ROOT / "docs" / "report-schema.md").read_text(encoding="utf-8")
    assert [kind.schema for kind in KINDS.values() if f"`{kind.result.__name__}` | `{kind.schema}`" not in introduction] == []


@cache
def validator_of(kind: type) -> jsonschema.Draft202012Validator:
    """Of the schema of a kind of result, which is checked first."""
    schema = schema_of(KINDS[kind])
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("kind", RESULTS)
def test_documents_follow_their_schema(kind):
    result = RESULTS[kind]
    found = json.loads(json_text(result, PROVENANCE))
    schema = validator_of(type(result))
    schema.validate(found)
    assert found["schema"].startswith(f"onnxmerge.{kind}/")
    for name in found:
        with pytest.raises(jsonschema.ValidationError, match="required property"):
            schema.validate({key: value for key, value in found.items() if key != name})


def test_missing_proof_and_hostile_names_follow_the_schema():
    schema = validator_of(type(COMPRESSION))
    for result in (replace(COMPRESSION, fidelity=None, latency=None), *map(evil, EVIL.values())):
        schema.validate(json.loads(json_text(result, PROVENANCE)))
    assert json.loads(json_text(evil(EVIL["control"]), PROVENANCE))["groups"][0]["name"] == EVIL["control"]


def test_nan_and_infinity_are_null():
    output = replace(OUTPUT, fidelity=math.nan, sqnr_db=math.inf, max_abs_error=-math.inf)
    result = replace(VERIFICATION, fidelity=replace(FIDELITY, outputs=(output,)))
    (found,) = json.loads(json_text(result, PROVENANCE), parse_constant=pytest.fail)["fidelity"]["outputs"]
    assert (found["fidelity"], found["sqnr_db"], found["max_abs_error"]) == (None, None, None)
    validator_of(type(result)).validate(json.loads(json_text(result, PROVENANCE)))


@dataclasses.dataclass(frozen=True)
class Larger(Size):
    """A field more.

    Attributes
    ----------
    parameters, macs, file_bytes : int
        As before, in other words.
    extra : float
        New.
    """

    extra: float = 0.0


@dataclasses.dataclass(frozen=True)
class Other:
    """A field less, another one of a new type.

    Attributes
    ----------
    parameters : str
        Of another type.
    macs : int
        As before.
    """

    parameters: str
    macs: int


@pytest.mark.parametrize(
    ("changed", "expected"),
    [(Size, []), (Larger, []), (Other, ["file_bytes was removed", "parameters was {'type': 'integer'}, is {'type': 'string'}"])],
    ids=["same", "more", "other"],
)
def test_breaking_changes_are_found(changed, expected):
    kind = next(iter(KINDS.values()))
    old, new = (schema_of(replace(kind, result=result)) for result in (Size, changed))
    assert breaking_changes(old, new) == expected


def test_breaking_changes_need_a_new_version(tmp_path):
    spec = importlib.util.spec_from_file_location("write_schemas", ROOT / "docs" / "write_schemas.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    docs = shutil.copytree(ROOT / "docs", tmp_path / "docs")
    script.main(docs)
    files = [path.relative_to(docs) for path in docs.rglob("*.[jm][sd]*")]
    assert {path: (docs / path).read_bytes() for path in files} == {path: (ROOT / "docs" / path).read_bytes() for path in files}
    schema = docs / "schemas" / "verification-1.json"
    old = schema.read_text(encoding="utf-8").replace('"sqnr_db"', '"noise_db"')
    schema.write_text(old, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"onnxmerge\.verification/1: OutputFidelity\.noise_db was removed: raise its version"):
        script.main(docs)
    assert schema.read_text(encoding="utf-8") == old


def test_a_single_comparison_is_a_benchmark_of_one_batch_size():
    found = document(LATENCY, PROVENANCE)
    assert (found["schema"], found["batches"]) == ("onnxmerge.benchmark/1", [as_json(LATENCY)])


# files


@pytest.mark.parametrize("suffix", [".html", ".md", ".json", ".JSON"])
def test_report_appears_whole_and_replaces_what_was_there(tmp_path, suffix):
    report = tmp_path / f"report{suffix}"
    report.write_text("old")
    write_report(COMPRESSION, report, PROVENANCE)
    assert os.listdir(tmp_path) == [report.name]
    text = report.read_text(encoding="utf-8")
    assert text.endswith({".html": "</html>\n", ".md": "</details>\n"}.get(suffix, "}\n"))
    assert PROVENANCE.command in re.sub("</?span>", "", text)


def test_report_without_provenance_leaves_the_command_out(tmp_path):
    onnxmerge.write_report(COMPRESSION, str(tmp_path / "report.html"))
    assert "<pre" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert document(COMPRESSION, Provenance())["command"] == ""


def test_link_stays_a_link(tmp_path):
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    write_report(COMPRESSION, tmp_path / "link.html", PROVENANCE)
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    report = tmp_path / "report.html"
    report.write_text("old")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OptionError, match=r"report\.html cannot be written: No space left on device"):
        write_report(COMPRESSION, report, PROVENANCE)
    assert {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path)} == {"report.html": "old"}


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        (["report.pdf"], "must be named .html, .md or .json"),
        (["report"], "must be named .html, .md or .json"),
        (["gone/report.html"], "does not exist; create it first"),
        (["folder.html"], "no regular file"),
        (["model.json"], "would overwrite the model"),
        (["sub/../model.json"], "would overwrite the model"),
        (["hard.json"], "would overwrite the model"),
        (["new.json"], "would overwrite the output"),
        (["inputs/labels.json"], "would overwrite the calibration inputs"),
        (["a.html", "b.json", "./a.html"], "would overwrite the report a.html"),
    ],
)
def test_report_that_cannot_be_is_refused(tmp_path, monkeypatch, reports, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder.html", "sub", "inputs"):
        os.mkdir(folder)
    for file in ("model.json", "inputs/labels.json"):
        Path(file).write_text("kept")
    os.link("model.json", "hard.json")
    kept = {
        "the model": Path("model.json"),
        "the output": Path("new.json"),
        "the calibration inputs": Path("inputs"),
        "none": None,
    }
    with pytest.raises(OptionError, match=message):
        check_reports([Path(report) for report in reports], kept)
    check_reports([Path("fine.html"), Path("inputs/new.json")], kept)


# the command line


COMMANDS = {
    "inspect": ("inspect", MLP),
    "compress": ("compress", MLP, "out.onnx", "--method", "prune", "--ratio", "0.25"),
    "sweep": ("sweep", MLP, "--targets", "ratio=0.5", "--method", "prune"),
    "verify": ("verify", MLP, MLP),
    "bench": ("bench", MLP, MLP),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_writes_reports(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*COMMANDS[command], "--json", "--report", "a.html", "--report", "b.json", "--report", "c.md")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(Path("b.json").read_text(encoding="utf-8"))
    jsonschema.validate(
        json.loads(out), json.loads((SCHEMAS / f"{json.loads(out)['schema'][10:].replace('/', '-')}.json").read_text())
    )
    assert json.loads(out)["versions"].keys() >= {"onnxmerge", "onnxruntime", "python", "system"}
    page = re.sub("</?span>", "", Path("a.html").read_text(encoding="utf-8"))  # a word of the command each
    assert f"onnxmerge {command} {MLP}" in page
    assert "digits-mlp.onnx" in page
    assert f"`onnxmerge {command} {MLP}" in Path("c.md").read_text(encoding="utf-8")


def test_reports_are_named_where_people_read(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(*COMMANDS["inspect"], "--report", "a.html")
    assert code == 0
    assert "wrote a.html" in out.splitlines()
    assert " can go, with " in " ".join(out.split())


def test_failed_verification_is_reported(run, tmp_path):
    onnxmerge.compress(MLP, tmp_path / "o.onnx", method="prune", ratio=0.9, verify=False)
    code, out, _ = run("verify", MLP, tmp_path / "o.onnx", "--json", "--report", tmp_path / "a.html")
    assert code == 1
    assert ["mean cosine" in failure for failure in json.loads(out)["failures"]] == [True]
    assert '<h1 class="bad">Failed: output &#39;y&#39;: mean cosine' in (tmp_path / "a.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("compress", "model.html", "out.onnx", "--report", "model.html"), "would overwrite the model"),
        (("compress", "model.html", "out.json", "--report", "out.json"), "would overwrite the output"),
        (
            ("compress", "model.html", "o.onnx", "--calibration", "c.json", "--report", "c.json"),
            "would overwrite the calibration",
        ),
        (("verify", "model.html", "c.json", "--report", "c.json"), "would overwrite the candidate"),
        (("bench", "model.html", "c.json", "--report", "model.html"), "would overwrite the reference"),
        (("inspect", "model.html", "--report", "r.txt"), "must be named .html, .md or .json"),
    ],
    ids=["model", "output", "calibration", "candidate", "reference", "suffix"],
)
def test_reports_are_refused_before_any_work(run, tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    for name in ("model.html", "c.json"):
        shutil.copy(MLP, name)
    code, out, err = run(*command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert sorted(os.listdir()) == ["c.json", "model.html"]
    assert Path("model.html").read_bytes() == Path("c.json").read_bytes() == MLP.read_bytes()


def test_every_report_says_which_values_were_assumed(run, tmp_path):
    places = [tmp_path / f"r{suffix}" for suffix in (".html", ".md", ".json")]
    _, out, err = run("verify", MLP, MLP, "--samples", "8", *(part for place in places for part in ("--report", place)))
    for text in (out, *(place.read_text() for place in places[:2])):
        assert "synthetic images (overlapping shapes), mean 0 and" in text.replace("\\", ""), err
        assert "or --input-range, tell others" in " ".join(text.split())
    (found,) = json.loads(places[2].read_text())["inputs"]
    assert found["assumed"].startswith("synthetic images (overlapping shapes), mean 0 and standard deviation 1 assumed")


# quantiles, and the templates in an installed package


def test_latencies_keep_their_distribution(run, tmp_path):
    code, out, _ = run("bench", MLP, MLP, "--json")
    assert code == 0
    (measured,) = json.loads(out)["batches"]
    for side in (measured["reference"], measured["candidate"]):
        quantiles = side["quantiles_ms"]
        assert len(quantiles) == 21
        assert quantiles == sorted(quantiles)
        assert np.allclose([quantiles[10], quantiles[19]], [side["median_ms"], side["p95_ms"]])


def test_templates_are_part_of_a_built_package(tmp_path):
    pytest.importorskip("setuptools")
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "onnxmerge", tmp_path / "onnxmerge", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "--quiet", "build_py", "--build-lib", "built"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    built, own = (folder / "onnxmerge" / "report" / "templates" for folder in (tmp_path / "built", ROOT))
    assert {path.name: path.read_bytes() for path in built.iterdir()} == {path.name: path.read_bytes() for path in own.iterdir()}
