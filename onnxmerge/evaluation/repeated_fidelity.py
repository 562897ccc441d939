"""Fidelity of many candidates on the same inputs, for which the reference is run once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import BATCH
from onnxmerge.evaluation.fidelity import Outputs, as_array, compare_outputs
from onnxmerge.evaluation.output_kinds import output_kinds
from onnxmerge.execution.few_positions import opened_at_few_positions
from onnxmerge.execution.sessions import ModelSource, Session
from onnxmerge.execution.shapes import read_graph
from onnxmerge.execution.tensor_specs import batch_size
from onnxmerge.results import OutputFidelity

HELD_BYTES = 1 << 28
"""Memory for outputs of the reference that are held, 256 MiB; where they take more the others are made anew."""


@dataclass(frozen=True)
class RepeatedFidelity:
    """Compares candidates with one reference, on the CPU: a choice made by it must not depend on a GPU, which differs between
    runs. Both are optimised, which halves the time and changes fidelities by rounding alone.

    Attributes
    ----------
    reference : Path
        The model's file.
    threads : int or None
        Threads of ONNX Runtime; None for all processors.
    steps : mapping of str to int
        Outputs that are compared at every so many-th position only, see `position_steps`.
    """

    reference: Path
    threads: int | None
    steps: Mapping[str, int] = field(default_factory=dict)
    _held: dict[tuple[object, bytes], Outputs] = field(default_factory=dict)

    @cached_property
    def _session(self) -> Session:
        return opened_at_few_positions(self.reference, "the reference", self.steps, self.threads)

    @cached_property
    def _kinds(self) -> Mapping[str, str]:
        return output_kinds(read_graph(self.reference, str(self.reference)))

    def outputs(self, candidate: ModelSource, inputs: Inputs) -> tuple[OutputFidelity, ...]:
        """Of all outputs of a candidate."""
        session = opened_at_few_positions(candidate, "the model", self.steps, self.threads)
        runs, names = self._runs(session, inputs), self._session.output_names
        return compare_outputs(runs, names, inputs.output_axes, synthetic=inputs.synthetic, kinds=self._kinds)[0]

    def worst(self, candidate: ModelSource, inputs: Inputs) -> float:
        """Fidelity of the output of a candidate that suffers most."""
        return min(self.outputs(candidate, inputs), key=lambda output: (output.finite, output.fidelity)).fidelity

    def _runs(self, candidate: Session, inputs: Inputs) -> Iterator[tuple[int, Outputs, Outputs]]:
        for indices in inputs.batch_indices(BATCH):
            feeds, key = inputs.take(indices), (inputs.take, indices.tobytes())
            expected = self._held[key] if key in self._held else self._session.run(feeds)
            if sum(as_array(value).nbytes for each in self._held.values() for value in each.values()) < HELD_BYTES:
                self._held[key] = expected
            yield batch_size(feeds, inputs.axes), expected, candidate.run(feeds)
