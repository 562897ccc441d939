"""What a machine gives: the number of BLAS threads, fixed while something computes and then as before; and its memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np  # noqa: F401  loads the library whose threads are counted
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import onnxmerge
from onnxmerge.execution.memory import physical_memory
from onnxmerge.execution.threads import default_threads, fixed_threads

MODEL = Path(__file__).parents[1] / "models" / "digits-mlp.onnx"


def blas_threads() -> set[int]:
    return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def two_threads() -> object:
    """What is set before, whatever the machine has."""
    before = threadpool_limits(2, user_api="blas")
    with threadpool_limits(None):  # at the end of a block other threads may set the number
        pass
    yield
    before.restore_original_limits()


@pytest.mark.parametrize(("threads", "inside"), [(1, 1), (3, 3), (None, default_threads())])
def test_fixed_within_and_as_before_afterwards(threads: int | None, inside: int) -> None:
    with fixed_threads(threads):
        assert blas_threads() == {inside}
    assert blas_threads() == {2}


def test_as_before_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), fixed_threads(1):
        1 // 0  # noqa: B018
    assert blas_threads() == {2}


@pytest.mark.parametrize("inner", [1, 3])
def test_nested(inner: int) -> None:
    with fixed_threads(1):
        with fixed_threads(inner):
            assert blas_threads() == {inner}
        assert blas_threads() == {1}
    assert blas_threads() == {2}


def test_overlapping_uses_end_in_any_order() -> None:
    first_is_in, second_is_in = threading.Event(), threading.Event()

    def first() -> None:
        with fixed_threads(1):
            first_is_in.set()
            assert second_is_in.wait(20)

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(first)
        assert first_is_in.wait(20)
        with fixed_threads(1):
            second_is_in.set()
            ended.result(20)
            assert blas_threads() == {1}  # the first to come has left
    assert blas_threads() == {2}


def test_another_number_waits() -> None:
    order: list[int] = []

    def other() -> None:
        with fixed_threads(3):
            order.extend(blas_threads())

    with ThreadPoolExecutor(1) as pool:
        with fixed_threads(1):
            ended = pool.submit(other)
            with pytest.raises(TimeoutError):
                ended.result(0.05)
            order.extend(blas_threads())
        ended.result(20)
    assert order == [1, 3]
    assert blas_threads() == {2}


def test_two_calls_at_once_leave_no_trace(tmp_path: Path) -> None:
    options = {"ratio": 0.3, "samples": 64, "threads": 1, "bench": False}
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(onnxmerge.compress, MODEL, tmp_path / name, **options) for name in "ab"]
        assert [call.result().output for call in calls] == [str(tmp_path / name) for name in "ab"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert blas_threads() == {2}


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "3000000\n"}, 3_000_000),
        ("0::/pod/box\n", {"pod/memory.max": "2000000\n", "pod/box/memory.max": "max\n"}, 2_000_000),
        ("0::/pod/box\n", {"memory.max": "5000000\n"}, 5_000_000),  # the path of the host, which a container does not see
        ("9:cpu,memory:/box\n1:pids:/\n0::/\n", {"memory/memory.limit_in_bytes": "4000000\n"}, 4_000_000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("4:cpuset:/\n", {"memory/memory.limit_in_bytes": "1\n"}, None),
        (None, {}, None),
    ],
)
def test_memory_is_what_the_container_may_take(
    groups: str | None, limits: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    for name, text in {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}.items() | (
        set() if groups is None else {("proc/self/cgroup", groups)}
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = physical_memory(tmp_path / "nothing")
    assert physical_memory(tmp_path) == (machine if expected is None else expected) <= machine
