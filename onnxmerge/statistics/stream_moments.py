"""Second moments of what the normalisations of residual streams give, over calibration inputs."""

from collections.abc import Sequence

import numpy as np

from onnxmerge.graph.streams import Stream
from onnxmerge.statistics.reference_run import RunContext


def stream_moments(context: RunContext, streams: Sequence[Stream]) -> list[np.ndarray]:
    """(D, D) float64 for each stream: the mean over its normalisations and all positions of the normalised channels' products.

    The channels are in the order of the stream's group.
    """
    run, moments = context.new_run(), [np.zeros((stream.group.size,) * 2) for stream in streams]
    found = [(each, at) for at, stream in enumerate(streams) for each in stream.normalisations]
    for each, at in sorted(found, key=lambda pair: context.node_index[pair[0].source.name]):
        run.run_until(context.node_index[each.source.name] + 1, keep=each.source.name)
        order = np.argsort(streams[at].channels.ids(each.source), axis=None)
        rows = 0
        total = np.zeros_like(moments[at])
        for batch in range(run.batch_count):
            values = each.normalised(run.tensor(batch, each.source.name))[:, order]
            rows, total = rows + len(values), total + values.T @ values
        moments[at] += total / max(rows, 1) / len(streams[at].normalisations)
    return moments
