"""Bodies of If and Loop taken out into the main graph, where channels are followed, and put back.

If:   y = If(c) {a = f(x)} {b = g(x)}   becomes   a = f(x); b = g(x); y = If(c) {a' = Identity(a)} {b' = Identity(b)}
Loop: y = Loop(n, c, v) {s -> f(s)}     becomes   s = state in the last round; a = f(s);
                                                  y = Loop(n, c, v) {t -> f(t); Identity(a)}

Both compute what they computed before. Of a Loop the nodes outside stand for those inside, which are replaced by them when they
are put back: by their names, which tell what stands outside for each.
"""

from collections import defaultdict
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxmerge.onnxio.external_data import is_external
from onnxmerge.onnxio.storage import SMALL_TENSOR_BYTES, size_bytes
from onnxmerge.onnxio.traversal import bodies_of, graph_and_bodies, tensors_read

OUTPUT_MARK = "onnxmerge/body_output/"
"""How the names begin of the nodes in a body that read what the nodes taken out of it write."""
LAST_ROUND = "onnxmerge/last_round/"
"""How the names of the nodes begin that write the state of a Loop in its last round; a number and its first output follow."""
EACH_ROUND = "onnxmerge/each_round/"
"""How the names of the nodes begin that stay in a Loop; the first output of the node that stands for it outside follows."""
RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"})
"""Operators that must be run in each round, whatever they read; so must a Dropout that may be told to train."""


def is_taken_out(body: GraphProto) -> bool:
    """Whether the nodes of a body stand in the graph around it."""
    return any(node.name.startswith(OUTPUT_MARK) for node in body.node)


def bodies_by_key(proto: ModelProto) -> dict[str, GraphProto]:
    """The bodies of a model at any depth, by `body_key`."""
    places = ((node, each) for graph in graph_and_bodies(proto.graph) for node in graph.node for each in node.attribute)
    return {body_key(node, attribute.name): attribute.g for node, attribute in places if attribute.HasField("g")}


def outputs_of_bodies(proto: ModelProto) -> list[str]:
    """What the nodes that were taken out of bodies give to these."""
    marks = (node for graph in graph_and_bodies(proto.graph) for node in graph.node if node.name.startswith(OUTPUT_MARK))
    return list(dict.fromkeys(mark.input[0] for mark in marks))


def draws_numbers(operator: str, inputs: int) -> bool:
    """Whether nodes of an operator with so many inputs draw random numbers."""
    return operator in RANDOM or (operator == "Dropout" and inputs > 2)


def with_names_of_their_own(proto: ModelProto) -> ModelProto:
    """A copy in which no two graphs of a model, its bodies included, have a tensor or a node of the same name."""
    new = ModelProto.FromString(proto.SerializeToString())
    _rename(new.graph, {}, {name for graph in graph_and_bodies(proto.graph) for name in _defined(graph)}, set())
    nodes = [node for graph in graph_and_bodies(new.graph) for node in graph.node if node.name]
    taken, seen = {node.name for node in nodes}, set[str]()
    for node in nodes:
        node.name = _unused(node.name, taken) if node.name in seen else node.name
        seen.add(node.name)
    return new


def bodies_to_take_out(proto: ModelProto, operators: Container[str]) -> list[str]:
    """Keys of the bodies of If and Loop that hold one of these operators, at any depth; outer ones before inner ones."""
    return list(_keys(proto.graph, operators))


def taken_out(proto: ModelProto, keys: Container[str]) -> ModelProto:
    """A copy of a model `with_names_of_their_own`, with the nodes of bodies (keys of `bodies_to_take_out`) in the main graph."""
    new = ModelProto.FromString(proto.SerializeToString())
    taken = {name for graph in graph_and_bodies(new.graph) for name in _defined(graph)}
    nodes = [each for node in proto.graph.node for each in _flat(new.graph, node, keys, taken)]
    del new.graph.node[:]
    new.graph.node.extend(nodes)
    return new


def put_back(proto: ModelProto) -> ModelProto:
    """A copy of a model with the nodes in its bodies again that nothing else reads."""
    new = ModelProto.FromString(proto.SerializeToString())
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in new.graph.node]
    outputs = [value.name for value in new.graph.output]
    for owner in list(nodes):  # inner ones come first
        for attribute in owner.attribute:
            if attribute.HasField("g") and is_taken_out(attribute.g):
                nodes = _put_back(nodes, outputs, owner, attribute)
    known = {value.name: value for value in new.graph.value_info}
    del new.graph.node[:], new.graph.value_info[:]
    new.graph.node.extend(nodes)
    _move_small_constants(new.graph)
    for graph in graph_and_bodies(new.graph):
        declared = {value.name for value in (*graph.value_info, *graph.output)}
        names = [name for node in graph.node for name in node.output]
        graph.value_info.extend(known[name] for name in names if name in known and name not in declared)
    return new


