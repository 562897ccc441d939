"""What to know of a fidelity before relying on it, a line each."""

from onnxmerge.results.fidelity import MIN_CHECK_INPUTS, ROW_FIDELITY, Fidelity

LEAST_VARIATION = 0.01
"""Variation of an output below which its fidelity on synthetic inputs says little. Of 51 outputs of 32 deployed and trained
models 50 have 0.017 and more there, those of image classifiers 0.26; a two-class network that was useless at a fidelity of 0.97
has 0.006, and 0.19 on photographs."""

UNSURE = 2.0
"""Multiple of the allowed changed decisions up to which the end of their interval is no news: it is beyond the limit itself
wherever a search has gone up to that, and from about 180 inputs on within the double of 2 %."""


def few_inputs(count: int, description: str) -> list[str]:
    """A warning where a fidelity rests on fewer than `MIN_CHECK_INPUTS`."""
    if count >= MIN_CHECK_INPUTS:
        return []
    return [f"the fidelity rests on {description}, which is too few to rely on: give `calibration` with 100 inputs or more"]


def unsure_decisions(fidelity: Fidelity, most: float | None) -> list[str]:
    """A warning where the inputs cannot tell whether more than twice `most` of the decisions change; None for no limit."""
    decided = fidelity.most_changed
    if most is None or decided is None or decided.changed_decisions is None or decided.changed_decisions_high is None:
        return []
    if decided.changed_decisions_high <= UNSURE * most:
        return []
    share = f"{decided.changed_decisions:.1%}" if decided.changed_decisions else "none"
    told = f"on {fidelity.input_count} inputs {share} of the decisions are expected to change"
    allowed = f"{most:.1%} was allowed" if most else "none may"
    may = f"on others it may be up to {decided.changed_decisions_high:.1%}, and {allowed}"
    return [f"{told}, {may}: give more inputs, or compare on some hundreds of others with `onnxmerge verify` before you deploy"]


def lost_parts(fidelity: Fidelity) -> list[str]:
    """A warning that names outputs of which rows are lost that count little in the fidelity."""
    lost = [each for each in fidelity.outputs if each.lost_rows and each.fidelity >= ROW_FIDELITY and not each.has_decisions]
    told = ", ".join(f"{each.lost_rows} of the {each.rows} rows of '{each.name}'" for each in lost)
    what = "which its fidelity does not show: rows count there by how much they vary, as scores hardly do beside boxes"
    return [f"more than half of what {told} tell is lost, {what}: try the result before you use it"] if lost else []


def constant_outputs(fidelity: Fidelity) -> list[str]:
    """Warnings that name outputs that are, or decide, the same for all inputs."""
    names = [output.name for output in fidelity.outputs if output.is_constant]
    what = f"outputs {', '.join(names)} are" if len(names) > 1 else f"output {', '.join(names)} is"
    cure = "what its fidelity says of other inputs is little; give `calibration` with inputs that it tells apart"
    same = [f"{what} the same for all inputs it was compared on: {cure}"] if names else []
    if "synthetic" in fidelity.input_description:
        others = (each for each in fidelity.outputs if not each.is_constant and not each.has_one_decision)
        alike = ", ".join(f"'{each.name}' by {each.variation:.1%}" for each in others if each.variation < LEAST_VARIATION)
        little = "so that their fidelity says little of real ones: give `calibration`"
        same += [f"outputs hardly differ between the synthetic inputs ({alike} of its size), {little}"] if alike else []
    decided = [f"'{output.name}'" for output in fidelity.outputs if output.has_one_decision and not output.is_constant]
    told = "the model decided the same for all inputs it was compared on"
    asked = "whether decisions change cannot be told, and a fidelity alone says little: give `calibration` with all classes"
    return [*same, f"{told} (best class of {', '.join(decided)}): {asked}"] if decided else same
