"""A process may be killed at any moment: no file is ever broken, and the next run removes what was left, and nothing else."""

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import FrameType

import numpy as np
import onnx
import pytest
from running import built, run
from topologies import TOPOLOGIES

from onnxmerge.onnxio import model_files, model_saving, naming_files, side_files, storage, work_folder
from onnxmerge.onnxio.model import Model
from onnxmerge.onnxio.model_saving import save
from onnxmerge.onnxio.side_files import write_atomically
from onnxmerge.onnxio.work_folder import PREFIX, WorkFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked to be killed")

FEEDS = {"x": np.ones((1, 3, 8, 8), np.float32)}
TRACED = {work_folder.__file__, model_saving.__file__, side_files.__file__}
STRANGERS = {
    f"{PREFIX}mine/letter": b"not made here",
    f"{PREFIX}12345678/letter": b"of the right name, but without a journal",
    "weights.data": b"of nobody",
    "m.onnx.7.data": b"named by a model of another kind",
    "model.bin": b"which reads m.onnx.7.data",
}
KEPT = {name.split("/")[0] for name in STRANGERS}


@pytest.fixture(params=["one file", "data beside"])
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    if request.param == "data beside":
        monkeypatch.setattr(storage, "MESSAGE_LIMIT_BYTES", 512)
        monkeypatch.setattr(storage, "SMALL_TENSOR_BYTES", 64)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which takes most of the time, and is for computers that stop
    monkeypatch.setattr(model_saving, "_check", lambda *_: None)
    path = tmp_path / "in.onnx"
    path.write_bytes(built(TOPOLOGIES["conv-relu-conv"]).SerializeToString())
    return model_files.load(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of files that must stay as they are."""
    folder = tmp_path / "out"
    for name, content in STRANGERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What a process that comes later finds."""
    found = {}
    for place, _, names in os.walk(folder):
        found[place] = (0, 0, b"")
        for path in (os.path.join(place, name) for name in names):
            status = os.stat(path)
            found[path] = (status.st_ino, status.st_mtime_ns, Path(path).read_bytes())
    return found


def killed_at(step: int, folder: Path, action: Callable[[], object]) -> bool:
    """Whether another process was killed in the state of that number of the folder; False where it ended before.

    States are looked at before each line of the modules that write: between two changes it is all the same where a process ends.
    """
    child = os.fork()
    if not child:
        steps, seen = count(1), [{}]

        def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
            if frame.f_code.co_filename not in TRACED:
                return None
            if event == "line" and (now := contents(folder)) != seen[0]:
                seen[0] = now
                if next(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def data_of(path: Path) -> set[str]:
    return {file.name for file in model_files.external_files(model_files.load(path))}


@pytest.mark.parametrize("there", [False, True], ids=["new", "over an older one"])
def test_a_save_that_is_killed(model: Model, folder: Path, there: bool) -> None:
    target, other = folder / "m.onnx", folder / "n.onnx"
    expected = run(model.path, FEEDS)
    for step in count(1):
        if there:
            save(model, target)
        if not killed_at(step, folder, lambda: save(model, target)):
            break
        assert target.exists() >= there
        if target.exists():
            assert np.array_equal(run(target, FEEDS), expected)
        save(model, other)  # the next run writes another file of the folder
        models = [path for path in (target, other) if path.exists()]
        assert set(os.listdir(folder)) == {*KEPT, *(path.name for path in models), *set().union(*map(data_of, models))}
        for path in models:
            for name in (path.name, *data_of(path)):
                (folder / name).unlink()
    assert step > 6
    assert {name: (folder / name).read_bytes() for name in STRANGERS} == STRANGERS


def test_a_report_that_is_killed(folder: Path) -> None:
    target = folder / "report.html"

    def write() -> None:
        write_atomically(target, "the report", lambda draft: draft.write_text("new"))

    for step in count(1):
        target.write_text("old")
        if not killed_at(step, folder, write):
            break
        assert target.read_text() in ("old", "new")
        write()
        assert set(os.listdir(folder)) == {*KEPT, "report.html"}
    assert step > 5


def test_a_folder_whose_process_lives_stays(tmp_path: Path) -> None:
    with WorkFolder(tmp_path) as first:
        data = first.reserve("m.onnx")
        with WorkFolder(tmp_path) as second:
            assert second.reserve("m.onnx") != data
            second.disown([data.name])
        assert first.path.is_dir()
        assert data.exists()
    assert os.listdir(tmp_path) == []


def test_runs_that_write_the_same_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MESSAGE_LIMIT_BYTES", 512)
    monkeypatch.setattr(storage, "SMALL_TENSOR_BYTES", 64)
    path, target = tmp_path / "in.onnx", tmp_path / "out" / "m.onnx"
    path.write_bytes(built(TOPOLOGIES["conv-relu-conv"]).SerializeToString())
    target.parent.mkdir()
    model = model_files.load(path)
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda _: save(model, target), range(24)))
    assert set(os.listdir(target.parent)) == {"m.onnx", *data_of(target)}
    assert np.array_equal(run(target, FEEDS), run(path, FEEDS))


