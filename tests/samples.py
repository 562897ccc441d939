"""Results as the program gives them, for the tests of what people and programs read."""

from __future__ import annotations

import math
from dataclasses import replace

from onnxmerge.errors import Reason, refusal
from onnxmerge.report.documents import Provenance
from onnxmerge.results import (
    Accuracy,
    Benchmark,
    Compression,
    ExampleInput,
    Execution,
    Fidelity,
    GroupResult,
    Inspection,
    LatencyComparison,
    LatencySummary,
    LayerComparison,
    NodeDeviation,
    OutputFidelity,
    Size,
    Sweep,
    SweepPoint,
    Verification,
)

LONG = "/backbone/stage_3/block_17/attention/projection/pointwise/expand_1x1/fused_conv_bn/Conv"
OUTPUT = OutputFidelity("logits", 0.98764, 19.1, 0.1234, 0.4321, 0.9912, 0.8765, 1.2345, 17, 0.953, 0.9999, True, 2560, 0)
OUTPUT = replace(OUTPUT, relative_l2_quantiles=tuple((step / 20) ** 3 * 0.4321 for step in range(21)), median_input=200)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
EXAMPLES = (ExampleInput("worst", "no. 17", 0.4321, PIXEL), ExampleInput("median", "cat.png", 0.054))
FIDELITY = Fidelity((OUTPUT,), 256, "256 synthetic images (seed 0)", "CPUExecutionProvider", examples=EXAMPLES)
LATENCY = LatencyComparison(
    LatencySummary(12.345, 15.5, 400, tuple(12.0 + (step / 10) ** 1.5 for step in range(21))),
    LatencySummary(8.23, 9.75, 400, tuple(8.0 + (step / 12) ** 2 for step in range(21))),
    0.667,
    0.65,
    0.69,
    4,
    "CPUExecutionProvider",
    2,
    warm_up_runs=60,
    rounds=16,
    reference_inputs_per_second=4 / 12.345e-3,
    candidate_inputs_per_second=4 / 8.23e-3,
    macs_ratio=0.5,
    realised_saving=0.666,
)
SLOWER = replace(LATENCY, batch_size=32, latency_ratio=1.2, latency_ratio_low=1.1, latency_ratio_high=1.3, realised_saving=-0.4)
BENCHMARK = Benchmark("in.onnx", "out.onnx", (LATENCY,))
BATCHES = replace(BENCHMARK, batches=(LATENCY, SLOWER))
DEVIATION = NodeDeviation("/3/Conv", "Conv", "/3/Conv_output_0", 1e-7, 0.25, "its weight has the opposite sign")
LAYERS = LayerComparison(
    True,
    9,
    2,
    8,
    DEVIATION,
    (DEVIATION, replace(DEVIATION, node="/4/Relu", relative_l2_before=0.25, relative_l2_after=math.inf)),
    ("/3/Conv: a sign",),
)
EXAMINED = replace(
    FIDELITY,
    same_channel_counts=True,
    accuracy=Accuracy(0.9966, 0.9933),
    layer_comparison=LAYERS,
    execution=Execution("libcudnn is missing", {"use_tf32": "0"}, {"a": "CPUExecutionProvider"}, {"b": "CUDAExecutionProvider"}),
)
GROUPS = (
    GroupResult(LONG, 1024, 1024, 512, "reconstruct", ("a", "b"), ("c",), 0.314, 0.456, 0.4),
    GroupResult("stem", 8, 6, 7, "prune", ("stem",), ("c", "d"), 0.0126, 0.02, 0.00033, "merge is not valid behind HardSwish"),
)
REFUSALS = (
    refusal("fc", Reason.GRAPH_OUTPUT, "y", output="y"),
    refusal("p1", Reason.MIXES_CHANNELS, "/8/Softmax", operator="Softmax"),
)
COMPRESSION = Compression(
    model="models/in.onnx",
    output="out.onnx",
    before=Size(25_557_032, 4_089_184_256, 102_442_450),
    after=Size(12_345_678, 1_234_567_890, 49_382_712),
    groups=GROUPS,
    refusals=REFUSALS,
    fidelity=FIDELITY,
    latency=LATENCY,
    warnings=("the fidelity rests on few inputs: give `calibration`",),
    seconds=12.3,
    seed=0,
    versions={},
    simplifications=("12 chains of Add, Clip, Mul and Div became HardSigmoid and Mul",),
)
INSPECTION = Inspection("models/in.onnx", COMPRESSION.before, GROUPS, REFUSALS)
PROVENANCE = Provenance(
    "onnxmerge compress in.onnx out.onnx", "2026-11-24T18:40:00Z", {"onnxmerge": "0.1.0"}, {"in.onnx": "ab" * 32}
)
VERIFICATION = Verification("in.onnx", "out.onnx", FIDELITY)
POINTS = (
    SweepPoint(
        "macs=0.75",
        Size(19_200_000, 3_050_000_000, 76_900_000),
        0.9812,
        0.953,
        LATENCY,
        {LONG: 700},
        (),
        "out/in-macs-0.75.onnx",
        fidelity_low=0.9743,
        fidelity_high=0.9868,
        changed_decisions=0.017,
    ),
    SweepPoint(
        "macs=0.5",
        Size(12_345_678, 2_040_000_000, 49_382_712),
        0.9123,
        0.871,
        replace(LATENCY, latency_ratio=0.5),
        {LONG: 512},
        (),
        fidelity_low=0.8954,
        fidelity_high=0.9271,
        changed_decisions=0.052,
        changed_decisions_low=0.031,
        changed_decisions_high=0.083,
    ),
    SweepPoint("macs=0.25", Size(6_000_000, 1_000_000_000, 24_000_000), -3.2, 0.25, None, {LONG: 99}, ("it drifted",)),
    SweepPoint("macs=0.01", None, None, None, None, {}, (), failure="at least 3 % must stay"),
)
SWEEP = Sweep("models/in.onnx", COMPRESSION.before, POINTS, "256 synthetic images", 7, {"numpy": "2.4.6"})
MEASURED = replace(
    INSPECTION,
    groups=(
        replace(GROUPS[0], sensitivity={"0.25": 0.99312, "0.5": 0.96, "0.75": -0.4}),
        replace(GROUPS[1], sensitivity={"0.5": 0.8}),
    ),
    input_description="384 synthetic images",
)
RESULTS = {
    "compression": COMPRESSION,
    "inspection": INSPECTION,
    "verification": VERIFICATION,
    "benchmark": BENCHMARK,
    "sweep": SWEEP,
}
VARIANTS = {
    **RESULTS,
    "examined": replace(VERIFICATION, fidelity=EXAMINED),
    "batches": BATCHES,
    "untimed": replace(SWEEP, points=tuple(replace(point, latency=None) for point in POINTS)),
    "sensitivity": MEASURED,
}
EVIL = {
    "script": "</style></title><script>alert(1)</script>",
    "attribute": "\"'><img src=x onerror=alert(1)> & &amp; &#x3c;",
    "override": "conv\u202egnp.exe\u2066",
    "hebrew": "\u05e9\u05dc\u05d5\u05dd/Conv",
    "control": "a\x00b\x1b[31mc\r\nd\x85",
    "surrogate": "half \ud83d of a pair",
    "long": "/backbone" * 600,
    "unbroken": "W" * 5000,
}


