"""Whether vectors that are compared with each other, such as features, keep their nearest ones: what a search would find."""

from dataclasses import dataclass, field

import numpy as np

LEAST_LENGTH, LEAST_INPUTS = 16, 16
"""Numbers of a vector, and vectors, below which neighbours say little."""
NEAREST = 5
"""Among so many nearest of the candidate the reference's nearest one counts as kept. Whether the nearest one stays the nearest
says little of what a search finds: of images of digits 39 % did in a network whose neighbours told the class as well as before.
"""
HELD_NUMBERS = 1 << 20
"""Numbers of vectors that are held, 4 MiB of each model: 256 inputs of 4,096; comparing them takes a few times that."""


@dataclass
class Neighbours:
    """Vectors of both models, for as many inputs as are held."""

    reference: list[np.ndarray] = field(default_factory=list)
    candidate: list[np.ndarray] = field(default_factory=list)
    held: int = 0

    def add(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Add arrays (samples, ...) of one shape; those that hold no vectors are left out."""
        shape = reference.shape[1:]
        if self.reference and reference[:1].size != self.reference[0][:1].size:  # of other lengths, such as sounds
            self.held = HELD_NUMBERS + 1
        if reference.dtype.kind != "f" or not shape or max(shape) < LEAST_LENGTH or max(shape) != reference[:1].size:
            return
        if self.held + reference.size <= HELD_NUMBERS:
            self.held += reference.size
            for rows, values in ((self.reference, reference), (self.candidate, candidate)):
                rows.append(np.nan_to_num(values.reshape(len(values), -1).astype(np.float32), posinf=0.0, neginf=0.0))

    def kept(self) -> float | None:
        """Share of the inputs whose nearest other input, by cosine, is among the candidate's `NEAREST`; None of too few."""
        if sum(map(len, self.reference)) < LEAST_INPUTS or self.held > HELD_NUMBERS:
            return None
        before, after = (_cosines(np.concatenate(rows)) for rows in (self.reference, self.candidate))
        nearest = before.argmax(axis=1)
        closer = after > np.take_along_axis(after, nearest[:, np.newaxis], axis=1)
        return float(np.mean(closer.sum(axis=1) < NEAREST))


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """(inputs, inputs); below all others for an input with itself."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0.0, lengths, 1.0)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2.0)
    return np.asarray(cosines)
