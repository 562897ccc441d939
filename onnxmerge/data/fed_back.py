"""States that a model computes in one call and reads in the next."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from onnxmerge.data.feed_sources import Indices
from onnxmerge.data.inputs import Inputs
from onnxmerge.execution.batch_axes import Axes, Shapes
from onnxmerge.execution.sessions import Session
from onnxmerge.execution.tensor_specs import Feeds, TensorSpec

COMPARED, SAME = 32, 1e-3
"""Inputs by which it is told whether calls follow one another, and the relative difference of states that count as the same."""
CALLS, APART = 8, 1 << 20
"""Calls from zeros to the states that are fed, and numbers between the inputs of one and of the next."""
NEW = frozenset({"", "n", "new", "next", "o", "out", "output", "updated", "last", "final", "present"})
"""What the name of a new state has beside that of the old one; "x_hat" and "recon_x" are no new "x"."""


def fed_back(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], shapes: Shapes, axes: Axes) -> dict[str, str]:
    """By input that looks like a state, the output that may be fed back to it.

    Both have one shape, type and axis of the batch, and the output is called as the input is but for words of `NEW` ("state",
    "stateN"), or their batch is behind a fixed axis, as that of recurrent layers. The model must have another input and output.

    Parameters
    ----------
    inputs, outputs : Sequence of TensorSpec
        Of a model.
    shapes : Mapping of str to tuple of int
        Of both in a run.
    axes : Mapping of str to int
        The batch's axis of both; that of outputs is not known where the batch is fixed.

    Examples
    --------
    >>> import numpy as np
    >>> x, state, y, new = (TensorSpec(name, "tensor(float)", np.dtype("f4"), ()) for name in ("x", "state", "y", "stateN"))
    >>> fed_back([x, state], [y, new], {"x": (1, 9), "state": (2, 1, 8), "y": (1, 3), "stateN": (2, 1, 8)}, {"x": 0})
    {'state': 'stateN'}
    """
    found: dict[str, str] = {}
    is_known = any(each.name in axes for each in outputs)
    for spec in (each for each in inputs if each.dtype.kind == "f" and len(shapes.get(each.name, ())) > 1):
        others = (each for each in outputs if each.name not in found.values())
        alike = (each.name for each in others if _are_alike(spec, each, shapes, axes, is_known))
        if (name := next(alike, None)) is not None:
            found[spec.name] = name
    has_others = any(not spec.is_setting and spec.name not in found for spec in inputs) and len(outputs) > len(found)
    return found if has_others else {}


def _are_alike(state: TensorSpec, new: TensorSpec, shapes: Shapes, axes: Axes, is_known: bool) -> bool:
    before, name, after = new.name.lower().partition(state.name.lower())
    is_named = bool(name) and {*re.split(r"[\W_]+", f"{before}_{after}")} <= NEW
    is_named |= bool(axes.get(state.name)) and isinstance(state.dims[0], int)  # layers; steps of a sequence are open
    same_axis = not is_known or axes.get(state.name) == axes.get(new.name)
    return is_named and same_axis and shapes.get(state.name) == shapes.get(new.name) and state.dtype == new.dtype


def replaced_states(inputs: Inputs, states: Mapping[str, str]) -> dict[str, str]:
    """Those of the states that `with_own_states` replaces, of such synthetic inputs."""
    return {state: new for state, new in states.items() if state in inputs.axes} if inputs.by_row else {}


def with_own_states(inputs: Inputs, session: Session, states: Mapping[str, str]) -> Inputs:
    """Synthetic inputs whose states are what a model computes of others, one after the other, from zeros.

    Parameters
    ----------
    inputs : Inputs
        Synthetic, of a model that takes any batch, or one input a call; what its states are makes no difference.
    session : Session
        The model.
    states : Mapping of str to str
        By input that is a state the output that is fed back to it; those without the batch are left as they are.
    """
    known = replaced_states(inputs, states)
    if not known:
        return inputs

    def take(indices: Indices) -> dict[str, np.ndarray]:
        calls = _calls(inputs, indices)
        feeds = next(calls)
        own = {state: np.zeros_like(feeds[state]) for state in known}
        for others in calls:
            computed = session.run({**others, **own})
            own = {state: computed[new] for state, new in known.items()}
        return {**feeds, **own}

    assumed = {**inputs.assumed, **dict.fromkeys(known, f"what the model computes of {CALLS} other synthetic inputs, from zeros")}
    description = f"{inputs.description}, {', '.join(known)} as the model itself computes"
    return replace(inputs, take=take, assumed=assumed, description=description)


def _calls(inputs: Inputs, indices: Indices) -> Iterator[Feeds]:
    """The inputs with these indices, then those of `CALLS` calls; of a single input drawn together, in half of the time."""
    if len(indices) > 1:
        yield from (inputs.take(indices + call * APART) for call in range(CALLS + 1))
        return
    drawn, axes = inputs.take(indices + np.arange(CALLS + 1) * APART), inputs.axes
    for call in range(CALLS + 1):
        yield {name: value.take([call], axes[name]) if name in axes else value for name, value in drawn.items()}


def follow_one_another(inputs: Inputs, session: Session, states: Mapping[str, str]) -> bool:
    """Whether most of the first inputs have the states that the model computes in the call before, as those of one stream."""
    known = {state: new for state, new in states.items() if state in inputs.axes}
    count = min(COMPARED, inputs.count)
    if not known or count < 3:
        return False
    seen = []
    for position in range(count):
        feeds = inputs.take(inputs.indices[position : position + 1])
        seen.append((feeds, session.run(feeds)))
    fed = (all(_is_same(before[new], after[state]) for state, new in known.items()) for (_, before), (after, _) in pairwise(seen))
    return 2 * sum(fed) > count - 1


def _is_same(computed: np.ndarray, fed: np.ndarray) -> bool:
    size = float(np.linalg.norm(computed))
    return computed.shape == fed.shape and size > 0.0 and float(np.linalg.norm(computed - fed)) <= SAME * size
