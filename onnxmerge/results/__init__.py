"""Result objects: frozen dataclasses with the units in the names of their fields. `onnxmerge.report` shows and writes them.

`reference` always is the original model and `candidate` the model that is compared with it; a share is a number from 0 to 1.
The JSON Schemas in docs/schemas are made from the docstrings of these classes.
"""

from onnxmerge.results.compression import Compression, GroupResult, Inspection, Sweep, SweepPoint
from onnxmerge.results.examples import ExampleInput
from onnxmerge.results.execution import Execution, InputShape
from onnxmerge.results.fidelity import Accuracy, Fidelity, OutputFidelity, Verification
from onnxmerge.results.latency import Benchmark, LatencyComparison, LatencySummary
from onnxmerge.results.layer_comparison import LayerComparison, NodeDeviation
from onnxmerge.results.size import Size
from onnxmerge.results.threshold_check import ThresholdCheck

# fmt: off
__all__ = [
    "Accuracy", "Benchmark", "Compression", "ExampleInput", "Execution", "Fidelity", "GroupResult", "InputShape", "Inspection",
    "LatencyComparison", "LatencySummary", "LayerComparison", "NodeDeviation", "OutputFidelity", "Size",
    "Sweep", "SweepPoint", "ThresholdCheck", "Verification",
]
# fmt: on
