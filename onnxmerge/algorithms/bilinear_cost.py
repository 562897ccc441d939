"""What kept counts cost: parameters and MACs are bilinear in them, since a layer has the rows of the group that it writes and the
columns of those that it reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ONE = np.ones(1)

ROUNDING = 1e-9
"""Share of a block that sums of fractions may be off."""


def with_remainder(channels: Floats, block: int, remainders: Sequence[float]) -> Floats:
    """Numbers of channels, whole blocks, plus what their last, incomplete set of blocks costs too much.

    Examples
    --------
    >>> with_remainder(np.array([16.0, 64.0, 80.0]), 16, (0.0, 0.5, 0.25, 0.0)).tolist()
    [24.0, 64.0, 88.0]
    """
    left = np.round(channels / block).astype(np.int64) % len(remainders)
    return np.asarray(channels + block * np.asarray(remainders)[left], np.float64)


class _Touched(NamedTuple):
    """Where the classes of a group stand, and the terms that they touch: their indices, their weight and both of their sides."""

    own: slice
    terms: Integers
    weight: Floats
    rows: Floats
    columns: Floats


@dataclass(frozen=True)
class Cost:
    """What kept counts cost: cost(k) = sum over t of weight[t] * f(rows[t] . n) * f(columns[t] . n), where f fills up blocks.

    n are the channels kept of each class, with a 1 behind. Channels of a group that stand in different layers are of different
    classes.

    Attributes
    ----------
    weight : ndarray of shape (terms,)
    rows, columns : ndarray of shape (terms, classes + 1)
    classes : tuple of ndarray of shape (size + 1, own classes), optional
        For each group how many channels of each of its classes stay, by how many of its channels do. A group is one class by
        default.
    block : int, optional
        Both sides of a term are filled up to whole multiples of it, as by convolutions that compute so many channels at once.
    remainders : tuple of float, optional
        What so many blocks of the rows cost too much, in blocks, that are left where as many as this has entries go together.
    inner : tuple of (int, tuple of int), optional
        Groups, each with those that go too where it keeps no channel, whatever their counts are.

    Examples
    --------
    A layer from the first group to the second one, four parameters where both keep two channels:

    >>> cost = Cost(np.array([1.0]), np.array([[0.0, 1.0, 0.0]]), np.array([[1.0, 0.0, 0.0]]))
    >>> cost.total([2, 2]), cost.along([2, 2], 0, [1, 2]).tolist()
    (4.0, [2.0, 4.0])
    """

    weight: Floats
    rows: Floats
    columns: Floats
    classes: tuple[Floats, ...] | None = None
    block: int = 1
    remainders: tuple[float, ...] = (0.0,)
    inner: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def total(self, counts: ArrayLike) -> float:
        """Cost of kept counts (groups,)."""
        return float(self.weight @ self.positions(counts))

    def positions(self, counts: ArrayLike) -> Floats:
        """(terms,) output times input positions of each term, filled up, for kept counts (groups,)."""
        extended = self._extended(counts)
        return self._with_remainder(self._filled(self.rows @ extended)) * self._filled(self.columns @ extended)

    def along(self, counts: ArrayLike, group: int, candidates: ArrayLike) -> Floats:
        """Cost of the terms that one group touches, for some of its counts.

        Parameters
        ----------
        counts : array_like of shape (groups,)
            What the other groups keep.
        group : int
        candidates : array_like of shape (c,)
            Counts of this group.

        Returns
        -------
        ndarray of shape (c,)
        """
        if group in self._gone(counts):
            return np.zeros(len(np.asarray(candidates)))
        own, _, weight, *sides = self._terms[group]
        present = np.array(counts)
        present[group] = max(1, present[group])  # its inner groups are there
        extended = self._extended(present)
        extended[own] = 0.0
        kept = self._kept(group, candidates)
        written, read = (self._filled(side @ extended + kept @ side[:, own].T) for side in sides)
        found = np.asarray((self._with_remainder(written) * read) @ weight, np.float64)
        if group in dict(self.inner) and not np.asarray(candidates).all():
            emptied = np.array(counts)
            emptied[group] = 0
            whole = replace(self, inner=tuple(each for each in self.inner if each[0] != group))
            found[np.asarray(candidates) == 0] += self.total(emptied) - whole.total(emptied)
        return found

    def _gone(self, counts: ArrayLike) -> set[int]:
        """The groups that go with others."""
        if not self.inner:
            return set()
        kept = np.asarray(counts)
        return {each for outer, inner in self.inner if kept[outer] == 0 for each in inner}

    def _filled(self, side: Floats) -> Floats:
        """Positions as they are computed; a little less than a whole number is rounding."""
        return side if self.block == 1 else np.ceil(side / self.block - ROUNDING) * self.block

    def _with_remainder(self, side: Floats) -> Floats:
        return side if len(self.remainders) == 1 else with_remainder(side, self.block, self.remainders)

    @cached_property
    def neighbours(self) -> list[list[int]]:
        """For each group those that share a term with it, itself too: where a change of its count changes what steps save."""
        terms = [set(touched.terms.tolist()) for touched in self._terms]
        for outer, inner in self.inner:  # all that the inner ones share with others changes with the outer one
            terms[outer] = terms[outer].union(*(terms[each] for each in inner))
        return [[other for other, shared in enumerate(terms) if shared & own] or [group] for group, own in enumerate(terms)]

    @cached_property
    def _terms(self) -> list[_Touched]:
        """For each group."""
        widths = [1] * (self.rows.shape[1] - 1) if self.classes is None else [table.shape[1] for table in self.classes]
        ends = np.cumsum(widths)
        own = [slice(int(end) - width, int(end)) for end, width in zip(ends, widths, strict=True)]
        used = (self.rows != 0.0) | (self.columns != 0.0)
        touched = [np.flatnonzero(used[:, columns].any(1)) for columns in own]
        sides = self.weight, self.rows, self.columns
        return [_Touched(columns, terms, *(side[terms] for side in sides)) for columns, terms in zip(own, touched, strict=True)]

    def _kept(self, group: int, counts: ArrayLike) -> Floats:
        """(c, own classes) channels of each class for counts (c,) of a group."""
        counts = np.asarray(counts, np.int64)
        return counts[:, None].astype(np.float64) if self.classes is None else self.classes[group][counts]

    def _extended(self, counts: ArrayLike) -> Floats:
        kept = np.array(counts, np.int64)
        if gone := self._gone(kept):
            kept[list(gone)] = 0
        if self.classes is None:
            return np.concatenate([kept, ONE])
        return np.concatenate([*(table[count] for table, count in zip(self.classes, kept.tolist(), strict=True)), ONE])


@dataclass(frozen=True)
class WeightedCost:
    """A weighted sum of several costs of the same groups.

    Attributes
    ----------
    parts : tuple of (float, Cost)
        Weight and cost of each.

    Examples
    --------
    >>> one = Cost(np.array([1.0]), np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    >>> WeightedCost(((0.5, one), (2.0, one))).total([5])
    12.5
    """

    parts: tuple[tuple[float, Cost | WeightedCost], ...]

    def total(self, counts: ArrayLike) -> float:
        """As `Cost.total`."""
        return sum(weight * part.total(counts) for weight, part in self.parts)

    def along(self, counts: ArrayLike, group: int, candidates: ArrayLike) -> Floats:
        """As `Cost.along`."""
        return np.asarray(sum(weight * part.along(counts, group, candidates) for weight, part in self.parts), np.float64)

    @cached_property
    def neighbours(self) -> list[list[int]]:
        """As `Cost.neighbours`."""
        return [sorted(set().union(*each)) for each in zip(*(part.neighbours for _, part in self.parts), strict=True)]


def summed(parts: Iterable[tuple[float, Cost | WeightedCost]]) -> WeightedCost:
    """As `WeightedCost` of the parts, with one part for all costs whose blocks are filled up alike: several times as fast.

    Examples
    --------
    >>> one = Cost(np.array([1.0]), np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    >>> both = summed([(0.5, one), (2.0, WeightedCost(((1.0, one),)))])
    >>> len(both.parts), both.total([5])
    (1, 12.5)
    """
    alike: dict[object, list[tuple[float, Cost]]] = {}
    flat = list(_flat(parts))
    for weight, cost in flat:
        classes = None if cost.classes is None else tuple(map(id, cost.classes))
        alike.setdefault((cost.block, cost.remainders, cost.inner, classes), []).append((weight, cost))
    found = []
    for costs in alike.values():
        weights = np.concatenate([weight * cost.weight for weight, cost in costs])
        rows, columns = (np.vstack([getattr(cost, side) for _, cost in costs]) for side in ("rows", "columns"))
        used = weights != 0.0
        if used.any():
            found.append((1.0, replace(costs[0][1], weight=weights[used], rows=rows[used], columns=columns[used])))
    return WeightedCost(tuple(found or flat[:1]))


def _flat(parts: Iterable[tuple[float, Cost | WeightedCost]]) -> Iterator[tuple[float, Cost]]:
    for weight, part in parts:
        if isinstance(part, Cost):
            yield weight, part
        else:
            yield from ((weight * inner, cost) for inner, cost in _flat(part.parts))
