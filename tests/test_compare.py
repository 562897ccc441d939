"""The comparison with other methods: its tables hold what was measured, and the methods are exact where they have to be."""

import re
from pathlib import Path

import compare
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rivals import folding, restoration
from rivals.activations import Moments
from rivals.cases import CASES, Case, absorbed, outputs, widths
from rivals.methods import DRAWS, METHODS
from rivals.tables import headline, plots, rendered
from trained_networks import CIFAR, TRAINED, Network, Trained

from onnxmerge.graph.merge_validity import PreActivations
from onnxmerge.graph.rewrite import Removal


def test_the_headline_and_the_plots_are_written_from_the_file():
    found = compare.ordered(compare.read())
    (block,) = re.findall(r"<!-- headline -->\n(.*?)\n<!-- end of headline -->", compare.README.read_text("utf-8"), re.DOTALL)
    assert block == headline(found), "python benchmarks/compare.py --tables writes it anew"
    drawn = plots(found)
    assert {path.name for path in compare.FOLDER.glob("*.svg")} == {f"compare-{model}.svg" for model in drawn}
    for model, text in drawn.items():
        assert (compare.FOLDER / f"compare-{model}.svg").read_text(encoding="utf-8") == text


def test_every_row_says_what_it_was_or_why_it_is_none():
    rows = compare.read()["rows"].values()
    assert rows
    for row in rows:
        assert ("reason" in row) != ({"accuracy", "settings", "versions", "processor", "cpu_seconds"} <= row.keys())


def test_a_method_that_draws_random_numbers_has_the_mean_of_its_draws():
    rows = compare.read()["rows"]
    random = [key for case in CASES for method in METHODS if method.is_random and (key := compare.key(case, method)) in rows]
    done = [rows[key] for key in random if "reason" not in rows[key]]
    assert {row["method"] for row in done} == {"auto", "reconstruct", "Model Folding"}
    for row in done:
        assert len(row["draws"]) == DRAWS
        assert row["accuracy"] == pytest.approx(np.mean(row["draws"]), abs=1e-4)


def test_a_network_that_is_absent_is_told_with_the_command_that_makes_it():
    found = {"references": {}, "rows": {}}
    absent = compare.ordered(found)["absent"]
    assert absent["wrn-40-4-cifar100"] == "python models/train_paper.py wrn-40-4 --dataset cifar100 --data FOLDER"
    assert {"wrn-40-4-cifar10", "vgg-16-cifar100", "resnet-56-cifar100"} < absent.keys()
    assert "models/paper/wrn-40-4-cifar10.onnx is absent" in rendered(compare.ordered(found))
    assert "wrn-40-4" not in headline(compare.ordered(found))


def test_a_trained_network_stands_in_for_one_beside_the_project_alone_where_that_is_absent(tmp_path):
    cases = {case.path.stem: case for case in CASES}
    shared, own = cases["resnet56-cifar10"], cases["resnet-56-cifar10-folded"]
    assert own.network.path.parent == TRAINED
    assert isinstance(own.network, Trained)
    assert own.network.command.endswith("resnet-56 --dataset cifar10 --fold --data FOLDER")
    assert own.instead_of is shared.network
    assert own.is_needed != shared.path.exists()


def test_lbyl_is_exact_for_combinations_of_kept_channels():
    generator = np.random.default_rng(0)
    mixture = np.concatenate([np.eye(4), generator.normal(size=(3, 4))])
    rows, offset = mixture @ generator.normal(size=(4, 9)), mixture @ generator.normal(size=4)
    scale = generator.choice([-1.0, 1.0], size=7) * generator.uniform(0.5, 2.0, size=7)
    compared = PreActivations(rows / scale[:, None], scale, offset, is_scaled=True)
    scaling = restoration.leave_before_you_leave(compared, np.arange(4), offset_weight=1.0, ridge=1e-12)
    np.testing.assert_allclose(scaling, mixture, atol=1e-6)


def test_published_merging_chooses_the_multiple():
    generator = np.random.default_rng(6)
    rows = generator.normal(size=(4, 9))
    compared = PreActivations(np.concatenate([rows, 3.0 * rows[1:2]]), np.ones(5), np.zeros(5), False)
    scaling = restoration.published_merging(compared, np.arange(4))
    np.testing.assert_allclose(scaling[4], [0.0, 3.0, 0.0, 0.0])
    normalised = PreActivations(compared.rows, np.ones(5), np.zeros(5), True, (np.zeros(5), np.ones(5)))
    np.testing.assert_allclose(restoration.published_merging(normalised, np.arange(4))[4], [0.0, 3.0, 0.0, 0.0])


