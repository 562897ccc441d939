"""`inspect`: which channel groups could shrink, which layers must stay and why, and how much each group matters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxmerge.data.given_shapes import given_shapes
from onnxmerge.data.selection import calibration_and_check_inputs
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.graph.savings import least_kept
from onnxmerge.onnxio.model_files import as_file, model_name
from onnxmerge.onnxio.stored_provenance import stored_provenance
from onnxmerge.options import Progress
from onnxmerge.options.keywords import takes
from onnxmerge.pipeline.candidates import whole_group, with_savings
from onnxmerge.pipeline.compress_options import PARTS, CompressOptions
from onnxmerge.pipeline.model_measurements import ModelMeasurements
from onnxmerge.pipeline.predicted_work import inspect_stages
from onnxmerge.pipeline.progress import overall, tell_expected
from onnxmerge.pipeline.streams import with_streams
from onnxmerge.pipeline.unused_options import check_inspect_options
from onnxmerge.pruning.group_selection import selected_groups
from onnxmerge.pruning.sensitivity import measure_sensitivities
from onnxmerge.results import Inspection


@takes(*PARTS)
def inspect(
    model: str | Path | ModelProto, *, sensitivity: bool = False, progress: Progress | None = None, **options: Any
) -> Inspection:
    """The channel groups of a model, what shrinks with each of them, and why other layers must stay whole.

    Parameters
    ----------
    model : str, Path or ModelProto
        Path of the model, or the model itself.
    sensitivity : bool
        Whether the fidelity with 25, 50 and 75 % of each group removed is measured too.
    progress : Progress or None
        Called with the name of a stage and the share of the work that is done.
    **options
        `scope`, `whole_heads`, `include` and `exclude` choose among the groups, `calibration` and `input_shape` give sizes;
        those of methods and inputs say how sensitivities are measured. Others of `compress` are refused.

    Returns
    -------
    Inspection
        The groups and the refusals.

    Raises
    ------
    ModelError, OptionError, InputError
        Where the user can act.

    Examples
    --------
    >>> import onnxmerge
    >>> result = onnxmerge.inspect("model.onnx")
    >>> [group.channels for group in result.groups]
    [256, 128]
    """
    given = CompressOptions.from_keywords(options)
    check_inspect_options(given, sensitivity=sensitivity)
    with as_file(model) as path:
        return replace(_inspect_file(path, given, sensitivity, progress), model=model_name(model))


def _inspect_file(model: Path, options: CompressOptions, sensitivity: bool, progress: Progress | None) -> Inspection:
    analysed = analyse_model(model, options.runtime.max_memory, given_shapes(model, options.inputs), options.pruning.whole_heads)
    analysed = with_streams(model, analysed, options)
    selected = selected_groups(analysed.channels, options.pruning, entered_only=False)[0]
    groups = with_savings(analysed, map(whole_group, selected), {group.name: least_kept(group).tolist() for group in selected})
    provenance = stored_provenance(analysed.model.proto)
    found = Inspection(
        str(model), analysed.size, groups, analysed.channels.refusals, inputs=analysed.inputs, provenance=provenance
    )
    if not sensitivity or not groups:
        return found
    stages = inspect_stages(analysed, options)
    tell_expected(progress, stages, can_end_early=False)
    tell = overall(progress, stages)
    tell("inputs", 0.0)
    solving, checking = calibration_and_check_inputs(model, analysed, options.inputs, options.runtime, options.pruning)
    made = ModelMeasurements(model, analysed, options, solving, checking, tell)
    measured = measure_sensitivities(made.layer_statistics, made.groups, options.pruning, all_shares=True)
    fidelities = {name: {f"{level.removed:g}": 1.0 - level.loss for level in levels} for name, levels in measured.items()}
    groups = tuple(replace(group, sensitivity=fidelities.get(group.name, {})) for group in groups)
    return replace(found, groups=groups, input_description=solving.description, inputs=solving.noted(found.inputs))
