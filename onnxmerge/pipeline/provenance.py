"""What a compressed model says of how it was made, in the metadata of its file: no dates and no paths, so that the same options
give the same bytes."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import onnxmerge
from onnxmerge.data.inputs import Inputs
from onnxmerge.onnxio.stored_provenance import PREFIX, sha256_of
from onnxmerge.options import CheckedOptions, InputOptions, PlannedGroup, PruningOptions
from onnxmerge.results import Fidelity

LEFT_OUT = ("calibration", "time_limit")
"""Options that are not stored: inputs have a digest of their own, and a limit changes no byte where enough time is left."""


def provenance_of(
    pruning: PruningOptions, inputs: InputOptions, source_sha256: str, checking: Inputs, fidelity: Fidelity | None
) -> dict[str, str]:
    """What is stored with a compressed model.

    Parameters
    ----------
    pruning, inputs : PruningOptions, InputOptions
        What was asked for; values that are the default are left out.
    source_sha256 : str
        Of the original model.
    checking : Inputs
        What the fidelity was measured on.
    fidelity : Fidelity or None
        Measured on the CPU; None where it was not.

    Returns
    -------
    dict of str to str
        By key in the file: version, source_sha256, options (JSON), fidelity (three digits), inputs, and calibration_sha256.
    """
    told = {"version": onnxmerge.__version__, "source_sha256": source_sha256}
    told["options"] = json.dumps({**_given(pruning), **_given(inputs)}, sort_keys=True)
    if fidelity is not None and math.isfinite(fidelity.worst.fidelity):
        told["fidelity"] = f"{fidelity.worst.fidelity:.3f}"
        own = f"{checking.count} of {checking.total} calibration inputs"
        told["inputs"] = checking.description if checking.synthetic else own
    if not checking.synthetic:
        told["calibration_sha256"] = checking.digest()
    return {f"{PREFIX}{key}": value for key, value in told.items()}


def _given(options: CheckedOptions) -> dict[str, Any]:
    """The options that differ from their default, but for those of `LEFT_OUT`."""
    own = {field.name: (getattr(options, field.name), field.default) for field in fields(options)}  # type: ignore[arg-type]
    return {name: _plain(value) for name, (value, default) in own.items() if name not in LEFT_OUT and value != default}


def _plain(value: Any) -> Any:
    """As JSON has it; of a plan file its digest, of a plan the counts."""
    if isinstance(value, Path):
        return sha256_of([value])
    if isinstance(value, Mapping):
        return {name: each.kept if isinstance(each, PlannedGroup) else each for name, each in value.items()}
    return value
