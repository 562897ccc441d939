"""ONNX Runtime sessions that refuse a silent fallback and fail with one clear line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from onnxmerge.errors import ModelError, ProviderError
from onnxmerge.execution.providers import CPU, NAMES, Provider
from onnxmerge.execution.threads import default_threads
from onnxmerge.onnxio.model_files import TemporaryModel

Feeds = Mapping[str, np.ndarray]
ModelSource = bytes | Path | TemporaryModel
DEVICE = "cuda"  # where IO binding keeps inputs and outputs, unless they are strings

_ONNX_NAMES = {"float": "FLOAT", "double": "DOUBLE"}
_NOISE = (
    r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ",
    r"Non-zero status code returned while running ",
    r"Status Message: ",
    r"/onnxruntime_src/\S+:\d+ (?:.*? was false\.)?",
    r"\S+\.(?:cc|h):\d+ \S*",
    r"onnxruntime::[\w:]+\([^)]*\)(?: const)?",
    r"This is an invalid model\. ",
    r"Please fix either the inputs/outputs or the model\.",
    r"Name:'' ",
)


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output: an int per fixed axis, a name per symbolic one, None per unknown one; `type` as ONNX writes it."""

    name: str
    type: str
    dtype: np.dtype
    dims: tuple[int | str | None, ...]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The dims with None for everything dynamic."""
        return tuple(dim if isinstance(dim, int) else None for dim in self.dims)

    @property
    def is_tensor(self) -> bool:
        """False for sequences, maps and optionals."""
        return self.type.startswith("tensor(")


@dataclass(frozen=True)
class Session:
    """A model on a provider that was verified. `label` names the model in errors; `reopen` gives the same session afresh."""

    label: str
    provider: Provider
    threads: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    handle: onnxruntime.InferenceSession = field(repr=False, compare=False)
    reopen: Callable[[], Session] = field(repr=False, compare=False)

    @property
    def output_names(self) -> tuple[str, ...]:
        """In the model's order."""
        return tuple(output.name for output in self.outputs)

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Every output by name. Raises ModelError with the runtime's reason."""
        names = list(self.output_names)
        try:
            values = self.handle.run(names, dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            raise ModelError(f"{self.label} does not run: {one_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """One call of the model for timing, made once already: inputs and outputs stay on the device, and it ends when done."""
        try:
            call = self._bound({name: np.ascontiguousarray(value) for name, value in feeds.items()})
            call()
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            raise ModelError(f"{self.label} does not run: {one_line(error)}") from error
        return call

    def _bound(self, feeds: Feeds) -> Callable[[], object]:
        if self.provider.name == CPU.name:
            return partial(self.handle.run, list(self.output_names), feeds)
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value, *_place(value)) for name, value in feeds.items()}
        binding = self._binding(values)
        if self.provider.settings.cuda_graph:
            binding = self._at_fixed_addresses(binding, values)

        def call() -> None:
            self.handle.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return call

    def _binding(self, values: Mapping[str, onnxruntime.OrtValue]) -> onnxruntime.IOBinding:
        binding = self.handle.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for output in self.outputs:
            binding.bind_output(output.name, DEVICE if output.dtype.kind != "O" else "cpu", 0)
        return binding

    def _at_fixed_addresses(
        self, binding: onnxruntime.IOBinding, values: Mapping[str, onnxruntime.OrtValue]
    ) -> onnxruntime.IOBinding:
        """A CUDA graph replays on the memory it was captured with: the outputs of a run that is not captured become that."""
        plain = onnxruntime.RunOptions()
        plain.add_run_config_entry("gpu_graph_id", "-1")
        self.handle.run_with_iobinding(binding, plain)
        fixed = self.handle.io_binding()
        for name, value in values.items():
            fixed.bind_ortvalue_input(name, value)
        for name, value in zip(self.output_names, binding.get_outputs(), strict=True):
            fixed.bind_ortvalue_output(name, value)
        return fixed


def open_session(
    model: ModelSource,
    provider: Provider = CPU,
    *,
    optimise: bool,
    threads: int | None = None,
    label: str | None = None,
    folder: Path | None = None,
) -> Session:
    """A session on exactly this provider, with ORT_ENABLE_ALL (optimise, for speed) or ORT_DISABLE_ALL (for correctness).

    A path is needed where weights are external, or bytes and the `folder` their locations are relative to. threads: of one
    operator, default every CPU this process may use. On CUDA, TF32 is off unless optimise. NVIDIA_TF32_OVERRIDE=0 in the
    environment, set before the process starts, turns it off inside the libraries too.
    Raises ModelError where the model is refused, ProviderError where the session landed on another provider.
    """
    label = label or (str(model) if isinstance(model, Path) else "the model")
    threads = threads or default_threads()
    source = model if isinstance(model, bytes) else str(path_of(model))
    try:
        handle = onnxruntime.InferenceSession(
            source, _options(optimise, threads, folder), providers=_providers(provider, optimise), enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common root
        raise ModelError(f"{label} cannot be opened by ONNX Runtime: {one_line(error)}") from error
    if handle.get_providers()[0] != provider.name:
        landed = handle.get_providers()[0]
        raise ProviderError(f"{label} was to run on {provider.name} but landed on {landed}; use `provider` cpu to accept that")
    again = partial(open_session, model, provider, optimise=optimise, threads=threads, label=label, folder=folder)
    inputs = tuple(_spec(argument) for argument in handle.get_inputs())
    outputs = tuple(_spec(argument) for argument in handle.get_outputs())
    return Session(label, provider, threads, inputs, outputs, handle, again)


def path_of(model: Path | TemporaryModel) -> Path:
    """Where a model that is not in memory lies."""
    return model if isinstance(model, Path) else model.path


def open_pair(
    reference: ModelSource, candidate: ModelSource, provider: Provider, *, optimise: bool, threads: int | None
) -> tuple[Session, Session]:
    """Both models of a comparison, opened alike; models in memory are called what they are."""
    sides = ((reference, "the reference"), (candidate, "the candidate"))
    first, second = (
        open_session(model, provider, optimise=optimise, threads=threads, label=str(model) if isinstance(model, Path) else name)
        for model, name in sides
    )
    return first, second


def batch_size(feeds: Feeds) -> int:
    """The commonest extent of axis 0 over the feeds, the first of them where several are as common; 1 without any."""
    extents = [len(value) for value in feeds.values() if np.ndim(value)]
    return max(extents, key=extents.count, default=1)


def one_line(error: BaseException) -> str:
    """A runtime's message without source files, signatures and line breaks."""
    text = " ".join(str(error).split())
    for noise in _NOISE:
        text = re.sub(noise, "", text)
    text = " ".join(text.split()).strip(" .")
    return (text[:400] + "...") if len(text) > 400 else text or type(error).__name__


def _options(optimise: bool, threads: int, folder: Path | None) -> onnxruntime.SessionOptions:
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(1 << 30))
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    return options


def _cuda_settings(provider: Provider, optimise: bool) -> dict[str, str]:
    """ONNX Runtime's options of the CUDA execution provider, for a session for speed (optimise) or for correctness."""
    settings = provider.settings
    tf32 = optimise if settings.tf32 is None else settings.tf32
    found = {"use_tf32": str(int(tf32)), "cudnn_conv_algo_search": (settings.cudnn_search or "exhaustive").upper()}
    return {**found, "enable_cuda_graph": "1"} if settings.cuda_graph else found


def _providers(provider: Provider, optimise: bool) -> list[Any]:
    if provider.option == "cpu":
        return [CPU.name]
    settings = _cuda_settings(provider, optimise)
    if provider.option == "cuda":
        return [(NAMES["cuda"], settings), CPU.name]
    graph = settings.pop("enable_cuda_graph", "0")
    return [(NAMES["tensorrt"], {"trt_cuda_graph_enable": graph}), (NAMES["cuda"], settings), CPU.name]


def _place(value: np.ndarray) -> tuple[str, int]:
    """Strings stay on the CPU."""
    return ("cpu" if value.dtype.kind in "OSU" else DEVICE), 0


def _spec(argument: onnxruntime.NodeArg) -> TensorSpec:
    dims = tuple(dim if isinstance(dim, str) or (isinstance(dim, int) and dim >= 0) else None for dim in argument.shape or ())
    return TensorSpec(argument.name, argument.type, _dtype(argument.type), dims)


def _dtype(type_text: str) -> np.dtype:
    """numpy's type of 'tensor(float)' and the like; object for strings and everything that is not a tensor."""
    match = re.fullmatch(r"tensor\((\w+)\)", type_text)
    if match is None or match[1] == "string":
        return np.dtype(object)
    name = _ONNX_NAMES.get(match[1], match[1].upper())
    return helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(name))
