"""All options of one compression, in one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from onnxmerge.errors import OptionError
from onnxmerge.options import STREAM_FIDELITY, InputOptions, PruningOptions, RuntimeOptions, Thresholds
from onnxmerge.options.keywords import options_of


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """What `compress` was asked for.

    Attributes
    ----------
    pruning, inputs, runtime, thresholds : PruningOptions
        The options by purpose.
    verify : bool
        Whether the result is compared with the model before it is written.
    bench : bool
        Whether both are timed too.
    provenance : bool
        Whether the result says how it was made, in the metadata of its file.
    held_out : int or None
        How many of the calibration inputs a plan leaves to the check; None where their number decides.
    """

    pruning: PruningOptions
    inputs: InputOptions
    runtime: RuntimeOptions
    thresholds: Thresholds
    verify: bool = True
    bench: bool = True
    provenance: bool = True
    held_out: int | None = None

    def __post_init__(self) -> None:
        limits = self.thresholds
        measured = ("min_fidelity", "min_cosine", "min_top1_agreement", "max_relative_l2", "min_speedup")
        held = next((name for name in measured if getattr(limits, name) is not None), None)
        if not self.verify and held:
            raise OptionError(f"`verify=False` measures nothing, so that `{held}` cannot be held: drop one of the two")
        if not self.bench and limits.min_speedup is not None:
            raise OptionError("`bench=False` times nothing, so that `min_speedup` cannot be held: drop one of the two")

    @classmethod
    def from_keywords(
        cls, keywords: Mapping[str, Any], *, verify: bool = True, bench: bool | None = None, provenance: bool = True
    ) -> CompressOptions:
        """From the keywords of a verb, see `options_of`; bench None: where the outputs are compared."""
        if bench and not verify:
            raise OptionError("`verify=False` compares nothing, and what is not compared is not timed by `bench=True`: drop one")
        pruning, inputs, runtime, thresholds = options_of(keywords, *PARTS)
        return cls(
            pruning=pruning,
            inputs=inputs,
            runtime=runtime,
            thresholds=thresholds,
            verify=verify,
            bench=verify if bench is None else bench,
            provenance=provenance,
        )

    def of_streams(self) -> CompressOptions:
        """The same, for a model whose states go from call to call, with what outputs must keep where the user did not say."""
        return replace(self, pruning=replace(self.pruning, fidelity=STREAM_FIDELITY))


PARTS = (PruningOptions, InputOptions, RuntimeOptions, Thresholds)
"""The option classes whose fields are keywords of `compress`, `inspect` and `sweep`."""
