"""Neurons that are positive multiples of others merge without loss, for every topology that merging accepts."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from running import analysed, built, relative_error, run, tolerance_of, weights_of, written
from topologies import TOPOLOGIES, Duplicates, Topology, feeds_of, scaled_duplicates

from onnxmerge.errors import Refusal
from onnxmerge.graph.channel_groups import ChannelGroup, Channels
from onnxmerge.graph.rewrite import Removal, rewrite
from onnxmerge.onnxio.export import export
from onnxmerge.options import PruningOptions
from onnxmerge.pipeline.compress import compress
from onnxmerge.pruning.merge import absorbed, merge

pytestmark = pytest.mark.usefixtures("harmless_models")

# Copies have a cosine of exactly one with their bases, so a threshold just below takes those pairs only.
OPTIONS = PruningOptions(method="merge", criterion="l2-norm", threshold=0.999)
# What leaves together is a channel of every group of the convolution before the shuffle: its pairs need one factor.
ONE_FACTOR = {"channel-shuffle"}
# Groups of mixed topologies (`merge` is None there) that merging refuses.
REFUSED = {
    ("inverted-residual", "expand"),
    ("inverted-residual-bn", "expand"),
    ("residual-preactivation", "stem"),
    ("squeeze-excite", "expand"),
    ("squeeze-excite-gemm", "expand"),
    ("group-norm-as-instance-norm", "conv_a"),
    *((name, layer) for name in TOPOLOGIES if name.startswith("attention-") for layer in ("query", "qkv", "fc_1", "gate")),
    ("shuffle-v2-unit", "stem"),
    ("shuffle-v2-unit", "conv_a"),
    ("shuffle-v2-unit", "conv_c"),
    ("gate-expanded-to-shape", "conv_a"),
    ("group-norm-of-dynamic-size", "conv_a"),
    ("embedding-added", "fc_a"),
}
# Weights that `scaled_duplicates` cannot write: by hand, the tensors whose first axis holds the channels of the first producer.
BY_HAND = {
    "weights-in-constant-nodes": ("conv_a_w", "conv_a_b"),
    "weight-behind-identity": ("stored", "conv_a_b"),
    "weight-behind-transpose": ("stored", "fc_a_b"),
    "weight-behind-squeeze": ("stored", "conv_a_b"),
    "weight-behind-reshape": ("stored", "conv_a_b"),
    "shared-weight-joined": ("shared_w", "shared_b"),
    "einsum-sequence": ("fc_a_w",),
    "einsum-image": ("conv_a_w", "conv_a_b"),
    "bias-shared-through-identity": ("conv_a_w", "stored_b"),
    "bn-scale-and-variance-one-tensor": ("conv_a_w", "conv_a_b"),
}
# One bias for all channels, one weight or set of BatchNormalization parameters for two layers: no duplicates can be made. A
# channel that the consumer reads twice, and its copy that is read once, are not the same to the program: it drops the copy. Where
# channels leave in pairs, a pair is no multiple of itself.
WITHOUT = {
    "gemm-bias-scalar",
    "bn-parameters-shared",
    "gather-channels-repeated",
    "gather-channels-onto-two-axes",
    "slice-channels-in-steps",
    "tied-with-its-transpose",
    "tied-gemm-transb",
}


def cases() -> list:
    found = []
    for topology in TOPOLOGIES.values():
        if not topology.runnable or topology.merge is False or topology.id in WITHOUT:
            continue
        tied = {name for names in topology.tied for name in names}
        single = [(name,) for name, count in topology.removable.items() if count and name not in tied]
        groups = [names for names in topology.tied if topology.removable.get(names[0])] + single
        groups = groups[:1] if topology.id in BY_HAND else groups
        ids = [(topology.id, names[0]) for names in groups]
        params = [pytest.param(topology, names, id="-".join(key)) for names, key in zip(groups, ids, strict=True)]
        found += [param for param, key in zip(params, ids, strict=True) if key not in REFUSED]
    return found


def duplicated(topology: Topology, producers: tuple[str, ...], *, negative: bool = False) -> Duplicates:
    if topology.id in BY_HAND:
        return by_hand(built(topology), BY_HAND[topology.id], negative)
    return scaled_duplicates(built(topology), *producers, same_factor=topology.id in ONE_FACTOR, negative=negative)


def by_hand(model: onnx.ModelProto, names: tuple[str, ...], negative: bool) -> Duplicates:
    """Channel 1 = factor * channel 0, 3 = factor * 2, and so on; the bases' rows have norm 1."""
    weight = weights_of(model)[names[0]]
    base, copy = np.arange(0, len(weight) - 1, 2), np.arange(1, len(weight), 2)
    factor = np.random.default_rng(3).uniform(0.3, 0.6, len(base)) * (-1 if negative else 1)
    norms = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
    for name in names:
        values = weights_of(model)[name].astype(np.float64)
        shape = (-1,) + (1,) * (values.ndim - 1)
        values = values / norms.reshape(shape) if values.ndim > 1 else values
        values[copy] = factor.reshape(shape) * values[base]
        replace_tensor(model, name, values.astype(np.float32))
    return Duplicates(model, base, copy, factor, factor, ())


