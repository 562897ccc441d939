"""The networks of the neuron merging paper: built as published, and each trained for a few steps and exported."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_image_data import fashion_mnist, records, unpack

pytest.importorskip("torch", reason="training needs PyTorch: pip install onnxmerge[training]")

import train_paper
import trained_networks
from image_data import DATASETS
from image_training import sizes

PARAMETERS = {"lenet-300-100": 266_610, "vgg-16": 14_724_042, "resnet-56": 853_018, "wrn-40-4": 8_949_210}
"""As the papers give them (14.7, .85 and 8.9 million), for ten classes."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_published_sizes(name):
    data = DATASETS["fashion-mnist" if name == "lenet-300-100" else "cifar10"]
    assert sizes(train_paper.NETWORKS[name].build(10), data)[0] == PARAMETERS[name]


@pytest.mark.parametrize("name", ["lenet-300-100", "vgg-16", "resnet-56", "wrn-40-4"])
def test_a_few_steps_give_files_that_the_benchmark_finds(tmp_path, monkeypatch, capsys, name):
    is_lenet = name == "lenet-300-100"
    monkeypatch.setattr(train_paper, "NETWORKS", {name: replace(train_paper.NETWORKS[name], batch=3)})
    if is_lenet:
        fashion_mnist(tmp_path, packed=True)
    else:
        unpack(tmp_path, "cifar-100-binary", {"train.bin": records(np.arange(5), 1), "test.bin": records(np.arange(5, 8), 1)})
    dataset, output = "fashion-mnist" if is_lenet else "cifar100", tmp_path / "out"
    options = ["--dataset", dataset, "--device", "cpu", "--threads", "1", "--epochs", "1", "--fold"]
    train_paper.main([name, *options, "--data", str(tmp_path), "--output", str(output)])
    printed = capsys.readouterr().out
    assert f"{name} on {dataset}, epochs: 1, on the CPU (threads: 1): about" in printed
    monkeypatch.setattr(trained_networks, "TRAINED", output)
    kinds = {}
    for folded in (False, True):
        network = trained_networks.trained(name, dataset, folded)
        graph = onnx.load(network.path).graph
        kinds[folded] = [node.op_type for node in graph.node].count("BatchNormalization")
        inputs = network.inputs("calibration")
        assert inputs.shape[1:] == ((1, 28, 28) if is_lenet else (3, 32, 32))
        assert network.decided == (5 if is_lenet else 3, "test images")
        assert 0.0 <= network.accuracy(network.path) <= 100.0
        assert {numpy_helper.to_array(each).dtype.name for each in graph.initializer} <= {"float32", "int64"}
    assert (
        kinds
        == {
            "lenet-300-100": {False: 0, True: 0},
            "vgg-16": {False: 13, True: 0},
            "resnet-56": {False: 55, True: 0},
            "wrn-40-4": {False: 37, True: 18},  # those that read a sum stand behind no convolution
        }[name]
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["resnet-56", "--dataset", "fashion-mnist"], "reads images of another size"),
        (["resnet-56", "--data", "nowhere"], "nowhere holds no images of cifar10: name a folder"),
        (["resnet-56", "--epochs", "0"], "--epochs: at least 1"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(capsys, arguments, text):
    with pytest.raises(SystemExit) as ended:
        train_paper.main([*arguments, "--device", "cpu"])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err.splitlines()[-1]
