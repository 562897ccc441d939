"""What makes a candidate fail: thresholds missed."""

from __future__ import annotations

from dataclasses import replace

from onnxmerge.evaluation.fidelity import check_thresholds
from onnxmerge.options import Options
from onnxmerge.results import Fidelity

DEFAULT_COSINE = 0.9  # `verify` without thresholds
ROUNDING = {"DOUBLE": 1e-10, "FLOAT": 1e-4, "FLOAT16": 1e-2, "BFLOAT16": 5e-2}  # mean relative L2 at the outputs


def missed_thresholds(fidelity: Fidelity, options: Options) -> list[str]:
    """What `compress` fails for: the user's thresholds, and NaN."""
    return check_thresholds(
        fidelity, options.min_fidelity, options.min_cosine, options.min_top1_agreement, options.max_relative_l2
    )


def failures_of(fidelity: Fidelity, options: Options, float_types: frozenset[str]) -> list[str]:
    """What `verify` fails for. Without thresholds, a model that lost channels may turn its outputs a little, another not at all.

    float_types: ONNX's names of the types that the candidate's weights are stored in.
    """
    if thresholds_wished(options):
        return missed_thresholds(fidelity, options)
    if not fidelity.same_layers:
        return missed_thresholds(fidelity, replace(options, min_cosine=DEFAULT_COSINE))
    coarsest = max((ROUNDING[kind] for kind in float_types & ROUNDING.keys()), default=ROUNDING["FLOAT"])
    why = "no channel was removed, so that only rounding may differ; a threshold of your own allows more"
    failures = missed_thresholds(fidelity, replace(options, max_relative_l2=coarsest))
    return [*failures[:-1], f"{failures[-1]} ({why})"] if failures else []


def thresholds_wished(options: Options) -> bool:
    """Whether the user set a threshold."""
    wished = (options.min_fidelity, options.min_cosine, options.min_top1_agreement, options.max_relative_l2)
    return any(threshold is not None for threshold in wished)
