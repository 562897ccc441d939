"""Where and how models ran, and on inputs of which sizes."""

from collections.abc import Iterable, Sequence
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
    in_float32 : bool
        Whether a bfloat16 model was computed, and timed, in float32, since the execution provider lacks kernels of bfloat16.
    """

    fallback_reason: str
    provider_settings: dict[str, str]
    reference_providers: dict[str, str]
    candidate_providers: dict[str, str]
    in_float32: bool = False


@dataclass(frozen=True)
class InputShape:
    """Size of a model input in the runs on which MACs are counted, outputs compared and latencies measured.

    Attributes
    ----------
    name : str
        Name of the input.
    shape : list of int
        Size of every axis in one call; the outputs are compared, and the models timed, with other numbers of inputs too.
    origin : str
        Where the sizes come from: "fixed" in the model's file, all of them but the "batch" (the number of inputs in one call),
        "given" by the user, "calibration" inputs, "graph" for constants that agree with these sizes only, or "chosen" by the
        program.
    pixels : str
        How pixels of the user's images became values: "resized to 224 x 224 (height x width), RGB, range 0 to 1, mean 0.5, std
        0.25"; empty where there are no images, or where arrays are used as they are.
    assumed : str
        What the values are that the program made up, and which it assumed: "synthetic images (overlapping shapes), range 0 to 1,
        mean 0.5, std 0.25"; empty where there are none, or where they are ids or masks.
    """

    name: str
    shape: tuple[int, ...]
    origin: str
    pixels: str = ""
    assumed: str = ""

    @property
    def text(self) -> str:
        """The size as `size_text` writes it."""
        return size_text(self.name, self.shape)


def size_text(name: str, dims: Sequence[int | str | None]) -> str:
    """The size of an input as `input_shape` takes it, "x:1,3,224,224"; axes without a size as "?", no axes as "c (one value)"."""
    if not dims:
        return f"{name} (one value)".lstrip()
    sizes = ",".join("?" if dim is None else str(dim) for dim in dims)
    return f"{name}:{sizes}" if name else sizes


def chosen_sizes(inputs: Iterable[InputShape]) -> list[str]:
    """A warning that names the inputs whose sizes the program chose; empty where there are none."""
    chosen = [each.text for each in inputs if each.origin == "chosen"]
    if not chosen:
        return []
    what = f"the model leaves the sizes of its inputs open, and these were chosen: {', '.join(chosen)}"
    return [f"{what}; MACs, checks and times hold for them: give the ones in use with `input_shape`"]
