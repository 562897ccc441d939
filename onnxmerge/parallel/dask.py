"""Dask's distributed scheduler as an executor: the way past one machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from onnxmerge.errors import OptionError

PATIENCE_SECONDS = 5.0
LARGEST = "4GB"  # models travel within tasks, which is no mistake
RETRIES = 2  # of a task that raised; how many workers it may take with it is distributed.scheduler.allowed-failures


@contextmanager
def executor_at(address: str | None) -> Iterator[Executor | None]:
    """The executor of the scheduler at the address, None without one. OptionError where nothing that can work answers."""
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
        with socket.create_connection(get_address_host_port(address), PATIENCE_SECONDS):
            pass  # a client that finds nobody leaves threads behind that complain at the end
    except OSError as error:
        raise OptionError(f"no Dask scheduler answers at {address} within {PATIENCE_SECONDS:g} s") from error
    except (ValueError, OverflowError) as error:
        raise OptionError(f"`dask` {address!r} is no address of a Dask scheduler such as tcp://host:8786: {error}") from None
    try:
        client = Client(address, timeout=PATIENCE_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise OptionError(f"no Dask scheduler answers at {address} within {PATIENCE_SECONDS:g} s") from error
    try:
        try:
            client.wait_for_workers(1, timeout=PATIENCE_SECONDS)
        except TimeoutError:
            raise OptionError(f"the Dask scheduler at {address} has no workers") from None
        with config.set({"distributed.admin.large-graph-warning-threshold": LARGEST}):
            yield client.get_executor(retries=RETRIES)
    finally:
        client.close()
