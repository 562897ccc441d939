"""`verify`: how close the outputs of one file are to another's."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxmerge.data.first_layers import properties_of_file
from onnxmerge.data.given_shapes import first_runs_of_pair
from onnxmerge.data.inputs import Inputs
from onnxmerge.data.labels import read_labels
from onnxmerge.data.npy_files import save_feeds
from onnxmerge.data.selection import BATCH, inputs_for
from onnxmerge.errors import ModelError, OptionError, UnusedOptionError, VerificationError
from onnxmerge.evaluation.examples import with_examples
from onnxmerge.evaluation.fidelity import compare
from onnxmerge.evaluation.layer_checks import compare_some_layers, fits_in_memory, layer_failures
from onnxmerge.evaluation.node_views import graph_view
from onnxmerge.evaluation.output_kinds import output_kinds
from onnxmerge.evaluation.thresholds import asked_of_outputs, missed_sizes, size_checks
from onnxmerge.execution.providers import provider_of
from onnxmerge.execution.sessions import Session, open_pair
from onnxmerge.execution.tensor_specs import Feeds, batch_size
from onnxmerge.graph.analysed_model import shapes_of, size_of_file
from onnxmerge.onnxio.finite import weights_not_finite
from onnxmerge.onnxio.model_files import as_file, model_name, weight_files
from onnxmerge.onnxio.side_files import check_output_file
from onnxmerge.onnxio.stored_provenance import stored_provenance
from onnxmerge.onnxio.validation import read_checked
from onnxmerge.options import InputOptions, Progress, PruningOptions, RuntimeOptions, Thresholds, silent
from onnxmerge.options.checks import as_text
from onnxmerge.options.keywords import options_of, takes
from onnxmerge.options.unused import READING, TIMING, VALUES, refuse_unread, refuse_unused
from onnxmerge.results import Fidelity, Size, ThresholdCheck, Verification
from onnxmerge.results.execution import chosen_sizes
from onnxmerge.results.fidelity_warnings import constant_outputs, few_inputs, lost_parts, unsure_decisions


@takes(InputOptions, RuntimeOptions, Thresholds)
def verify(
    reference: str | Path | ModelProto,
    candidate: str | Path | ModelProto,
    *,
    max_changed_decisions: float | str | None = None,
    labels: str | Path | None = None,
    layers: bool = False,
    save_worst: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Verification:
    """Compare the outputs of one model with those of another on the same inputs.

    Without thresholds of the outputs a mean cosine similarity of 0.9 is needed, and between models of the same channel counts
    outputs that are equal but for rounding. The result says beside where the candidate keeps less than `compress` does by
    default: all but 2 % of the decisions and a fidelity of 0.94, of outputs without decisions 0.97.

    Parameters
    ----------
    reference, candidate : str, Path or ModelProto
        Path of a model, or the model itself.
    max_changed_decisions : float, str or None
        Greatest share of the decisions that may be expected to change, as `compress` takes it.
    labels, save_worst : str, Path or None
        .npy or .npz file of the classes of the calibration inputs, for the accuracy of both models; .npz file for the input that
        differs most.
    layers : bool
        Whether the models are compared layer by layer too.
    progress : Progress or None
        Called with the name of a stage and the share of the work that is done.
    **options
        Fields of `InputOptions`, `RuntimeOptions` and `Thresholds`, or such objects as `inputs`, `runtime` and `thresholds`.

    Returns
    -------
    Verification
        How close the candidate is, and what it fails for; a failure is no exception here.

    Raises
    ------
    ModelError, OptionError, InputError, ProviderError
        Where the user can act.

    Examples
    --------
    >>> import onnxmerge
    >>> result = onnxmerge.verify("model.onnx", "model.onnx")
    >>> result.passed, result.fidelity.worst.fidelity
    (True, 1.0)
    """
    most_changed = PruningOptions(max_changed_decisions=max_changed_decisions).max_changed_decisions  # type: ignore[arg-type]
    parts = *options_of(options, InputOptions, RuntimeOptions, Thresholds), most_changed
    if parts[2].min_speedup is not None:
        raise OptionError("`verify` times nothing, so that it cannot hold `min_speedup`: `bench` does")
    refuse_unused([parts[1]], TIMING, "a verification times nothing", "drop it")
    refuse_unread(parts[0])
    label_file, worst_file = (None if each is None else Path(each) for each in (labels, save_worst))
    with as_file(reference) as first, as_file(candidate) as second:
        result = _verify_files(first, second, label_file, layers, worst_file, progress or silent, *parts)
        return replace(result, reference=model_name(reference), candidate=model_name(candidate))


def _verify_files(
    reference: Path,
    candidate: Path,
    label_file: Path | None,
    layers: bool,
    worst_file: Path | None,
    progress: Progress,
    given: InputOptions,
    runtime: RuntimeOptions,
    thresholds: Thresholds,
    most_changed: float | None,
) -> Verification:
    _check_files(reference, candidate, given, label_file, worst_file)
    progress("reading the models", 0.0)
    provider = provider_of(runtime)
    files = reference, candidate
    protos = [read_checked(file) for file in files]
    pair_of_runs = first_runs_of_pair(*files, protos, given, runtime.max_memory)
    runs = pair_of_runs[0]
    shapes = shapes_of(runs.first)
    first, second = open_pair(reference, candidate, provider, optimise=False, threads=runtime.threads)
    _check_types(first, second)
    before, after = (size_of_file(*each, runtime.max_memory) for each in zip(files, protos, pair_of_runs, strict=True))
    graphs = [graph_view(proto, file.parent) for proto, file in zip(protos, files, strict=True)]
    properties = properties_of_file(reference, protos[0])
    inputs = inputs_for(first.called(runs.call), shapes, given, properties=properties, max_memory=runtime.max_memory, fresh=True)
    classes = None if label_file is None else read_labels(label_file, inputs)
    same_channel_counts = graphs[0].layers == graphs[1].layers
    judged_by_default = not thresholds.outputs_given and most_changed is None
    check_layers = not same_channel_counts and judged_by_default and fits_in_memory(shapes)
    layer_comparison = compare_some_layers(reference, candidate, inputs, shapes) if layers or check_layers else None
    kinds, batches = output_kinds(graphs[0].proto), _told(inputs, progress)
    axes = inputs.axes, inputs.output_axes
    fidelity = compare(first, second, batches, inputs.description, classes, axes=axes, synthetic=inputs.synthetic, kinds=kinds)
    _refuse_undecided(reference, fidelity, most_changed)
    shown = layer_comparison if layers else None
    fidelity = replace(fidelity, same_channel_counts=same_channel_counts, layer_comparison=shown)
    if worst_file is not None:
        save_feeds(worst_file, "the worst input", inputs.feeds_with(fidelity.worst.worst_input))
    fidelity = with_examples(fidelity, inputs)
    of_reference = (f"in the reference {place}" for place in weights_not_finite(graphs[0].proto, reference.parent))
    not_finite = (*of_reference, *weights_not_finite(graphs[1].proto, candidate.parent))
    of_outputs, missed = asked_of_outputs(
        fidelity, thresholds, graphs[1].float_types, most_changed, has_states=bool(inputs.states)
    )
    of_size, too_large = _asked_of_size(before, after, thresholds)
    warnings = _warnings(fidelity, of_outputs, inputs, graphs[1].proto, given)
    return Verification(
        str(reference),
        str(candidate),
        fidelity,
        failures=(*not_finite, *missed, *layer_failures(layer_comparison), *too_large),
        before=before,
        after=after,
        inputs=inputs.noted(runs.inputs),
        warnings=(*chosen_sizes(runs.inputs), *warnings, *_larger(before, after)),
        thresholds=(*of_outputs, *of_size),
    )


def _refuse_undecided(reference: Path, fidelity: Fidelity, most_changed: float | None) -> None:
    """UnusedOptionError where a share of decisions may change, and no output holds any, whatever the inputs are."""
    if most_changed is None or any(output.defect or output.has_decisions for output in fidelity.outputs):
        return
    why = f"no output of {reference.name} holds decisions"
    remedy = "drop it; `min_fidelity` says what other outputs must keep"
    raise UnusedOptionError(f"{why}, so that `max_changed_decisions` has no effect: {remedy}", "max_changed_decisions")


def _warnings(
    fidelity: Fidelity, checks: list[ThresholdCheck], inputs: Inputs, candidate: ModelProto, given: InputOptions
) -> tuple[str, ...]:
    """What to know before relying on the fidelity."""
    few, seen = few_inputs(inputs.count, inputs.description), _seen_inputs(candidate, inputs)
    other = _other_values(candidate, inputs, given)
    asked = (check for check in checks if check.measure == "changed decisions" and check.is_required and check.passes)
    most_changed = next((check.limit for check in asked), None)
    unsure = unsure_decisions(fidelity, most_changed)
    return (*few, *seen, *other, *lost_parts(fidelity), *constant_outputs(fidelity), *unsure, *inputs.warnings())


def _told(inputs: Inputs, progress: Progress) -> Iterator[Feeds]:
    """The batches of the inputs, and what share of them has been compared."""
    done = 0
    for feeds in inputs.batches(BATCH):
        progress("comparing outputs", done / inputs.count)
        yield feeds
        done += batch_size(feeds, inputs.axes)


def _check_types(reference: Session, candidate: Session) -> None:
    """Outputs have the types that they had, as declared: values do not show them all, those of bfloat16 are float32."""
    found = {each.name: each.type for each in candidate.outputs}
    for name, was in ((each.name, each.type) for each in reference.outputs):
        if found.get(name, was) != was:
            raise VerificationError(f"output {name!r} changed: the reference gives {was}, the candidate {found[name]}")


def _seen_inputs(candidate: ModelProto, inputs: Inputs) -> list[str]:
    """A warning where the candidate says that it was solved on these calibration inputs."""
    known = stored_provenance(candidate).get("calibration_sha256")
    if known is None or inputs.synthetic or inputs.digest() != known:
        return []
    return ["the candidate was solved on most of these inputs, so that it comes out better than on others: give others"]


def _other_values(candidate: ModelProto, inputs: Inputs, given: InputOptions) -> list[str]:
    """A warning where pixels, or numbers that were made up, become other values than when the candidate was made."""
    if not (inputs.synthetic or inputs.pixels):
        return []
    names = READING if inputs.pixels else VALUES
    try:
        known = json.loads(stored_provenance(candidate).get("options", "{}"))
        made = {name: known[name] for name in names if name in known}
        values: dict[str, Any] = {name: value if isinstance(value, str) else tuple(value) for name, value in made.items()}
        was = InputOptions(**values)
    except (ValueError, TypeError, OptionError):  # written by others
        return []
    if not made or all(_of_channels(getattr(was, name)) == _of_channels(getattr(given, name)) for name in names):
        return []
    told = " and ".join(
        f"`{name}={value if isinstance(value, str) else as_text(getattr(was, name))}`" for name, value in made.items()
    )
    return [f"the candidate was made for pixels that are read with {told}, and these are read otherwise: give the same"]


def _of_channels(value: Any) -> Any:
    """A mean or standard deviation; one that all channels share as it is given for them together."""
    return value[:1] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _larger(before: Size | None, after: Size | None) -> list[str]:
    """A warning where the two models seem to be given in the wrong order."""
    if before is None or after is None or after.parameters <= before.parameters or after.macs <= before.macs:
        return []
    return ["the candidate is larger than the reference: were the two exchanged?"]


def _asked_of_size(before: Size | None, after: Size | None, thresholds: Thresholds) -> tuple[list[ThresholdCheck], list[str]]:
    """The thresholds of the size, and a sentence for every one that is missed."""
    if before is not None and after is not None:
        return size_checks(before, after, thresholds), missed_sizes(before, after, thresholds)
    if thresholds.sizes_given:
        raise ModelError("one of the models cannot be analysed, so that no threshold of its size can be held")
    return [], []


def _check_files(reference: Path, candidate: Path, given: InputOptions, labels: Path | None, worst: Path | None) -> None:
    if labels is not None and given.calibration is None:
        raise OptionError("`labels` belong to inputs of yours: give these as `calibration`")
    if worst is not None and worst.suffix.lower() != ".npz":
        raise OptionError(f"`save_worst` writes a .npz file, so that {worst} cannot be its name")
    if worst is not None:
        models = {"the reference": reference, "the candidate": candidate, **weight_files(reference), **weight_files(candidate)}
        inputs = {"the calibration inputs": given.calibration_path, "the labels": labels}
        check_output_file(worst, "the worst input", {**models, **inputs})
