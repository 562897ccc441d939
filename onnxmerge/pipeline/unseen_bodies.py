"""Bodies of If that were changed although no input at hand leads into them: what they give was not compared."""

from collections import defaultdict

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import BATCH
from onnxmerge.execution.layerwise import LayerwiseRun
from onnxmerge.graph.analysed_model import AnalysedModel
from onnxmerge.graph.flat_bodies import has_bodies_out, with_bodies_back
from onnxmerge.onnxio.bodies import bodies_by_key, body_key, loop_of
from onnxmerge.onnxio.export import export
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.traversal import tensors_read


def unseen_bodies(analysed: AnalysedModel, candidate: Model, checking: Inputs) -> list[str]:
    """A warning that names a changed body of an If that none of the inputs leads into; bodies inside a Loop are not looked at."""
    if not has_bodies_out(analysed.model):
        return []
    before, after = (bodies_by_key(model.proto) for model in (with_bodies_back(analysed.model), candidate))
    proto, in_loops = export(analysed.model), set[str]()
    conditions: dict[str, tuple[NodeProto, str]] = {}  # by key of each changed body
    for node in proto.graph.node:
        if loop_of(node.name) or not in_loops.isdisjoint(tensors_read(node)):
            in_loops.update(node.output)
        elif node.op_type == "If":
            keys = {body_key(node, name): (node, name) for name in ("then_branch", "else_branch")}
            conditions |= {key: place for key, place in keys.items() if _is_changed(before.get(key), after.get(key))}
    seen = _values([node.input[0] for node, _ in conditions.values()], proto, checking)
    unseen = [place for place in conditions.values() if seen.get(place[0].input[0]) == {place[1] == "else_branch"}]
    if not unseen:
        return []
    node, name = unseen[0]
    others = f" and {len(unseen) - 1} more bodies" if len(unseen) > 1 else ""
    which = f"{name} of {node.name or node.output[0]}{others}"
    return [f"no input leads into {which}, so that what changed there was not compared: give such inputs with `calibration`"]


def _is_changed(before: GraphProto | None, after: GraphProto | None) -> bool:
    """Whether two bodies compute something else; which constants of the graph around they hold themselves does not matter."""
    if before is None or after is None:
        return before is not after
    stored = {tensor.name: tensor for tensor in before.initializer}
    return before.node != after.node or any(stored.get(each.name, each) != each for each in after.initializer)


def _values(names: list[str], proto: ModelProto, inputs: Inputs) -> dict[str, set[bool]]:
    """Which values conditions have on the inputs; none of constants."""
    del proto.graph.output[:]
    proto.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(names))
    seen: dict[str, set[bool]] = defaultdict(set)
    run = LayerwiseRun(proto, inputs.batches(BATCH), threads=1)
    session = None if run.available.keys() >= set(names) else run.session_to_outputs({})
    for batch in range(run.batch_count):
        values = {name: run.tensor(batch, name) for name in names if name in run.available}
        values |= {} if session is None else run.run_session(session, batch)
        for name, value in values.items():
            seen[name].add(bool(np.asarray(value).all()))
    return seen
