"""`inspect`: what could shrink, what must stay and why, and how much each group matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from onnxmerge.data.selection import solving_and_checking
from onnxmerge.graph.analysed_model import understand
from onnxmerge.options import Options
from onnxmerge.pipeline.builder import Search
from onnxmerge.pipeline.candidates import unlocked_by
from onnxmerge.pipeline.progress import MEASURING, overall
from onnxmerge.pruning.group_selection import chosen_groups
from onnxmerge.results import Inspection


def inspect(
    source: str | Path,
    options: Options | None = None,
    sensitivity: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Inspection:
    """The channel groups of a model that the options leave, what each of them unlocks, and why the rest must stay.

    sensitivity: also what the outputs lose with a quarter, a half and three quarters of each group that may shrink removed.
    """
    source, options = Path(source), options or Options()
    understood = understand(source)
    chosen, _ = chosen_groups(understood.channels, options)
    groups = tuple(unlocked_by(understood, group) for group in chosen)
    found = Inspection(str(source), understood.size, groups, understood.channels.refusals)
    if not sensitivity or not groups:
        return found
    tell = overall(progress, MEASURING)
    tell("inputs", 0.0)
    solving, checking = solving_and_checking(source, understood, options)
    wanted = Search(source, understood, options, solving, checking, tell)
    measured = {name: {f"{probe.removed:g}": 1.0 - probe.damage for probe in probes} for name, probes in wanted.probes.items()}
    groups = tuple(replace(group, sensitivity=measured.get(group.name, {})) for group in groups)
    return replace(found, groups=groups, inputs=solving.source)
