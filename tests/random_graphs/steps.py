"""The registry of steps: functions that take a value and give the next one."""

from __future__ import annotations

from collections.abc import Callable

from .graph import Graph, Skip, Value

Step = Callable[[Graph, Value], Value]
STEPS: dict[str, tuple[float, tuple[str, ...], Step, int]] = {}
"""By name: how often, for which kinds of values, the function, and from which seed on."""


def step(weight: float, *kinds: str, first_seed: int = 0) -> Callable[[Step], Step]:
    """Register a step: `weight` against the others, `kinds` of values that it takes.

    first_seed: a new step is left out of the graphs of lower seeds, so that those kept as cases stay what they were.
    """

    def register(function: Step) -> Step:
        if function.__name__ in STEPS:
            raise ValueError(f"step {function.__name__} is there twice")
        STEPS[function.__name__] = weight, kinds or ("image", "tokens", "vector"), function, first_seed
        return function

    return register


def any_step(g: Graph, x: Value) -> Value:
    """One step that fits, with a nudge towards layers by the weights of the table."""
    fitting = [(weight, function) for weight, kinds, function, first in STEPS.values() if x.kind in kinds and g.seed >= first]
    total = sum(weight for weight, _ in fitting)
    for _ in range(50):
        function = fitting[int(g.rng.choice(len(fitting), p=[weight / total for weight, _ in fitting]))][1]
        counts = len(g.nodes), len(g.initializers), len(g.earlier)
        try:
            return function(g, x)
        except Skip:
            del g.nodes[counts[0] :], g.initializers[counts[1] :], g.earlier[counts[2] :]
    return x
