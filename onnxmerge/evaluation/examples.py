"""Which inputs came out worst and in the middle, by the names that their user knows, to be looked at."""

from dataclasses import replace

from onnxmerge.data.inputs import Inputs
from onnxmerge.data.thumbnails import picture_of
from onnxmerge.results import ExampleInput, Fidelity


def with_examples(fidelity: Fidelity, inputs: Inputs) -> Fidelity:
    """A fidelity in which inputs have their numbers among all that were given, with the worst and a median one as examples.

    Parameters
    ----------
    fidelity : Fidelity
        As `compare` gives it: inputs are numbered in the order in which they were compared.
    inputs : Inputs
        What it was measured on.
    """
    worst = fidelity.worst
    chosen = {"worst": (worst.worst_input, worst.relative_l2_worst), "median": (worst.median_input, worst.relative_l2_median)}
    chosen = {} if worst.unmeasured else chosen
    examples = tuple(
        ExampleInput(which, inputs.name_of(position), error, picture_of(inputs, position))
        for which, (position, error) in chosen.items()
    )
    outputs = tuple(
        replace(each, worst_input=inputs.number_of(each.worst_input), median_input=inputs.number_of(each.median_input))
        for each in fidelity.outputs
    )
    return replace(fidelity, outputs=outputs, examples=examples)
