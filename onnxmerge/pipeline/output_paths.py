"""Places that a run may write to: refused before any work where something that is needed would be lost."""

from collections.abc import Sequence
from pathlib import Path

from onnxmerge.errors import OptionError
from onnxmerge.onnxio.side_files import check_output_file, would_overwrite
from onnxmerge.pipeline.compress_options import CompressOptions


def check_nothing_is_lost(
    model: Path, output: Path, saved_plan: Path | None, weight_files: Sequence[Path], options: CompressOptions
) -> None:
    """OptionError where the output, or the plan to be saved, would overwrite a file that is read.

    Parameters
    ----------
    model, output : Path
        The model that is read, which the output may replace, and the one that is written.
    saved_plan : Path or None
        Where the plan is written, None where it is not.
    weight_files : Sequence[Path]
        Files beside the model that hold weights of it.
    options : CompressOptions
        Name the other files that are read.
    """
    inputs = {"the calibration inputs": options.inputs.calibration_path, "the plan that is read": options.pruning.plan_file}
    read = [*(("the weights of the model", path) for path in weight_files), *inputs.items()]
    for what, path in read:
        if path is not None and output.exists() and path.exists() and would_overwrite(output, path):
            raise OptionError(f"the output {output} holds {what}; name another file")
    if saved_plan is None:
        return
    weights = {f"weights of the model in {path.name}": path for path in weight_files}
    check_output_file(saved_plan, "the plan", {"the model": model, "the output": output, **inputs, **weights})