def verification(*outputs: OutputFidelity) -> Verification:
    """One with these outputs."""
    return replace(VERIFICATION, fidelity=replace(FIDELITY, outputs=outputs))


def evil(name: str) -> Compression:
    """A compression that says `name` wherever a stranger's file may."""
    output = replace(OUTPUT, name=name)
    group = replace(GROUPS[1], name=name, producers=(name,), consumers=(name, LONG), note=name, expected_error={"prune": 0.1})
    return replace(
        COMPRESSION,
        model=name,
        output=name,
        groups=(group, *GROUPS),
        refusals=(refusal(name, Reason.DOES_NOT_RUN, error=name), refusal("fc", Reason.GRAPH_OUTPUT, name, output=name)),
        fidelity=replace(
            EXAMINED,
            outputs=(output, output),
            examples=(replace(EXAMPLES[0], name=name), replace(EXAMPLES[1], name=name)),
            input_description=name,
            execution=Execution(name, {name: name}, {name: name}, {}),
        ),
        warnings=(name,),
        versions={name: name},
    )


def deep(count: int) -> Compression:
    """A compression of so many groups, each read by the next one and by one before."""
    groups = tuple(
        GroupResult(
            f"/layer/{index}/Conv",
            64 * (1 + index % 8),
            64,
            16 + 40 * (index % 8),
            "reconstruct",
            (f"w{index}",),
            (f"w{index + 1}", f"w{max(0, index - 5)}"),
            0.01,
            0.001 * (index % 11),
            0.0012 * (index % 9),
            "",
            {"reconstruct": 0.01 * (index % 9), "prune": 0.1},
        )
        for index in range(count)
    )
    return replace(COMPRESSION, groups=groups)
