"""First and second moments of a large calibration set, shard by shard, on any executor; shards add up to the whole."""

from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxmerge.algorithms.moments import Covariance, pooled_covariance
from onnxmerge.data.given_shapes import given_shapes
from onnxmerge.data.inputs import Inputs
from onnxmerge.data.selection import inputs_for
from onnxmerge.errors import OptionError
from onnxmerge.execution.sessions import open_session
from onnxmerge.execution.threads import fixed_threads
from onnxmerge.graph.analysed_model import analyse_model
from onnxmerge.options import InputOptions, Progress, RuntimeOptions, silent
from onnxmerge.parallel.tasks import LostTask, run_tasks
from onnxmerge.statistics.reference_run import collect_reference_statistics, run_context_of

SHARD_INPUTS = 2048  # the same whatever executes them, so that results are too


@dataclass(frozen=True)
class Shard:
    """Some of the calibration inputs, by their positions among the user's; paths that every worker can read."""

    source: Path
    options: InputOptions
    runtime: RuntimeOptions
    indices: np.ndarray
    whole_heads: bool = False


def sharded_covariances(
    source: Path,
    options: InputOptions,
    runtime: RuntimeOptions,
    inputs: Inputs,
    progress: Progress,
    executor: Executor | None,
    whole_heads: bool = False,
) -> dict[str, Covariance]:
    """By consumer, what it reads over all the inputs. Without an executor the shards are taken one after the other here."""
    step = SHARD_INPUTS - SHARD_INPUTS % (inputs.batch_size or 1) or inputs.batch_size or 1
    parts = [inputs.indices[start : start + step] for start in range(0, inputs.count, step)]
    shards = [Shard(source.absolute(), options.absolute(), runtime, part, whole_heads) for part in parts]
    found: dict[int, dict[str, Covariance]] = {}

    def keep(number: int, moments: dict[str, Covariance] | LostTask) -> None:
        if isinstance(moments, LostTask):
            raise OptionError(f"the statistics of a shard are lost: {moments.reason}")
        found[number] = moments
        progress("statistics", len(found) / len(shards))

    run_tasks(covariances_of, shards, keep, executor)
    counts = [len(part) for part in parts]
    known = [key for key in found[0] if all(key in moments for moments in found.values())]
    return {key: pooled_covariance(counts, [found[number][key] for number in range(len(parts))]) for key in known}


def covariances_of(shard: Shard) -> dict[str, Covariance]:
    """The moments of one shard, in any process."""
    shapes = given_shapes(shard.source, shard.options)
    analysed = analyse_model(shard.source, shard.runtime.max_memory, shapes, shard.whole_heads)
    session = open_session(shard.source, optimise=True, threads=shard.runtime.threads, label=str(shard.source))
    given = inputs_for(
        session.called(analysed.call), analysed.shapes, replace(shard.options, samples=None), max_memory=shard.runtime.max_memory
    )
    inputs = replace(given, count=len(shard.indices), indices=shard.indices)
    with fixed_threads(1):
        return collect_reference_statistics(run_context_of(analysed, inputs, shard.runtime.threads, silent)).covariances
