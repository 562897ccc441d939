"""ONNX Runtime sessions that refuse a silent fallback to another execution provider, and fail with one clear line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import ModelProto

from onnxmerge.errors import ModelError, ProviderError
from onnxmerge.execution.batch_axes import Call
from onnxmerge.execution.messages import runtime_message
from onnxmerge.execution.providers import CPU, Provider
from onnxmerge.execution.session_options import provider_list, session_options
from onnxmerge.execution.tensor_specs import Feeds, TensorSpec, spec_of
from onnxmerge.execution.threads import default_threads
from onnxmerge.onnxio.bfloat16 import cast_interface, cast_to_float32, is_bfloat16
from onnxmerge.onnxio.external_data import byte_count
from onnxmerge.onnxio.mapped_files import release_pages
from onnxmerge.onnxio.model import from_proto
from onnxmerge.onnxio.model_files import TemporaryModel
from onnxmerge.onnxio.storage import TRIAL_LIMIT_BYTES
from onnxmerge.onnxio.traversal import stored_tensors
from onnxmerge.onnxio.wire_format import is_large, read_model

ModelSource = bytes | Path | TemporaryModel
BFLOAT16 = "tensor(bfloat16)"
"""ONNX Runtime's name of the type."""
DEVICE = "cuda"  # ONNX Runtime's name of the memory where IO binding keeps inputs and outputs, unless they are strings


