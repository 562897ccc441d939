"""Where and how models ran."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Execution:
    """Where and how ONNX Runtime ran both models.

    Attributes
    ----------
    fallback_reason : str
        Why `provider=auto` took the CPU although a GPU is there; empty elsewhere.
    provider_settings : dict
        Options of the execution provider that change speed or rounding, by name; empty for the CPU.
    reference_providers : dict
        Execution provider of every node of the reference as it ran, by name of the node; empty where this version of ONNX
        Runtime does not report it.
    candidate_providers : dict
        The same of the candidate.
    """

    fallback_reason: str
    provider_settings: dict[str, str]
    reference_providers: dict[str, str]
    candidate_providers: dict[str, str]
