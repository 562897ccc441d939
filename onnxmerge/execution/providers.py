"""Execution providers: which one the options mean, and its settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxmerge.errors import OptionError, ProviderError
from onnxmerge.execution.gpu_detection import CPU_NAME, CUDA_NAME, TENSORRT_NAME, find_problem
from onnxmerge.options import RuntimeOptions

NAMES = {"cpu": CPU_NAME, "cuda": CUDA_NAME, "tensorrt": TENSORRT_NAME}  # value of the option -> ONNX Runtime's name
CHOICES = ("auto", *NAMES)


@dataclass(frozen=True)
class CudaSettings:
    """Settings of the CUDA execution provider.

    Attributes
    ----------
    tf32 : bool or None
        Whether TF32 is used; None: where models are timed, not where their outputs are compared.
    cudnn_search : str or None
        How cuDNN looks for convolution algorithms; None: exhaustive.
    cuda_graph : bool
        Whether calls are replayed as a CUDA graph.
    """

    tf32: bool | None = None
    cudnn_search: str | None = None
    cuda_graph: bool = False

    @property
    def given(self) -> list[str]:
        """The options that differ from their defaults, as messages name them."""
        tf32 = [] if self.tf32 is None else ["`tf32`" if self.tf32 else "`tf32=False`"]
        return tf32 + ["`cudnn_search`"] * (self.cudnn_search is not None) + ["`cuda_graph`"] * self.cuda_graph


@dataclass(frozen=True)
class Provider:
    """An execution provider that works here.

    Attributes
    ----------
    name : str
        As ONNX Runtime calls it.
    option : str
        As the option `provider` calls it.
    fallback_reason : str
        Why `auto` took the CPU; empty where it was asked for.
    settings : CudaSettings
        Of no effect on the CPU.
    """

    name: str
    option: str
    fallback_reason: str = ""
    settings: CudaSettings = CudaSettings()


CPU = Provider(CPU_NAME, "cpu")


def resolve_provider(choice: str = "auto", settings: CudaSettings | None = None) -> Provider:
    """The provider to use.

    Parameters
    ----------
    choice : str
        One of `CHOICES`; `auto` takes CUDA where it works, else the CPU.
    settings : CudaSettings, optional
        Refused where the models run on the CPU.

    Raises
    ------
    OptionError
        For an unknown choice, and for settings of CUDA on the CPU.
    ProviderError
        Where cuda or tensorrt was asked for and does not work.
    """
    settings = settings or CudaSettings()
    if choice not in CHOICES:
        raise OptionError(f"provider {choice!r} is unknown: choose one of {', '.join(CHOICES)}")
    if choice == "cpu":
        return _cpu("`provider` cpu was asked for", settings, "")
    option = "cuda" if choice == "auto" else choice
    problem = find_problem(NAMES[option])
    if problem is None:
        return Provider(NAMES[option], option, settings=settings)
    if choice == "auto":
        return _cpu(f"CUDA does not work here: {problem.cause}; {problem.remedy}", settings, problem.cause)
    raise ProviderError(f"provider {option} does not work here: {problem.cause}; {problem.remedy}, or use `provider` cpu")


def provider_of(options: RuntimeOptions) -> Provider:
    """The provider that the options ask for. CUDA graphs need inputs of one shape, so they are left to where models are timed."""
    settings = CudaSettings(options.tf32, options.cudnn_search, options.cuda_graph)
    provider = resolve_provider(options.provider, settings)
    return replace(provider, settings=replace(settings, cuda_graph=False))


def _cpu(reason: str, settings: CudaSettings, fallback_reason: str) -> Provider:
    if settings.given:
        raise OptionError(f"{' and '.join(settings.given)} can be had on CUDA only, and the models run on the CPU: {reason}")
    return replace(CPU, fallback_reason=fallback_reason)
