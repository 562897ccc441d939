"""States that a model computes in one call and reads in the next."""

from collections.abc import Iterable, Mapping, Sequence

from onnxmerge.execution.batch_axes import Axes, Shapes
from onnxmerge.execution.tensor_specs import TensorSpec


def fed_back(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], shapes: Shapes, axes: Axes) -> dict[str, str]:
    """By input that looks like a state, the output that may be fed back to it.

    Both have one shape, type and axis of the batch, and the output is called as the input is ("state" and "stateN"), or their
    batch is not on axis 0, as that of recurrent layers. The model must have another input and another output.

    Parameters
    ----------
    inputs, outputs : Sequence of TensorSpec
        Of a model.
    shapes : Mapping of str to tuple of int
        Of both in a run.
    axes : Mapping of str to int
        The batch's axis of both.

    Examples
    --------
    >>> import numpy as np
    >>> x, state, y, new = (TensorSpec(name, "tensor(float)", np.dtype("f4"), ()) for name in ("x", "state", "y", "stateN"))
    >>> fed_back([x, state], [y, new], {"x": (1, 9), "state": (2, 1, 8), "y": (1, 3), "stateN": (2, 1, 8)}, {"x": 0})
    {'state': 'stateN'}
    """
    found: dict[str, str] = {}
    for spec in (each for each in inputs if each.dtype.kind == "f" and len(shapes.get(each.name, ())) > 1):
        alike = (each.name for each in outputs if each.name not in found.values() and _are_alike(spec, each, shapes, axes))
        if (name := next(alike, None)) is not None:
            found[spec.name] = name
    has_others = any(not spec.is_setting and spec.name not in found for spec in inputs) and len(outputs) > len(found)
    return found if has_others else {}


def _are_alike(state: TensorSpec, new: TensorSpec, shapes: Shapes, axes: Axes) -> bool:
    names = state.name.lower(), new.name.lower()
    is_named = names[0] in names[1] or bool(axes.get(state.name))
    same = shapes.get(state.name) == shapes.get(new.name) and axes.get(state.name) == axes.get(new.name)
    return is_named and same and state.dtype == new.dtype


def single_calls(states: Mapping[str, str]) -> Iterable[str]:
    """What a fidelity of single calls does not tell, as a warning."""
    if states:
        pairs = ", ".join(f"{new} as {state}" for state, new in states.items())
        yield (
            f"the figures are of single calls: where {pairs} goes into the next call, as in a stream, errors add up from call to"
            " call, so compare whole sequences before you use it"
        )
