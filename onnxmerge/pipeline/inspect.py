"""`inspect`: what could shrink, what must stay and why, and how much each group matters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxmerge.data.selection import solving_and_checking
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import Progress
from onnxmerge.options.keywords import takes
from onnxmerge.pipeline.builder import Search
from onnxmerge.pipeline.candidates import unlocked_by
from onnxmerge.pipeline.compress_options import PARTS, CompressOptions
from onnxmerge.pipeline.progress import MEASURING, overall
from onnxmerge.pruning.group_selection import chosen_groups
from onnxmerge.results import Inspection


@takes(*PARTS)
def inspect(
    model: str | Path,
    *,
    sensitivity: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Inspection:
    """The channel groups of a model that the options leave, what each of them unlocks, and why the rest must stay.

    sensitivity: also what the outputs lose with a quarter, a half and three quarters of each group that may shrink removed.
    """
    source, given = Path(model), CompressOptions.from_keywords(options)
    analysed = analyse_model(source)
    chosen, _ = chosen_groups(analysed.channels, given.pruning)
    groups = tuple(unlocked_by(analysed, group) for group in chosen)
    found = Inspection(str(source), analysed.size, groups, analysed.channels.refusals)
    if not sensitivity or not groups:
        return found
    tell = overall(progress, MEASURING)
    tell("inputs", 0.0)
    solving, checking = solving_and_checking(source, analysed, given.inputs, given.runtime, given.pruning)
    wanted = Search(source, analysed, given, solving, checking, tell)
    measured = {
        name: {f"{each.removed:g}": 1.0 - each.loss for each in sensitivities}
        for name, sensitivities in wanted.sensitivities.items()
    }
    groups = tuple(replace(group, sensitivity=measured.get(group.name, {})) for group in groups)
    return replace(found, groups=groups, input_description=solving.source)