def replace_tensor(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    stored = [tensor for tensor in model.graph.initializer if tensor.name == name]
    stored += [node.attribute[0].t for node in model.graph.node if node.op_type == "Constant" and node.output[0] == name]
    (tensor,) = stored
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def merged(duplicates: Duplicates, producers: tuple[str, ...], folder: Path) -> tuple[onnx.ModelProto, Removal, np.ndarray]:
    """(the model after merging one group, what was decided, the channels that are copies)."""
    channels = analysed(duplicates.model, folder).channels
    group = group_of(channels, producers)
    copies = np.flatnonzero(np.isin(group.producers[0].positions, duplicates.copy).any(1))
    removal = merge(channels, group, group.size - len(copies), OPTIONS, None)
    assert not isinstance(removal, Refusal), removal.text
    return export(rewrite(channels, [removal], absorbed([removal]))), removal, copies


def group_of(channels: Channels, producers: tuple[str, ...]) -> ChannelGroup:
    (found,) = [group for group in channels.groups if producers[0] in {link.name for link in group.producers}]
    assert {link.name for link in found.producers} == set(producers)
    return found


@pytest.mark.parametrize(("topology", "producers"), cases())
def test_positive_multiples_merge_exactly(topology: Topology, producers: tuple[str, ...], tmp_path: Path) -> None:
    duplicates, feeds = duplicated(topology, producers), feeds_of(topology)
    small, removal, copies = merged(duplicates, producers, tmp_path)
    onnx.checker.check_model(small, full_check=True)
    assert len(copies) >= removal.group.size / 3
    assert not np.isin(copies, removal.kept).any()
    assert relative_error(run(duplicates.model, feeds), run(small, feeds)) < tolerance_of(topology, 1e-5)


@pytest.mark.parametrize(("topology", "producers"), cases())
def test_negative_multiples_do_not_merge(topology: Topology, producers: tuple[str, ...], tmp_path: Path) -> None:
    _, removal, copies = merged(duplicated(topology, producers, negative=True), producers, tmp_path)
    gone = np.setdiff1d(np.arange(removal.group.size), removal.kept)
    assert np.array_equal(gone, copies)
    assert not removal.scaling[gone].any()
    kept = removal.scaling[removal.kept]
    assert np.array_equal(kept, np.eye(len(kept)))


@pytest.mark.parametrize(("name", "producer"), [("conv-bn-relu", "conv_a"), ("bn-relu-conv-preactivation", "conv_b")])
def test_the_scale_comes_from_batch_normalization_too(name: str, producer: str, tmp_path: Path) -> None:
    """The rows are multiples by one factor, the activations by another: the one that the consumer sees counts."""
    duplicates = duplicated(TOPOLOGIES[name], (producer,))
    _, removal, copies = merged(duplicates, (producer,), tmp_path)
    assert not np.allclose(duplicates.factor, duplicates.row_factor, rtol=0.05)
    np.testing.assert_allclose(removal.scaling[copies].max(1), duplicates.factor, rtol=1e-5)


@pytest.mark.parametrize("name", ["conv-relu-conv", "conv-bn-relu", "gemm-relu-gemm-alpha-beta", "residual-two-blocks", "unet"])
def test_compress_merges_as_the_method_alone_does(name: str, tmp_path: Path) -> None:
    """From file to file, with the paper's threshold, at half of the channels of the duplicated group."""
    topology = TOPOLOGIES[name]
    tied = topology.tied[0] if topology.tied else (next(key for key, count in topology.removable.items() if count),)
    duplicates, feeds = duplicated(topology, tied), feeds_of(topology)
    source, target = written(duplicates.model, tmp_path), tmp_path / "out.onnx"
    result = compress(source, target, ratio=0.5, method="merge", criterion="l2-norm", include=(tied[0],), verify=False)
    assert [group.method for group in result.groups] == ["merge"]
    assert relative_error(run(duplicates.model, feeds), run(target, feeds)) < 1e-5
    plain = compress(source, target, ratio=0.5, method="prune", include=(tied[0],), verify=False)
    assert plain.after.parameters == result.after.parameters
    assert relative_error(run(duplicates.model, feeds), run(target, feeds)) > 1e-2
