"""Providers and sessions: no silent fallback, one clear line for every failure."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxmerge.errors import ModelError, OptionError, ProviderError
from onnxmerge.execution import gpu_detection, gpu_detection_child, limited_process, providers, sessions
from onnxmerge.execution.gpu_detection import CPU_NAME, CUDA_NAME, ProviderProblem, find_problem
from onnxmerge.execution.messages import runtime_message
from onnxmerge.execution.placement import execution_of
from onnxmerge.execution.providers import CPU, NAMES, CudaSettings, Provider, resolve_provider
from onnxmerge.execution.session_options import provider_list, session_options
from onnxmerge.execution.sessions import open_session
from onnxmerge.execution.tensor_specs import batch_size

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
LINEAR = HEADER + "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}> { y = MatMul(x, w) }"
RESHAPE = HEADER + "g (float[N,M] x) => (float[A,B] y) <int64[2] s = {7,3}> { y = Reshape(x, s) }"
UNKNOWN = HEADER + "g (float[N,2] x) => (float[N,2] y) { y = Nonsense(x) }"
KINDS = HEADER + "g (float16[N,2] a, int64[K,?] b, string[1] c, bool d) => (float16[N,2] y) { y = Identity(a) }"


def model_bytes(text: str) -> bytes:
    return parser.parse_model(text).SerializeToString()


@pytest.fixture
def broken_cuda(monkeypatch):
    problem = ProviderProblem("no NVIDIA driver was found", "install NVIDIA's driver")
    monkeypatch.setattr(providers, "find_problem", lambda name: problem)


def test_auto_says_why_it_took_the_cpu(broken_cuda):
    assert resolve_provider("auto") == Provider("CPUExecutionProvider", "cpu", "no NVIDIA driver was found")
    assert resolve_provider("cpu").fallback_reason == ""


@pytest.mark.parametrize("choice", ["cuda", "tensorrt"])
def test_a_provider_that_does_not_work_is_refused(broken_cuda, choice):
    with pytest.raises(ProviderError, match=f"provider {choice} does not work here: no NVIDIA driver.*`provider` cpu"):
        resolve_provider(choice)


@pytest.mark.parametrize(("choice", "short"), [("auto", "cuda"), ("cuda", "cuda"), ("tensorrt", "tensorrt")])
def test_a_provider_that_works_is_taken(monkeypatch, choice, short):
    monkeypatch.setattr(providers, "find_problem", lambda name: None)
    assert resolve_provider(choice) == Provider(NAMES[short], short)


def test_an_unknown_provider_is_refused():
    with pytest.raises(OptionError, match="choose one of auto, cpu, cuda, tensorrt"):
        resolve_provider("rocm")


@pytest.fixture
def fresh_detection():
    find_problem.cache_clear()
    yield
    find_problem.cache_clear()


@pytest.fixture
def working_driver(monkeypatch):
    monkeypatch.setattr(gpu_detection, "_driver_problem", lambda: None)


@pytest.mark.parametrize("choice", ["cuda", "tensorrt"])
def test_detection_is_quiet_and_never_raises(fresh_detection, capfd, choice):
    problem = find_problem(NAMES[choice])
    assert problem is None or (problem.cause and problem.remedy)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("choice", ["cuda", "tensorrt"])
def test_missing_libraries_are_named_in_silence(fresh_detection, working_driver, capfd, choice):
    if NAMES[choice] not in sessions.onnxruntime.get_available_providers() or resolve_provider("auto").option != "cpu":
        pytest.skip("this onnxruntime has no CUDA, or CUDA works here")
    find_problem.cache_clear()
    before = sys.stdout, sys.stderr
    assert re.search(r"libraries were not found: \S*cu", find_problem(NAMES[choice]).cause)
    assert (sys.stdout, sys.stderr) == before
    assert capfd.readouterr() == ("", "")


PROBES = {
    "it works": ("import json; print('noise'); print(json.dumps({'libraries': ['here.so'], 'error': ''}))", None, ["here.so"]),
    "an error": ("import json; print(json.dumps({'libraries': ['here.so'], 'error': 'no memory'}))", "^no memory$", []),
    "it dies": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ends the process with SIGSEGV", []),
    "it says nothing": ("", "ends the process with code 0", []),
    "it hangs": ("import time; time.sleep(60)", "does not end within 0.5 s", []),
}


@pytest.mark.parametrize(("script", "cause", "loaded"), PROBES.values(), ids=PROBES)
def test_what_the_process_that_tries_says(fresh_detection, working_driver, monkeypatch, tmp_path, script, cause, loaded):
    """A stand-in for the process; the libraries that it needed are loaded here too."""
    start, seen = limited_process.subprocess.Popen, []
    monkeypatch.setattr(gpu_detection.onnxruntime, "get_available_providers", lambda: [CUDA_NAME])
    monkeypatch.setattr(limited_process.subprocess, "Popen", lambda command, **how: start([command[0], "-c", script], **how))
    monkeypatch.setattr(gpu_detection, "PROBE_SECONDS", 0.5 if cause and "within" in cause else 60.0)
    monkeypatch.setattr(gpu_detection.ctypes, "CDLL", seen.append)
    problem = find_problem(CUDA_NAME)
    assert problem is None if cause is None else re.search(cause, problem.cause)
    assert seen == loaded


def test_the_process_that_tries_runs_the_tiny_model(monkeypatch, capsys):
    """On the CPU, which is what a session without the option to forbid it lands on."""
    real = gpu_detection_child.onnxruntime.SessionOptions.add_session_config_entry
    monkeypatch.setattr(gpu_detection_child.ctypes, "CDLL", gpu_detection_child.ctypes.CDLL)  # the process replaces it
    monkeypatch.setattr(gpu_detection_child.onnxruntime, "set_default_logger_severity", lambda level: None)
    with monkeypatch.context() as patch:
        patch.setattr(gpu_detection_child.onnxruntime.SessionOptions, "add_session_config_entry", lambda *_: None)
        gpu_detection_child.main(CPU_NAME, [CPU_NAME])
    assert json.loads(capsys.readouterr().out)["error"] == ""
    assert gpu_detection_child.onnxruntime.SessionOptions.add_session_config_entry is real


@pytest.mark.parametrize("both", [False, True], ids=["one package", "both packages"])
def test_a_runtime_without_cuda(fresh_detection, monkeypatch, both):
    monkeypatch.setattr(gpu_detection.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(gpu_detection, "OVERWRITTEN", "both are installed" if both else "")
    problem = find_problem(CUDA_NAME)
    assert "is built without CUDA" in problem.cause
    assert ("both are installed" in problem.cause, "uninstall" in problem.remedy) == (both, both)


class Driver:
    """Stands for libcuda: one GPU, and a version."""

    def __init__(self, devices, version):
        self.devices, self.version = devices, version

    def cuInit(self, flags):
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = self.devices
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0


@pytest.mark.parametrize(
    ("driver", "what"),
    [(Driver(0, 13000), "reports no GPU"), (Driver(1, 12020), "supports CUDA 12, .* needs CUDA 13"), (Driver(1, 13010), None)],
    ids=["no GPU", "old driver", "fine"],
)
def test_what_the_driver_says(monkeypatch, driver, what):
    monkeypatch.setattr(gpu_detection.ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(gpu_detection.onnxruntime, "cuda_version", "13.0", raising=False)
    problem = gpu_detection._driver_problem()
    assert problem is None if what is None else re.search(what, problem.cause)


def test_a_session_that_fell_back_is_refused():
    if resolve_provider("auto").option != "cpu":
        pytest.skip("CUDA works here")
    with pytest.raises(ProviderError, match="was to run on CUDAExecutionProvider but landed on CPUExecutionProvider"):
        open_session(model_bytes(LINEAR), Provider(NAMES["cuda"], "cuda"), optimise=False)


@pytest.mark.parametrize("optimise", [True, False], ids=["speed", "correctness"])
def test_a_session_runs(optimise):
    session = open_session(model_bytes(LINEAR), optimise=optimise, threads=1)
    x = np.array([[1, 1], [2, 0]], np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["y"], [[4, 6], [2, 4]])
    assert session.bind({"x": x})()[0].shape == (2, 2)
    assert (session.provider, session.threads, session.output_names) == (CPU, 1, ("y",))
    assert session.reopen().run({"x": x}).keys() == {"y"}


def test_optimise_decides_the_level():
    levels = sessions.onnxruntime.GraphOptimizationLevel
    assert session_options(True, 1, None).graph_optimization_level == levels.ORT_ENABLE_ALL
    assert session_options(False, 1, None).graph_optimization_level == levels.ORT_DISABLE_ALL


SETTINGS = {
    "for speed": (True, CudaSettings(), {"use_tf32": "1", "cudnn_conv_algo_search": "EXHAUSTIVE"}),
    "for correctness": (False, CudaSettings(), {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}),
    "no TF32": (True, CudaSettings(tf32=False), {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}),
    "TF32 always": (False, CudaSettings(tf32=True), {"use_tf32": "1", "cudnn_conv_algo_search": "EXHAUSTIVE"}),
    "search": (True, CudaSettings(cudnn_search="heuristic"), {"use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC"}),
    "graph": (
        True,
        CudaSettings(cuda_graph=True),
        {"use_tf32": "1", "cudnn_conv_algo_search": "EXHAUSTIVE", "enable_cuda_graph": "1"},
    ),
}


@pytest.mark.parametrize(("optimise", "settings", "options"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_of_cuda(optimise, settings, options):
    cuda = provider_list(Provider(NAMES["cuda"], "cuda", settings=settings), optimise)
    assert cuda == [(NAMES["cuda"], options), NAMES["cpu"]]
    first, second, third = provider_list(Provider(NAMES["tensorrt"], "tensorrt", settings=settings), optimise)
    graph = options.get("enable_cuda_graph", "0")
    assert first == (NAMES["tensorrt"], {"trt_cuda_graph_enable": graph})
    assert second == (NAMES["cuda"], {key: value for key, value in options.items() if key != "enable_cuda_graph"})
    assert third == NAMES["cpu"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (CudaSettings(tf32=True), "`tf32`"),
        (CudaSettings(tf32=False), "`tf32=False`"),
        (CudaSettings(cudnn_search="default", cuda_graph=True), "`cudnn_search` and `cuda_graph`"),
    ],
    ids=["TF32", "no TF32", "two"],
)
@pytest.mark.parametrize(("choice", "why"), [("cpu", "`provider` cpu was asked for"), ("auto", "no NVIDIA driver was found")])
def test_settings_of_cuda_are_refused_on_the_cpu(broken_cuda, settings, named, choice, why):
    with pytest.raises(OptionError, match=f"^{named} can be had on CUDA only, and the models run on the CPU: .*{why}"):
        resolve_provider(choice, settings)


def test_settings_are_kept_where_cuda_works(monkeypatch):
    monkeypatch.setattr(providers, "find_problem", lambda name: None)
    settings = CudaSettings(tf32=False, cuda_graph=True)
    assert resolve_provider("auto", settings) == Provider(NAMES["cuda"], "cuda", settings=settings)


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "fixed addresses"])
def test_io_binding_on_the_device(monkeypatch, graph):
    """The road that CUDA takes, with the CPU as the device."""
    monkeypatch.setattr(sessions, "DEVICE", "cpu")
    session = open_session(model_bytes(LINEAR), optimise=True, threads=1)
    bound = replace(session, provider=Provider(NAMES["cuda"], "cuda", settings=CudaSettings(cuda_graph=graph)))
    seen = []
    real = sessions.onnxruntime.InferenceSession.run_with_iobinding

    def spy(handle, binding, options=None):
        real(handle, binding, options)
        seen.append([value.numpy() for value in binding.get_outputs()])

    monkeypatch.setattr(sessions.onnxruntime.InferenceSession, "run_with_iobinding", spy)
    bound.bind({"x": np.array([[1, 1], [2, 0]], np.float32)})()
    assert len(seen) == (3 if graph else 2)
    np.testing.assert_array_equal(seen[-1][0], [[4, 6], [2, 4]])


@pytest.mark.parametrize("optimise", [True, False])
def test_every_node_says_where_it_ran(optimise):
    session = open_session(model_bytes(LINEAR), optimise=optimise, threads=1)
    found = execution_of(session, session)
    assert found.reference_providers == found.candidate_providers == {"MatMul 0": "CPUExecutionProvider"}
    assert (found.fallback_reason, found.provider_settings) == ("", {})


def test_an_onnxruntime_that_does_not_tell_where_nodes_ran(monkeypatch):
    monkeypatch.delattr(sessions.onnxruntime.InferenceSession.__base__, "get_provider_graph_assignment_info")
    session = open_session(model_bytes(LINEAR), optimise=True, threads=1)
    assert execution_of(session, session).reference_providers == {}


def test_inputs_are_described():
    inputs = open_session(model_bytes(KINDS), optimise=False).inputs
    assert [(spec.dtype, spec.dims, spec.shape) for spec in inputs] == [
        (np.float16, ("N", 2), (None, 2)),
        (np.int64, ("K", None), (None, None)),
        (np.dtype(object), (1,), (1,)),
        (np.bool_, (), ()),
    ]


CANNOT_OPEN = {
    "junk": (b"junk", "protobuf parsing failed"),
    "empty": (b"", "No graph was found"),
    "unknown operator": (model_bytes(UNKNOWN), "No Op registered for Nonsense"),
}


@pytest.mark.parametrize(("model", "reason"), CANNOT_OPEN.values(), ids=CANNOT_OPEN.keys())
def test_a_model_that_cannot_be_opened(model, reason, capfd):
    with pytest.raises(ModelError, match=f"candidate cannot be opened by ONNX Runtime: .*{reason}") as caught:
        open_session(model, optimise=False, label="candidate")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


CANNOT_RUN = {
    "wrong extent": (LINEAR, {"x": np.ones((2, 3), np.float32)}, "x for the following indices index: 1 Got: 3 Expected: 2"),
    "wrong type": (LINEAR, {"x": np.ones((2, 2))}, r"Actual: \(tensor\(double\)\)"),
    "missing": (LINEAR, {}, r"Required inputs \(\['x'\]\) are missing"),
    "inside": (RESHAPE, {"x": np.ones((2, 4), np.float32)}, "Reshape node. The input tensor cannot be reshaped"),
}


@pytest.mark.parametrize(("text", "feeds", "reason"), CANNOT_RUN.values(), ids=CANNOT_RUN.keys())
def test_a_run_that_fails(text, feeds, reason, capfd):
    session = open_session(model_bytes(text), optimise=False, label="reference")
    with pytest.raises(ModelError, match=f"reference does not run: .*{reason}") as caught:
        session.run(feeds)
    assert "onnxruntime_src" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_long_messages_are_cut():
    assert len(runtime_message(ValueError("x" * 5000))) < 410
    assert runtime_message(ValueError()) == "ValueError"


def test_external_weights(tmp_path):
    model = parser.parse_model(LINEAR)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.eye(2, dtype=np.float32), "w"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    x = {"x": np.ones((1, 2), np.float32)}
    for session in (open_session(path, optimise=False), open_session(path.read_bytes(), optimise=False, folder=tmp_path)):
        np.testing.assert_array_equal(session.run(x)["y"], [[1, 1]])
    with pytest.raises(ModelError, match="xternal data"):
        open_session(path.read_bytes(), optimise=False)


@pytest.mark.parametrize(
    ("shapes", "batch"),
    [([(3, 2), (3,)], 3), ([(2, 3, 4), (3, 2), (3, 5)], 3), ([()], 1), ([], 1)],
    ids=["same", "commonest", "scalar", "none"],
)
def test_batch_size(shapes, batch):
    assert batch_size({str(number): np.zeros(shape) for number, shape in enumerate(shapes)}) == batch
