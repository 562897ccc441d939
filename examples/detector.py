"""A YOLOv8n detector of dynamic size, out of the wheel of nudenet: `pip install nudenet`, then `python examples/detector.py`.

Detectors have one output of boxes and scores for thousands of places, no best class, so that their fidelity is what is held.
Images of what the detector will see make the result better: `--images FOLDER`.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import onnxmerge


def main(arguments: list[str] | None = None) -> None:
    """Compress to a fidelity, then check and time on inputs that nothing was solved on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("detector-smaller.onnx"))
    parser.add_argument("--images", type=Path, help="a folder; without it the program makes its own")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--target", default="macs=0.8")
    given = parser.parse_args(arguments)
    package = find_spec("nudenet")
    if package is None:
        parser.exit(2, "this example needs the model of nudenet: pip install nudenet\n")
    model = Path(package.submodule_search_locations[0]) / "320n.onnx"
    inputs = {"input_shape": f"1,3,{given.size},{given.size}", "samples": given.samples}
    if given.images:
        inputs["calibration"] = given.images
    result = onnxmerge.compress(model, given.output, target=given.target, bench=False, **inputs)
    for refusal in result.refusals[:3]:
        print(f"{refusal.where} stays whole: {refusal.text}")
    checked = onnxmerge.verify(model, given.output, min_fidelity=0.5, **inputs)
    timed = onnxmerge.bench(model, given.output, threads=1, input_shape=inputs["input_shape"])
    left = f"{result.after.macs / result.before.macs:.0%} of the MACs left"
    interval = f"{1 / timed.latency_ratio_high:.2f} to {1 / timed.latency_ratio_low:.2f}"
    verdict = "passed" if checked.passed else "failed"
    print(f"{verdict}: {left}, {interval} times as fast, fidelity {checked.fidelity.worst.fidelity:.3f}")


if __name__ == "__main__":
    main()
