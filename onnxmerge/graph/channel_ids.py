"""Channel ids: arrays that say which channel stands at which position of a tensor, and the classes of ids that go together.

An *id array* has the rank of its tensor and broadcasts to the tensor's concrete shape; 0 means "no channel that could go".
"""

import numpy as np

Ids = np.ndarray


def varying_axes(ids: Ids) -> list[int]:
    """Axes along which an id array may hold different ids."""
    return [axis for axis, extent in enumerate(ids.shape) if extent > 1]


def collapse(ids: Ids) -> Ids:
    """The smallest array that broadcasts to the same ids.

    Parameters
    ----------
    ids : ndarray
        Integer array of any shape.

    Returns
    -------
    ndarray
        Of the same rank, with extent 1 along every axis on which nothing changes.

    Examples
    --------
    >>> collapse(np.array([[1, 2, 3], [1, 2, 3]]))
    array([[1, 2, 3]])
    >>> collapse(np.zeros((4, 4), int)).shape
    (1, 1)
    """
    for axis, extent in enumerate(ids.shape):
        if extent > 1 and (ids == ids.take([0], axis)).all():
            ids = ids.take([0], axis)
    return ids


def with_rank(ids: Ids, rank: int) -> Ids:
    """Leading axes of extent 1 added, as numpy's broadcasting would add them."""
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)


def along_axis(ids: Ids, axis: int, rank: int) -> Ids:
    """A one-dimensional id array laid along one axis of an array of rank `rank`."""
    shape = [1] * rank
    shape[axis] = len(ids)
    return ids.reshape(shape)


def channel_axis_and_rows(ids: Ids, row_labels: np.ndarray) -> list[int]:
    """The axis along which channels go, and behind it those along which other channels go in each row, equally many.

    Parameters
    ----------
    ids : ndarray
        Ids that vary along some axes.
    row_labels : ndarray of shape (number of ids,)
        The row that the channel of each id stands in, 0 for none. Along the axis of the channels the row is the same.

    Examples
    --------
    >>> heads = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]])
    >>> channel_axis_and_rows(heads, np.array([0, *np.repeat([1, 2, 3, 4], 3)]))
    [1, 0]
    >>> channel_axis_and_rows(heads, np.zeros(13, int))
    [0]
    """
    axes, labels = varying_axes(ids), row_labels[ids]
    in_a_row = [axis for axis in axes if (labels == labels.take([0], axis)).all()]
    rows = [axis for axis in axes if axis not in in_a_row] if in_a_row and labels.any() else []
    return [max(in_a_row or axes, key=lambda axis: (ids.shape[axis], axis)), *rows]


class UnionFind:
    """Which ids are removed together: disjoint sets of ids, with the smallest id of each as its representative.

    Source: Tarjan, "Efficiency of a good but not linear set union algorithm", JACM 1975 (path halving, without ranks).

    Examples
    --------
    >>> sets = UnionFind()
    >>> left, right = sets.new_ids(3), sets.new_ids(3)
    >>> sets.unite(left, right)
    >>> sets.representatives(right)
    array([1, 2, 3])
    """

    def __init__(self) -> None:
        self._parents = [0]
        self._table: np.ndarray | None = None  # representative of each id, None after a change

    @property
    def count(self) -> int:
        """Number of ids, 0 included."""
        return len(self._parents)

    def new_ids(self, count: int) -> Ids:
        """(count,) ids that are in no set yet.

        A single channel gets 0: it cannot go, and it may be broadcast over other channels.
        """
        if count < 2:
            return np.zeros(count, np.int64)
        start, self._table = self.count, None
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def unite(self, left: Ids, right: Ids) -> None:
        """Join the sets of ids that stand at the same position of two arrays; a pair with 0 is left alone."""
        left, right = np.broadcast_arrays(left, right)
        different = (left != right) & (left > 0) & (right > 0)
        if not different.any():
            return
        for one, other in np.unique(np.stack([left[different], right[different]]), axis=1).T.tolist():
            one, other = self._find(one), self._find(other)
            self._parents[max(one, other)] = min(one, other)
        self._table = None

    def representatives(self, ids: Ids) -> Ids:
        """Every id replaced by the representative of its set."""
        if self._table is None:
            table = np.array(self._parents)
            while (table != table[table]).any():
                table = table[table]
            self._table = table
        return np.asarray(self._table[ids])

    def _find(self, channel: int) -> int:
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel
