"""What a user may set, split by what it is for; every check of a single value is here.

The verbs of the Python API take the fields of the classes below as keywords, `compress("a.onnx", "b.onnx", ratio=0.5)`, or whole
classes by the name of the part, `pruning=PruningOptions(ratio=0.5)`. In messages an option stands in backticks, `round_to`; the
command line shows it as --round-to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxmerge.errors import OptionError
from onnxmerge.options.checked_options import CheckedOptions as CheckedOptions
from onnxmerge.options.checks import is_whole
from onnxmerge.options.planned_group import PlannedGroup as PlannedGroup

if TYPE_CHECKING:  # the command line reads this module for --help, which must not wait for numpy
    import numpy as np

SIZES = ("ratio", "target", "fidelity", "max_changed_decisions", "plan")
"""Options that say how small the model becomes; one of them is given at most, or the two of `SEARCHED`."""
SEARCHED = ("fidelity", "max_changed_decisions")
"""Those of `SIZES` that say what the outputs must keep, for which the smallest model is searched."""
DEFAULT_CHANGED_DECISIONS, DECIDED_FIDELITY, DEFAULT_FIDELITY = 0.02, 0.94, 0.97
"""Where none of `SIZES` is given: `max_changed_decisions`, the fidelity that outputs with decisions need beside it, and that of
others. Chosen on training images, where ten networks with 128 inputs lost 0.9 points of accuracy on average."""
STREAM_FIDELITY = 0.998
"""Fidelity of a call, where none of `SIZES` is given, of a model whose states go into the next call: errors add up from call to
call. A detector of speech with 0.985 of single calls kept 0.84 of streams, with 0.9992 it kept 0.98 and 0.99."""
DEFAULT_TARGETS = "macs=0.9,0.75,0.6,0.5,0.35,0.25"
"""What `sweep` tries: steps of about a sixth of the MACs, the coarsest that still show where a curve bends."""
WEIGHT_ONLY_METHODS = ("prune", "merge")
"""Methods that read weights only, so that they need no inputs."""

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the share of the work that is done, 0 to 1."""
EXPECTED = "expected to take about"
"""What the first stage's name begins with where the work takes long."""