@pytest.mark.parametrize("constant", [0.0, 2.0], ids=["linear", "affine"])
def test_ridges_are_exact_for_functions_of_kept_channels(constant):
    generator = np.random.default_rng(1)
    kept = generator.normal(1.0, 1.0, size=(200, 3))
    samples = np.concatenate([kept, kept @ generator.normal(size=(3, 2)) + constant], axis=1)
    found = Moments(samples.mean(0), samples.T @ samples / len(samples))
    scaling, shift = restoration.affine_ridge(found, np.arange(3), 1e-12)
    np.testing.assert_allclose(kept @ scaling.T + shift, samples, atol=1e-6)
    linear = kept @ restoration.gram_ridge(found.second, np.arange(3), 1e-12).T
    assert np.allclose(linear, samples, atol=1e-6) == (constant == 0.0)


def test_logits_are_exact_where_kept_channels_span_the_others():
    generator = np.random.default_rng(5)
    query, key = (generator.normal(size=(300, 3)) @ generator.normal(size=(3, 5)) for _ in range(2))
    between = restoration.logit_ridge(query.T @ query, key.T @ key, np.arange(3), 1e-12)
    np.testing.assert_allclose(query[:, :3] @ between @ key[:, :3].T, query @ key.T, atol=1e-6)


def test_clusters_of_separated_points():
    points = np.repeat(np.random.default_rng(2).normal(size=(5, 3)) * 10, 4, axis=0)
    labels = folding.clusters(points + np.random.default_rng(3).normal(size=points.shape) * 1e-3, 5)
    assert sorted(labels[::4]) == [0, 1, 2, 3, 4]
    assert (labels == np.repeat(labels[::4], 4)).all()


def test_repair_gives_uncorrelated_channels_their_variance_back():
    assert folding.repair(np.eye(4)) == pytest.approx(2.0)
    assert folding.repair(np.ones((4, 3))) == pytest.approx(1.0)


def network_of_twins(path: Path) -> None:
    """Three convolutions with BatchNormalization between them, in which every channel computes what another one does."""
    generator, nodes, weights, source, inputs = np.random.default_rng(4), [], [], "x", 3
    for number, width in enumerate((4, 6)):
        factors = generator.uniform(0.5, 2.0, size=2 * width)
        twin = [np.concatenate([values, values]) for values in generator.uniform(0.5, 1.5, size=(3, width))]
        rows = generator.normal(size=(width, inputs, 3, 3))
        arrays = {
            "w": np.concatenate([rows, rows]) * factors[:, None, None, None],
            "scale": twin[0],
            "bias": twin[1],
            "mean": factors * twin[2],
            "variance": factors**2,
        }
        weights += [numpy_helper.from_array(value.astype(np.float32), f"{name}{number}") for name, value in arrays.items()]
        nodes += [
            helper.make_node("Conv", [source, f"w{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4),
            helper.make_node(
                "BatchNormalization",
                [f"c{number}", *(f"{name}{number}" for name in ("scale", "bias", "mean", "variance"))],
                [f"n{number}"],
                epsilon=1e-12,
            ),
            helper.make_node("Relu", [f"n{number}"], [f"r{number}"]),
        ]
        source, inputs = f"r{number}", 2 * width
    weights.append(numpy_helper.from_array(generator.normal(size=(2, inputs, 1, 1)).astype(np.float32), "w"))
    nodes.append(helper.make_node("Conv", [source, "w"], ["y"], "last"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size, 8, 8]) for name, size in (("x", 3), ("y", 2))]
    graph = helper.make_graph(nodes, "twins", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)


@pytest.mark.parametrize("settings", [{"features": "own", "repair": True}, {"features": "own", "repair": False}])
def test_folding_of_twins_changes_nothing(tmp_path, settings):
    case = Case(Network("twins", "none", CIFAR), "50%", 0.5, {}, tmp_path)
    network_of_twins(case.path)
    folding.write_folded(case, settings, tmp_path / "folded.onnx")
    case.write([], {}, tmp_path / "whole.onnx")
    images = np.random.default_rng(5).normal(size=(3, 3, 8, 8)).astype(np.float32)
    expected = outputs(case.path, images)
    np.testing.assert_allclose(outputs(tmp_path / "folded.onnx", images), expected, atol=1e-4 * np.abs(expected).max())
    assert widths(tmp_path / "folded.onnx") == [(3, 3, 3, 4), (3, 3, 4, 6), (1, 1, 2, 6)]


def test_consumers_absorb_dense_scaling_matrices(tmp_path):
    case = Case(Network("twins", "none", CIFAR), "50%", 0.5, {}, tmp_path)
    network_of_twins(case.path)
    group, generator = case.groups[0], np.random.default_rng(7)
    removal = Removal(group, np.array([1, 4, 6]), "dense", scaling=generator.normal(size=(group.size, 3)))
    consumer = group.consumers[0]
    weight = absorbed([removal])[consumer.key].weight
    expected = np.einsum("onp,nk->okp", consumer.columns(), removal.scaling)
    np.testing.assert_allclose(consumer.columns(weight)[:, removal.kept], expected, rtol=1e-5, atol=1e-5)