def _move_small_constants(graph: GraphProto) -> None:
    """Put small initializers into the only body that reads them: shape inference looks for them nowhere else."""
    readers: dict[str, list[GraphProto]] = defaultdict(list)
    for each in graph_and_bodies(graph):
        for name in {name for node in each.node for name in node.input} | {value.name for value in each.output}:
            readers[name].append(each)
    for at in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[at]
        first, *others = readers[tensor.name] or [graph]
        if first is not graph and not others and size_bytes(tensor) <= SMALL_TENSOR_BYTES and not is_external(tensor):
            first.initializer.append(tensor)
            del graph.initializer[at]


def _defined(graph: GraphProto) -> list[str]:
    """The tensors that a graph itself has: its inputs, its constants, and what its nodes write."""
    constants = [*(each.name for each in graph.initializer), *(each.values.name for each in graph.sparse_initializer)]
    names = [*(each.name for each in graph.input), *constants, *(name for node in graph.node for name in node.output)]
    return list(dict.fromkeys(filter(None, names)))


def _rename(graph: GraphProto, around: Mapping[str, str], taken: set[str], seen: set[str]) -> None:
    """Give the tensors of a graph and of its bodies names that are not in `seen`, and note these there."""
    names = dict(around)
    for name in _defined(graph):
        names[name] = _unused(name, taken) if name in seen else name
        seen.add(names[name])
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for tensor in (*graph.initializer, *(each.values for each in graph.sparse_initializer)):
        tensor.name = names[tensor.name]
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
        for body in (body for attribute in node.attribute for body in bodies_of(attribute)):
            _rename(body, names, taken, seen)