@dataclass(frozen=True)
class Session:
    """A model on an execution provider that was verified.

    Attributes
    ----------
    label : str
        What errors call the model.
    provider : Provider
        Where it runs.
    threads : int
        Of one operator.
    inputs, outputs : tuple of TensorSpec
        In the model's order.
    handle : InferenceSession
        ONNX Runtime's own session.
    reopen : callable
        Gives the same session afresh.
    in_float32 : bool
        Whether bfloat16 is computed in float32, since the execution provider lacks kernels of it.

    Examples
    --------
    >>> from onnx import parser
    >>> model = parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }''')
    >>> session = open_session(model.SerializeToString(), optimise=False, threads=1)
    >>> session.inputs[0].dims
    ('N', 2)
    >>> session.run({"x": np.ones((1, 2), np.float32)})["y"].tolist()
    [[4.0, 6.0]]
    """

    label: str
    provider: Provider
    threads: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    handle: onnxruntime.InferenceSession = field(repr=False, compare=False)
    reopen: Callable[[], Session] = field(repr=False, compare=False)
    in_float32: bool = False

    @property
    def output_names(self) -> tuple[str, ...]:
        """In the model's order."""
        return tuple(output.name for output in self.outputs)

    def called(self, call: Call) -> Session:
        """The same session, that says of its inputs and outputs which axes are the batch, and what settings are."""
        return replace(self, inputs=call.described(self.inputs), outputs=call.described(self.inputs, self.outputs))

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Every output by name.

        Raises
        ------
        ModelError
            Where the model does not run; with ONNX Runtime's reason.
        """
        names = list(self.output_names)
        try:
            values = self.handle.run(names, dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            raise ModelError(f"{self.label} does not run: {runtime_message(error)}") from error
        return dict(zip(names, values, strict=True))

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """A function that calls the model once, for timing; it has been called once already.

        On a GPU inputs and outputs stay in its memory, and a call ends when the GPU has done its work.

        Raises
        ------
        ModelError
            Where the model does not run.
        """
        try:
            call = self._bound({name: np.ascontiguousarray(value) for name, value in feeds.items()})
            call()
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            raise ModelError(f"{self.label} does not run: {runtime_message(error)}") from error
        return call

    def _bound(self, feeds: Feeds) -> Callable[[], object]:
        if self.provider.name == CPU.name:
            return partial(self.handle.run, list(self.output_names), feeds)
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value, *_device_of(value)) for name, value in feeds.items()}
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


def _device_of(value: np.ndarray) -> tuple[str, int]:
    """Strings stay on the CPU."""
    return ("cpu" if value.dtype.kind in "OSU" else DEVICE), 0


def open_session(
    model: ModelSource,
    provider: Provider = CPU,
    *,
    optimise: bool,
    threads: int | None = None,
    label: str | None = None,
    folder: Path | None = None,
    arena: bool = True,
    prepack: bool | None = None,
) -> Session:
    """A session on exactly this execution provider.

    It takes and gives bfloat16, which numpy lacks, as float32; inside it is float32 too where the provider cannot compute it.

    Parameters
    ----------
    model : bytes, Path or TemporaryModel
        In memory or as a file.
    provider : Provider
        Where it runs. On CUDA, TF32 is off unless `optimise`; inside the libraries NVIDIA_TF32_OVERRIDE=0 in the environment,
        set before the process starts, turns it off.
    optimise : bool
        With ONNX Runtime's optimisations, for speed, or without any, for outputs that are compared.
    threads, label : int, str, optional
        Threads of one operator, by default every CPU that this process may use; what errors call the model, by default its path.
    folder : Path, optional
        Where the external data of a model in memory is.
    arena : bool
        Whether the session keeps the memory of a call for the next one, and that of all outputs while one of them lives.
    prepack : bool, optional
        Whether weights are copied into another order, for speed; by default where `optimise`.

    Raises
    ------
    ModelError, ProviderError
        Where ONNX Runtime refuses the model; where the session landed on another provider.
    """
    label = label or (str(model) if isinstance(model, Path) else "the model")
    threads = threads or default_threads()
    release_pages()
    source, folder = (model, folder) if isinstance(model, bytes) else _large_as_bytes(path_of(model), label)
    prepack = optimise if prepack is None else prepack
    options, providers = session_options(optimise, threads, folder, arena, prepack), provider_list(provider, optimise)
    again = partial(
        open_session, provider=provider, optimise=optimise, threads=threads, label=label, arena=arena, prepack=prepack
    )
    try:
        handle = onnxruntime.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common root
        if session := _without_bfloat16(again, model, folder, is_computed=False):
            return session
        raise ModelError(f"{label} cannot be opened by ONNX Runtime: {runtime_message(error)}") from error
    if any(argument.type == BFLOAT16 for argument in (*handle.get_inputs(), *handle.get_outputs())):
        del handle
        if session := _without_bfloat16(again, model, folder, is_computed=True):
            return session
    return _landed_session(label, provider, threads, handle, partial(again, model, folder=folder))


def _landed_session(
    label: str, provider: Provider, threads: int, handle: onnxruntime.InferenceSession, again: Callable[[], Session]
) -> Session:
    """The session, where it is on the provider that was asked for. ProviderError elsewhere."""
    landed = handle.get_providers()[0]
    if landed != provider.name:
        raise ProviderError(f"{label} was to run on {provider.name} but landed on {landed}; use `provider` cpu to accept that")
    inputs, outputs = tuple(map(spec_of, handle.get_inputs())), tuple(map(spec_of, handle.get_outputs()))
    return Session(label, provider, threads, inputs, outputs, handle, again)


def _without_bfloat16(
    opened: Callable[..., Session], model: ModelSource, folder: Path | None, *, is_computed: bool
) -> Session | None:
    """A session that takes and gives float32 for bfloat16, and computes it too unless `is_computed`; None where there is none."""
    try:
        proto = ModelProto.FromString(model) if isinstance(model, bytes) else read_model(path_of(model))
    except (OSError, DecodeError):
        return None
    folder = folder or (Path() if isinstance(model, bytes) else path_of(model).parent)
    declared = {value.name for value in (*proto.graph.input, *proto.graph.output) if is_bfloat16(value)}
    in_float32 = not (is_computed and cast_interface(proto))
    if in_float32 and not cast_to_float32(proto, folder):
        return None
    is_small = sum(map(byte_count, stored_tensors(proto))) < TRIAL_LIMIT_BYTES
    content = proto.SerializeToString() if is_small else TemporaryModel(from_proto(proto, folder / "model.onnx"))
    session = opened(content, folder=folder)
    inputs, outputs = (
        tuple(replace(each, type=BFLOAT16) if each.name in declared else each for each in specs)
        for specs in (session.inputs, session.outputs)
    )
    return replace(session, inputs=inputs, outputs=outputs, in_float32=in_float32 or session.in_float32)


def _large_as_bytes(path: Path, label: str) -> tuple[bytes | str, Path | None]:
    """A large file without its weights, which ONNX Runtime then maps, and their folder; the path of any other."""
    try:
        if not is_large(path):
            return str(path), None
        return read_model(path).SerializeToString(), path.parent
    except (OSError, DecodeError) as error:
        raise ModelError(f"{label} cannot be opened by ONNX Runtime: {runtime_message(error)}") from error


def path_of(model: Path | TemporaryModel) -> Path:
    """The file of a model that is not in memory."""
    return model if isinstance(model, Path) else model.path


def open_pair(
    reference: ModelSource, candidate: ModelSource, provider: Provider, *, optimise: bool, threads: int | None
) -> tuple[Session, Session]:
    """Sessions of both models of a comparison, opened alike; errors call files by their path."""
    sides = ((reference, "the reference"), (candidate, "the candidate"))
    first, second = (
        open_session(model, provider, optimise=optimise, threads=threads, label=label_of(model, name)) for model, name in sides
    )
    return first, second


def label_of(model: ModelSource, name: str) -> str:
    """What errors call a side of a comparison: its path, or this name."""
    return str(model) if isinstance(model, Path) else name