def silent(stage: str, share: float) -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True, kw_only=True)
class PruningOptions(CheckedOptions):
    """What is removed, and what replaces it. At most one of `SIZES` is given, or fidelity and max_changed_decisions.

    Shares (`checks.SHARES`) may be given in per cent, as texts: "50%".

    Attributes
    ----------
    ratio : float or None
        Share of the channels that is removed from every group, 0 <= ratio < 1.
    target : tuple[str, float] or None
        What is limited (one of "params", "macs", "latency") and the share of it that may remain: ("macs", 0.5) or "macs=0.5".
    fidelity : float or None
        Least fidelity of the worst output; the model becomes as small as that allows.
    max_changed_decisions : float or None
        Greatest share of the decisions that may be expected to change, 0.02 or "2%" (see `OutputFidelity.changed_decisions`), 0
        for none beyond rounding; the model becomes as small as that allows. Without `fidelity` outputs with decisions keep one of
        0.94, others 0.97. 0.02 where nothing says how small the model becomes; with a fidelity of 0.998 then where states go from
        call to call.
    plan : Path, Mapping[str, PlannedGroup] or None
        A file written by `save_plan`, or a mapping from a group's name to how many channels stay, or to a `PlannedGroup`.
    minimize : str or None
        What a search (fidelity, max_changed_decisions) spends least of: "latency" (predicted time, then size), "macs" or
        "params"; None for latency.
    round_to : int, str or None
        Channel counts are multiples of this number, 1 for no rounding; "auto", or None, for 8, and less in small groups;
        "measured" for those that are fastest when timed here.
    time_limit : float or None
        Seconds, or a text such as "5m", after which a search (fidelity, target) ends with the best model found so far, and a
        sweep begins no further point; a first model is always made. None for no limit.
    method : str
        What replaces removed channels: "auto", "reconstruct" (layers behind them are solved anew by least squares), "merge"
        (similar channels are added to kept ones) or "prune" (nothing).
    criterion : str
        Which channels go first: "auto", "reconstruction", "l1-norm", "l2-norm" or "l2-gm".
    threshold : float
        For merge, the cosine similarity below which a channel is dropped instead of merged.
    cosine_weight : float
        For merge, the paper's lambda: weight of the cosine distance against that of the bias distance, 0 to 1.
    scope : str or None
        "all", "chains" for groups with a single producer only, or "stream" for all and residual streams that are read through
        LayerNormalization or RMSNormalization, of which principal directions are removed; None for "all".
    whole_heads : bool
        Whether attentions lose whole heads (all query heads that share a key and value at once; of a GroupQueryAttention, whose
        keys and values are cached, query heads alone), and no channels of every head.
    include, exclude : tuple[str, ...]
        Patterns (fnmatch) of the names of the nodes that write a group.
    """

    part = "pruning"

    ratio: float | None = None
    target: tuple[str, float] | None = None
    fidelity: float | None = None
    max_changed_decisions: float | None = None
    plan: Path | Mapping[str, PlannedGroup] | None = None
    minimize: str | None = None
    round_to: int | str | None = None
    time_limit: float | None = None
    method: str = "auto"
    criterion: str = "auto"
    threshold: float = 0.1
    cosine_weight: float = 0.85
    scope: str | None = None
    whole_heads: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_whole(self.round_to):
            object.__setattr__(self, "round_to", int(self.round_to))  # type: ignore[arg-type]
        if isinstance(self.plan, Mapping):
            plan = {name: each if isinstance(each, PlannedGroup) else PlannedGroup(each) for name, each in self.plan.items()}
            object.__setattr__(self, "plan", plan)
        given = [name for name in SIZES if getattr(self, name) is not None]
        if len(given) > 1 and tuple(given) != SEARCHED:
            raise OptionError(f"`{given[0]}` and `{given[1]}` both say how small the model becomes: drop one of the two")
        if self.minimize is not None and given and not self.is_searched:
            raise OptionError(
                f"`minimize` is for `fidelity` and `max_changed_decisions`, and `{given[0]}` says how small: drop one"
            )
        if self.plan is not None and self.round_to is not None:
            raise OptionError("`plan` says how many channels stay, so that `round_to` has nothing to round: drop one of the two")

    @property
    def plan_file(self) -> Path | None:
        """The file that holds the plan, None where it is given as a mapping or not at all."""
        return self.plan if isinstance(self.plan, Path) else None

    @property
    def planned(self) -> Mapping[str, PlannedGroup]:
        """The plan by name of the group, empty where there is none. A plan file must have been read."""
        return self.plan if isinstance(self.plan, Mapping) else {}

    @property
    def uses_weights_only(self) -> bool:
        """Whether the method needs no inputs."""
        return self.method in WEIGHT_ONLY_METHODS

    @property
    def is_latency_target(self) -> bool:
        """Whether a latency is asked for."""
        return self.target is not None and self.target[0] == "latency"

    @property
    def is_searched(self) -> bool:
        """Whether the smallest model is searched whose outputs keep what was asked for."""
        return any(getattr(self, name) is not None for name in SEARCHED)

    def sized(self) -> PruningOptions:
        """The same, with the default search where nothing says how small the model becomes."""
        if any(getattr(self, name) is not None for name in SIZES):
            return self
        return replace(self, max_changed_decisions=DEFAULT_CHANGED_DECISIONS)


