"""The first walk: the reference on the inputs at hand, with the moments of whatever its consumers read."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto

from onnxmerge.algorithms.least_squares import CORRECTION_EXPONENT
from onnxmerge.algorithms.moments import Covariance
from onnxmerge.data.inputs import Inputs
from onnxmerge.errors import InputError
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.execution.memory import physical_memory
from onnxmerge.execution.shapes import Observations
from onnxmerge.execution.submodel import shallow_first
from onnxmerge.execution.tensor_specs import Feeds
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.channel_groups import Channels
from onnxmerge.graph.channel_propagation import Product
from onnxmerge.graph.downstream import DownstreamAffine, downstream_affine_of
from onnxmerge.graph.layers import Layer
from onnxmerge.onnxio import surgeon as gs
from onnxmerge.onnxio.bodies import outputs_of_bodies
from onnxmerge.onnxio.export import export
from onnxmerge.onnxio.storage import fits_one_message
from onnxmerge.options import Progress
from onnxmerge.statistics.consumer_moments import channel_covariance
from onnxmerge.statistics.product_moments import ProductMoments, product_moments
from onnxmerge.statistics.wide_layers import too_wide

# Bytes of the largest tensor of a batch, and inputs. Memory of arrays of up to 32 MiB is used again (glibc), that of larger ones
# is mapped anew each time: batches of 13 inputs of a ResNet-50, of 42 MB, took half as long again as those of 4.
BATCH_BYTES, LARGEST_BATCH = 1 << 24, 64
MISSING = "pruned by its weights: another machine had too little memory for the statistics of its channels"
Replaced = tuple[list[NodeProto], dict[str, np.ndarray]]  # what stands in the place of a node, and the constants that it reads
LOWEST_VARIANCE = 1e-4  # of the stored one: a channel that synthetic inputs leave constant must not be blown up


@dataclass(frozen=True)
class RunContext:
    """What both walks need: the exported model, where its nodes stand, and what it is run on."""

    channels: Channels
    model: ModelProto
    batches: Callable[[], Iterable[Feeds]]
    synthetic: bool
    correction_exponent: float
    threads: int | None
    folder: Path  # where external data of the model is
    weights: Mapping[str, np.ndarray]  # by name, those that the layers of `channels` hold; the model lacks them
    progress: Progress

    @cached_property
    def node_index(self) -> dict[str, int]:
        """Output of a node -> its position."""
        return {name: at for at, node in enumerate(self.model.graph.node) for name in node.output}

    def new_run(self, replaced: Mapping[int, Replaced] | None = None, batches: Iterable[Feeds] | None = None) -> LayerwiseRun:
        """A run of the model with nodes replaced, on the batches or on others, before its first node."""
        given = self.batches() if batches is None else batches
        run = LayerwiseRun(self.model, given, self.threads, self.folder, constants=self.weights)
        for index, (nodes, constants) in (replaced or {}).items():
            run.replace_node(index, nodes, constants)
        return run


@dataclass(frozen=True)
class ReferenceStatistics:
    """By key of each consumer what it reads and what follows it.

    matched: BatchNormalizations matched to the inputs, by index of the node.
    products: by key, moments of the factors of products of two computed tensors. Consumers that are `too_wide` have no covariance
    but the reason why.
    """

    matched: dict[int, Replaced]
    layers: dict[str, Layer]
    covariances: dict[str, Covariance]
    products: dict[str, ProductMoments]
    downstream: dict[str, DownstreamAffine]
    shared_weight_keys: frozenset[str]
    too_wide: dict[str, str]


def run_context_of(analysed: AnalysedModel, inputs: Inputs, threads: int | None, progress: Progress) -> RunContext:
    """The model and the inputs, ready to be walked."""
    tensors = [*analysed.model.graph.inputs, *(tensor for node in analysed.model.graph.nodes for tensor in node.outputs)]
    computed = [each.name for each in tensors if each.name in analysed.shapes and analysed.channels.constant(each) is None]
    largest = max(4 * math.prod(analysed.shapes[name]) for name in computed) // inputs.call_size
    size = int(np.clip(BATCH_BYTES // max(1, largest), 1, LARGEST_BATCH))
    inputs_of = ((layer.node.inputs[layer.weight_input], layer.stored_weight) for layer in analysed.channels.layers)
    in_memory = fits_one_message(analysed.model)
    weights = {tensor.name: value for tensor, value in inputs_of if in_memory and isinstance(tensor, gs.Constant)}
    model = export(analysed.model, weights)
    _count_bodies(model, analysed.observed)
    shallow_first(model)
    batches, synthetic, folder = partial(inputs.batches, size), inputs.synthetic, analysed.model.folder
    exponent = CORRECTION_EXPONENT if synthetic else 0.0  # real inputs need none
    return RunContext(analysed.channels, model, batches, synthetic, exponent, threads, folder, weights, progress)


def _count_bodies(model: ModelProto, observed: Observations) -> None:
    """Make what bodies give outputs of the model: their layers matter also where no input at hand leads into them."""
    known = {value.name for value in model.graph.output}
    floats = [name for name in outputs_of_bodies(model) if name in observed and observed[name].dtype.kind == "f"]
    model.graph.output.extend(ValueInfoProto(name=name) for name in floats if name not in known)


def collect_reference_statistics(context: RunContext, known: Mapping[str, Covariance] | None = None) -> ReferenceStatistics:
    """First walk: moments of the inputs of every consumer. known: these, where they have been taken.

    On synthetic inputs every BatchNormalization gets the statistics of its own input on the way, so that each channel has the
    mean and standard deviation that training gave it.
    """
    layers = {layer.key: layer for layer in context.channels.layers if layer.in_ids.any()}
    products = {product.key: (group, product) for group in context.channels.groups for product in group.products}
    left_out, shared = too_wide(layers.values(), physical_memory()), context.channels.shared_weight_keys
    if known is not None:  # a worker may have less memory than this machine
        left_out |= {key: MISSING for key in layers if key not in known and key not in left_out}
    walk = context.new_run()
    stops: dict[int, list[Layer | Product]] = defaultdict(list)
    observed: list[Layer | Product] = [layer for key, layer in layers.items() if known is None and key not in left_out]
    for each in (*observed, *(product for _, product in products.values())):
        stops[context.node_index[each.key]].append(each)
    normal = _normalisations(context) if context.synthetic and known is None else {}
    covariances, moments, matched = dict(known or {}), dict[str, ProductMoments](), dict[int, Replaced]()
    seen: dict[tuple[str, bytes], Covariance] = {}
    ordered = sorted(stops.keys() | normal.keys())
    for number, at in enumerate(ordered):
        walk.run_until(at)
        if at in normal:
            matched[at] = _match(walk, at, normal[at])
            walk.replace_node(at, *matched[at])
        for each in stops.get(at, []):
            if isinstance(each, Product):
                moments[each.key] = product_moments(walk, context.channels, *products[each.key])
                continue
            same = (each.source, each.channel_positions.tobytes())
            if same not in seen:
                seen[same] = channel_covariance(walk, each)
            covariances[each.key] = seen[same]
            if not np.isfinite(seen[same].xx).all():
                remedy = "give real ones with `calibration`, or take `method` prune with `ratio`"
                raise InputError(f"tensor {each.source} holds NaN or infinity on these inputs; {remedy}")
        context.progress("statistics", (number + 1) / len(ordered))
    downstream = {key: downstream_affine_of(context.channels, layer, walk.constants) for key, layer in layers.items()}
    return ReferenceStatistics(matched, layers, covariances, moments, downstream, shared, left_out)


def _normalisations(context: RunContext) -> dict[int, np.ndarray]:
    """Position of each BatchNormalization with stored statistics -> its variance."""
    found = {}
    for node in context.channels.model.graph.nodes:
        if node.op == "BatchNormalization" and node.domain in (None, "", "ai.onnx"):
            variance = context.channels.constant(node.inputs[4])
            if variance is not None and variance.ndim == 1:
                found[context.node_index[node.outputs[0].name]] = variance
    return found


def _match(walk: LayerwiseRun, at: int, before: np.ndarray) -> Replaced:
    """A BatchNormalization with the mean and variance of what it reads in this run; before: the stored variance."""
    node = deepcopy(walk.nodes[at][0])
    count, total, squares = 0, np.zeros(len(before)), np.zeros(len(before))
    for number in range(walk.batch_count):
        for one in walk.tensor(number, node.input[0]):
            rows = one.reshape(len(before), -1).astype(np.float64)
            count += rows.shape[1]
            total += rows.sum(1)
            squares += np.einsum("cs,cs->c", rows, rows)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, LOWEST_VARIANCE * before.astype(np.float64))
    names = [f"{node.output[0]}//mean", f"{node.output[0]}//variance"]
    node.input[3], node.input[4] = names
    return [node], {names[0]: mean.astype(before.dtype), names[1]: variance.astype(before.dtype)}