def _unused(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    taken.add(f"{name}_{number}")
    return f"{name}_{number}"


def body_key(node: NodeProto, attribute: str) -> str:
    """What identifies a body of a node: no two nodes write one tensor."""
    return f"{_first_output(node)}.{attribute}"


def _first_output(node: NodeProto) -> str:
    return next(filter(None, node.output), "")


def _keys(graph: GraphProto, operators: Container[str]) -> Iterator[str]:
    places = (
        (node, each) for node in graph.node if node.op_type in ("If", "Loop") and any(node.output) for each in node.attribute
    )
    for node, attribute in places:
        inside = [inner for each in bodies_of(attribute) for body in graph_and_bodies(each) for inner in body.node]
        is_random = node.op_type == "Loop" and any(draws_numbers(each.op_type, len(each.input)) for each in inside)
        if any(each.op_type in operators for each in inside) and not is_random:
            yield body_key(node, attribute.name)
            yield from _keys(attribute.g, operators)


def _flat(graph: GraphProto, node: NodeProto, keys: Container[str], taken: set[str]) -> Iterator[NodeProto]:
    """A copy of a node, behind the nodes of its bodies; their constants go to the main graph."""
    new = NodeProto.FromString(node.SerializeToString())
    for attribute in new.attribute:
        if not attribute.HasField("g") or body_key(node, attribute.name) not in keys:
            continue
        body = GraphProto.FromString(attribute.g.SerializeToString())
        graph.initializer.extend(body.initializer)
        graph.sparse_initializer.extend(body.sparse_initializer)
        graph.value_info.extend(body.value_info)
        if node.op_type == "Loop":
            for inner in attribute.g.node:
                inner.name = EACH_ROUND + _first_output(inner)
            _rename(attribute.g, {}, taken, set(taken))
            yield from _last_round(node, body, taken)
        else:
            for field in ("node", "initializer", "sparse_initializer", "value_info"):
                attribute.g.ClearField(field)
        for inner in body.node:
            yield from _flat(graph, inner, keys, taken)
        marks = [helper.make_node("Identity", [each.name], [_unused(each.name, taken)]) for each in body.output]
        for mark in marks:
            mark.name = OUTPUT_MARK + mark.output[0]
        attribute.g.node.extend(marks)
        if node.op_type == "If":
            for value, mark in zip(attribute.g.output, marks, strict=True):
                value.name = mark.output[0]
    yield new


def _last_round(node: NodeProto, body: GraphProto, taken: set[str]) -> Iterator[NodeProto]:
    """What writes the inputs of a Loop's body as they are in its last round, or without a number of rounds in its first one.

    They come out of an If, so that nobody takes them for constants, or for equal in all rounds.
    """
    output, states = _first_output(node), node.input[2:]
    constants: dict[str, tuple[int, tuple[int, ...], list[Any]]] = {"always": (TensorProto.BOOL, (), [True])}
    new: list[NodeProto] = []

    def add(operator: str, inputs: Sequence[str], names: Sequence[str], **attributes: Any) -> list[str]:
        outputs = [_unused(name, taken) for name in names]
        new.append(helper.make_node(operator, inputs, outputs, f"{LAST_ROUND}{len(new)}/{output}", **attributes))
        return outputs

    extents = [1] * len(body.input[0].type.tensor_type.shape.dim)
    if node.input[0]:
        constants |= {"one": (TensorProto.INT64, (), [1]), "shape": (TensorProto.INT64, (len(extents),), extents)}
    else:
        constants |= {"number": (TensorProto.INT64, tuple(extents), [0])}
    known = {name: add("Constant", [], [name], value=helper.make_tensor(name, *each))[0] for name, each in constants.items()}
    if node.input[0]:
        (rounds,) = add("Sub", [node.input[0], known["one"]], ["rounds"])
        (known["number"],) = add("Reshape", [rounds, known["shape"]], ["number"])
        before = GraphProto.FromString(body.SerializeToString())
        del before.output[1 + len(states) :]
        _rename(before, {}, taken, set(taken))
        states = add("Loop", [rounds, *node.input[1:]], [f"{name}_before" for name in states], body=before)
    entry = NodeProto(op_type="If", name=f"{LAST_ROUND}{len(new)}/{output}", input=[known["always"]])
    entry.output.extend(each.name for each in body.input)
    for branch in ("then_branch", "else_branch"):
        read = dict(
            zip((_unused(name, taken) for name in entry.output), (known["number"], known["always"], *states), strict=True)
        )
        nodes = [helper.make_node("Identity", [source], [name]) for name, source in read.items()]
        either = helper.make_graph(nodes, branch, [], [helper.make_empty_tensor_value_info(name) for name in read])
        entry.attribute.append(helper.make_attribute(branch, either))
    yield from (*new, entry)


def loop_of(name: str) -> str:
    """Of a node that writes the state of a Loop, by its name: the first output of the Loop; "" for others."""
    return name.removeprefix(LAST_ROUND).partition("/")[2] if name.startswith(LAST_ROUND) else ""


def _put_back(
    nodes: Sequence[NodeProto], outputs: Collection[str], owner: NodeProto, attribute: AttributeProto
) -> list[NodeProto]:
    """The nodes of a graph without those that only a body of one of them reads, which are in the body then."""
    body, output = attribute.g, _first_output(owner)
    entry = next((node for node in nodes if loop_of(node.name) == output and node.op_type == "If"), None)
    marks = [node for node in body.node if node.name.startswith(OUTPUT_MARK)]
    inner = {node.name.removeprefix(EACH_ROUND) for node in body.node}
    state = set[str]() if entry is None else set(entry.output)
    readers: dict[str, set[int]] = defaultdict(set)
    for node in nodes:
        elsewhere = _read_but_in(node, attribute.name) if node is owner else tensors_read(node)
        state.update(node.output if state & elsewhere and node is not owner else ())
        for name in elsewhere:
            readers[name].add(id(node))
    for name in outputs:
        readers[name].add(id(outputs))
    for mark in marks:
        readers[mark.input[0]].add(id(body))
    inside = {id(body)}
    for node in reversed(nodes):
        users = set[int]().union(*(readers[name] for name in node.output if name))
        is_part = owner.op_type == "If" or not state.isdisjoint(node.output) or _first_output(node) in inner
        if users and users <= inside and is_part and not loop_of(node.name):
            inside.add(id(node))
    for field in ("node", "initializer", "sparse_initializer", "value_info"):
        body.ClearField(field)
    for value, name in zip(body.input, () if entry is None else entry.output, strict=False):
        value.name = name
    body.node.extend(node for node in nodes if id(node) in inside)
    written = {name for node in body.node for name in node.output}
    for value, mark in zip(body.output, marks, strict=True):
        is_written = mark.input[0] in written
        written.discard(mark.input[0])  # a body cannot give one tensor twice
        value.name = mark.input[0] if is_written else mark.output[0]
        body.node.extend([] if is_written else [mark])
    return [node for node in nodes if id(node) not in inside and loop_of(node.name) != output]


def _read_but_in(node: NodeProto, attribute: str) -> set[str]:
    """What a node reads, but in one of its bodies."""
    return tensors_read(NodeProto(input=node.input, attribute=[each for each in node.attribute if each.name != attribute]))