@dataclass(frozen=True, kw_only=True)
class InputOptions(CheckedOptions):
    """What the models are run on.

    Attributes
    ----------
    calibration : Path, np.ndarray, Mapping[str, np.ndarray] or None
        Unlabelled inputs: a .npz, .npy or .jsonl file (of token ids), a folder of images, .npy or .npz files, an array of N
        inputs for a model with one input, or a mapping from the model's input names to such arrays; None for synthetic inputs.
    input_range : tuple[float, float] or None
        (low, high): what pixels 0 and 255 become; None for (0, 1).
    mean, std : tuple[float, ...] or None
        Subtracted from pixels and then divided by, one number for all channels or one for each; None for (0,) and (1,).
    fit : str or None
        How images get the model's height and width: "crop" (scaled until they cover it, then cut about the centre),
        "resize" (height and width scaled apart) or "letterbox" (scaled until they fit in, 114 around them); None for crop, and
        for uint8 arrays of the model's size.
    color : str or None
        Order of the channels that the model takes, for image files and uint8 arrays, which hold RGB: "rgb" or "bgr", also that
        of `mean` and `std`; None for rgb.
    input_shape : Mapping[str, tuple[int, ...]] or None
        Sizes of dynamic inputs by name: {"x": (1, 3, 640, 640)}, or without the name of a single one; the first is that of a call
        where models are timed, unless `batch` is given. None for those of the calibration inputs, of the graph, or usual ones.
    samples : int or None
        Number of synthetic inputs, or most calibration inputs that are used; None for as many as the layers need, or all.
    seed : int
        Of everything that is drawn at random: the same seed gives the same bytes.
    """

    part = "inputs"

    calibration: Path | np.ndarray | Mapping[str, np.ndarray] | None = None
    input_range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fit: str | None = None
    color: str | None = None
    input_shape: Mapping[str, tuple[int, ...]] | None = None
    samples: int | None = None
    seed: int = 0

    @property
    def calibration_path(self) -> Path | None:
        """The file or folder of calibration inputs, None where they are arrays or synthetic."""
        return self.calibration if isinstance(self.calibration, Path) else None

    def absolute(self) -> InputOptions:
        """The same for a process with another working directory."""
        path = self.calibration_path
        return self if path is None else replace(self, calibration=path.absolute())


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(CheckedOptions):
    """How ONNX Runtime runs and times the models.

    Attributes
    ----------
    provider : str
        Execution provider: "auto" (CUDA where it works, else the CPU), "cuda", "cpu" or "tensorrt".
    threads : int or None
        Threads of one operator; None for all processors that this process may use, or OMP_NUM_THREADS where that is less.
    batch : int or None
        Inputs in one call where models are timed, or their time is predicted; None for 1, or for the number that the model or
        `input_shape` says.
    tf32 : bool or None
        Whether CUDA computes in TF32; None for yes where models are timed and no where outputs are compared.
    cudnn_search : str or None
        How CUDA finds its cuDNN algorithms: "exhaustive", "heuristic" or "default"; None for exhaustive.
    cuda_graph : bool
        Whether CUDA times replays of a CUDA graph.
    max_memory : int or None
        Bytes that the first run of a model may take, or a text such as "4GB"; None for 2 GB or twice the model, what is more.
    """

    part = "runtime"

    provider: str = "auto"
    threads: int | None = None
    batch: int | None = None
    tf32: bool | None = None
    cudnn_search: str | None = None
    cuda_graph: bool = False
    max_memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Thresholds(CheckedOptions):
    """What outputs, size and speed must keep; the worst output counts, and None asks for nothing.

    Attributes
    ----------
    min_fidelity : float or None
        Least share of an output's variance that is explained.
    min_cosine : float or None
        Least mean cosine similarity.
    min_top1_agreement : float or None
        Least share of inputs whose best class stays.
    max_relative_l2 : float or None
        Greatest mean relative L2 error.
    max_params, max_macs : float or None
        Greatest share of the original's parameters, and of its MACs.
    require_smaller : bool
        Whether the file must have fewer bytes.
    min_speedup : float or None
        How many times as fast the smaller model must be.
    """

    part = "thresholds"

    min_fidelity: float | None = None
    min_cosine: float | None = None
    min_top1_agreement: float | None = None
    max_relative_l2: float | None = None
    max_params: float | None = None
    max_macs: float | None = None
    require_smaller: bool = False
    min_speedup: float | None = None

    @property
    def outputs_given(self) -> bool:
        """Whether a threshold of the outputs was set."""
        measures = self.min_fidelity, self.min_cosine, self.min_top1_agreement, self.max_relative_l2
        return any(each is not None for each in measures)

    @property
    def sizes_given(self) -> bool:
        """Whether a threshold of the size was set."""
        return self.require_smaller or self.max_params is not None or self.max_macs is not None
