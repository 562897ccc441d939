"""onnxmerge: a smaller, faster ONNX model without training code, labelled data or fine-tuning.

Verbs: `compress`, `inspect`, `verify`, `bench`, `bench_batches`, `sweep` and `write_report`. They take keywords, which the option
classes list (`PruningOptions`, `InputOptions`, `RuntimeOptions`, `Thresholds`), and return frozen results; what a user can act on
raises an `OnnxMergeError`. Names are loaded on first use (PEP 562), so that `import onnxmerge` imports neither numpy nor onnx.
"""

import typing as _typing
from importlib import import_module as _import_module

if _typing.TYPE_CHECKING:
    from onnxmerge.errors import *
    from onnxmerge.evaluation.benchmark import bench, bench_batches
    from onnxmerge.evaluation.verify import verify
    from onnxmerge.options import *
    from onnxmerge.pipeline.compress import compress
    from onnxmerge.pipeline.inspect import inspect
    from onnxmerge.pipeline.sweep import sweep
    from onnxmerge.report.writing import write_report
    from onnxmerge.results import *

__version__ = "0.1.0"

# fmt: off
__all__ = [
    "bench", "bench_batches", "compress", "inspect", "sweep", "verify", "write_report",
    "InputOptions", "PlannedGroup", "PruningOptions", "RuntimeOptions", "Thresholds",
    "Accuracy", "Benchmark", "Compression", "ExampleInput", "Execution", "Fidelity", "GroupResult", "InputShape", "Inspection",
    "LatencyComparison", "LatencySummary", "LayerComparison", "NodeDeviation", "OutputFidelity", "Size", "Sweep", "SweepPoint",
    "ThresholdCheck", "Verification",
    "InputError", "ModelError", "OnnxMergeError", "OptionError", "ProviderError", "Reason", "Refusal", "VerificationError",
    "__version__",
]
# fmt: on

_MODULE_OF_VERB = {
    "bench": "evaluation.benchmark",
    "bench_batches": "evaluation.benchmark",
    "compress": "pipeline.compress",
    "inspect": "pipeline.inspect",
    "sweep": "pipeline.sweep",
    "verify": "evaluation.verify",
    "write_report": "report.writing",
}
_MODULES_OF_TYPES = ("errors", "options", "results")


def __getattr__(name: str) -> _typing.Any:
    """The public name, loaded from its module."""
    if name in __all__:
        for module in (_MODULE_OF_VERB[name],) if name in _MODULE_OF_VERB else _MODULES_OF_TYPES:
            loaded = _import_module(f"onnxmerge.{module}")
            if hasattr(loaded, name):
                return getattr(loaded, name)
    raise AttributeError(f"module 'onnxmerge' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names only."""
    return __all__
