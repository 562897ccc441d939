"""What makes a candidate fail: thresholds missed."""

from __future__ import annotations

from dataclasses import replace

from onnxmerge.evaluation.fidelity import check_thresholds
from onnxmerge.options import Thresholds
from onnxmerge.results import Fidelity

DEFAULT_COSINE = 0.9  # `verify` without thresholds
ROUNDING = {"DOUBLE": 1e-10, "FLOAT": 1e-4, "FLOAT16": 1e-2, "BFLOAT16": 5e-2}  # mean relative L2 at the outputs


def missed_thresholds(fidelity: Fidelity, thresholds: Thresholds) -> list[str]:
    """What `compress` fails for: the user's thresholds, and NaN."""
    return check_thresholds(
        fidelity, thresholds.min_fidelity, thresholds.min_cosine, thresholds.min_top1_agreement, thresholds.max_relative_l2
    )


def failures_of(fidelity: Fidelity, thresholds: Thresholds, float_types: frozenset[str]) -> list[str]:
    """What `verify` fails for. Without thresholds, a model that lost channels may turn its outputs a little, another not at all.

    float_types: ONNX's names of the types that the candidate's weights are stored in.
    """
    if thresholds.given:
        return missed_thresholds(fidelity, thresholds)
    if not fidelity.same_channel_counts:
        return missed_thresholds(fidelity, replace(thresholds, min_cosine=DEFAULT_COSINE))
    coarsest = max((ROUNDING[kind] for kind in float_types & ROUNDING.keys()), default=ROUNDING["FLOAT"])
    why = "no channel was removed, so that only rounding may differ; a threshold of your own allows more"
    failures = missed_thresholds(fidelity, replace(thresholds, max_relative_l2=coarsest))
    return [*failures[:-1], f"{failures[-1]} ({why})"] if failures else []
