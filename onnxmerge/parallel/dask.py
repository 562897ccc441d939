"""Dask's distributed scheduler as an executor: the way past one machine."""

import socket
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from onnxmerge.errors import OptionError

TIMEOUT_SECONDS = 5.0  # for an answer of the scheduler, and for a first worker: both are there or they are not
# Tasks up to this size are sent without Dask's warning: models travel in them, and one message of a model has at most 2 GB
LARGEST_TASK = "4GB"
# Times that Dask repeats a task that raised. How many workers a task may take with it is Dask's own setting,
# distributed.scheduler.allowed-failures
RETRIES = 2


@contextmanager
def executor_at(address: str | None) -> Iterator[Executor | None]:
    """The executor of a Dask cluster.

    Parameters
    ----------
    address : str or None
        Of its scheduler, such as tcp://host:8786; None gives None.

    Raises
    ------
    OptionError
        Where no scheduler with workers answers, or the package distributed is missing.
    """
    if address is None:
        yield None
        return
    try:
        from dask import config  # noqa: PLC0415  an optional extra
        from distributed import Client  # noqa: PLC0415  the same
        from distributed.comm.addressing import get_address_host_port  # noqa: PLC0415
    except ImportError:
        raise OptionError("`dask` needs the package distributed: pip install 'onnxmerge[dask]'") from None
    try:
        with socket.create_connection(get_address_host_port(address), TIMEOUT_SECONDS):
            pass  # a client that finds nobody leaves threads behind that complain at the end
    except OSError as error:
        raise OptionError(f"no Dask scheduler answers at {address} within {TIMEOUT_SECONDS:g} s") from error
    except (ValueError, OverflowError) as error:
        raise OptionError(f"`dask` {address!r} is no address of a Dask scheduler such as tcp://host:8786: {error}") from None
    try:
        client = Client(address, timeout=TIMEOUT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise OptionError(f"no Dask scheduler answers at {address} within {TIMEOUT_SECONDS:g} s") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=TIMEOUT_SECONDS)
        except TimeoutError:
            raise OptionError(f"the Dask scheduler at {address} has no workers") from None
        with config.set({"distributed.admin.large-graph-warning-threshold": LARGEST_TASK}):
            yield client.get_executor(retries=RETRIES)