def left_behind(folder: Path) -> Path:
    """A data file that a killed run left."""
    if (process := os.fork()) == 0:
        killed = WorkFolder(folder)
        killed.reserve("out.onnx")
        os._exit(9)
    os.waitpid(process, 0)
    return folder / "out.onnx.data"


def test_a_later_file_of_the_name_stays(tmp_path: Path) -> None:
    """A user's file that took the name of what a killed run left is another file."""
    left_behind(tmp_path)
    (tmp_path / "out.onnx.data").unlink()
    (tmp_path / "keeps its inode").touch()
    (tmp_path / "out.onnx.data").write_bytes(b"the user's")
    WorkFolder(tmp_path).remove()
    assert (tmp_path / "out.onnx.data").read_bytes() == b"the user's"
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def naming(location: str, large: int = 0) -> bytes:
    """A model whose last weight is in a data file, behind one of that many bytes inside it."""
    tensor = onnx.TensorProto(name="w", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    inside = onnx.TensorProto(name="v", dims=[large], data_type=onnx.TensorProto.UINT8, raw_data=b"\0" * large)
    return onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(initializer=[inside, tensor])).SerializeToString()


LARGE = 2 * naming_files.WHOLE_BYTES
NEIGHBOURS = {
    "a model beside it": ("models/a/other.onnx", naming("out.onnx.data", LARGE), True),
    "a model in the folder above": ("models/b.onnx", naming("a/out.onnx.data", LARGE), True),
    "a model further up": ("c.pb", naming("models/a/out.onnx.data"), True),
    "a model above with such a file of its own": ("models/b.onnx", naming("out.onnx.data", LARGE), False),
    "the values of a large tensor": ("models/a/v", naming("w.data", LARGE).replace(b"\0" * 13, b"out.onnx.data", 1), False),
    "a large file of another kind": ("models/a/x.npz", b"PK" + b"\1" * LARGE + b"out.onnx.data", False),
    "a small file of any kind": ("models/a/index.json", b'{"weights": "out.onnx.data"}', True),
}


@pytest.mark.parametrize(("name", "content", "stays"), NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_what_a_model_may_name_stays(name: str, content: bytes, stays: bool, tmp_path: Path) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    data = left_behind(tmp_path / "models" / "a")
    (tmp_path / name).write_bytes(content)
    WorkFolder(data.parent).remove()
    assert data.exists() == stays


def test_a_search_that_takes_too_long_keeps_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = left_behind(tmp_path)
    (tmp_path / "other").write_bytes(b"of another kind")
    with monkeypatch.context() as patch:
        patch.setattr(naming_files, "SEARCH_SECONDS", 0.0)
        WorkFolder(tmp_path).remove()
    assert data.exists()


@pytest.mark.parametrize("content", [b"", b"the user's"], ids=["empty", "full"])
def test_what_was_written_into_a_file_of_the_name_stays(content: bytes, tmp_path: Path) -> None:
    data = left_behind(tmp_path)
    os.utime(data, ns=(0, 0))
    data.write_bytes(content)
    WorkFolder(tmp_path).remove()
    assert data.read_bytes() == content


def test_a_forked_process_leaves_the_folder_of_its_parent(tmp_path: Path) -> None:
    with WorkFolder(tmp_path) as folder:
        if (process := os.fork()) == 0:
            folder.remove()
            os._exit(0)
        os.waitpid(process, 0)
        assert folder.path.exists()
