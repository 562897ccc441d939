"""End `onnxmerge compress` at random moments, and check what is left.

    python benchmarks/kill_compress.py [--kills 60] [--signal KILL] [--seed 0]

Every second run writes its weights to a file beside the model. After each end the model that is there, if any, must give the
outputs of one that nobody disturbed; a run that is not disturbed then writes another file of the folder, and nothing else may
be left. With --signal INT or TERM the run that is ended must clean up itself, and say so in one line.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from onnxmerge.onnxio import model_files

MODEL = Path(__file__).resolve().parents[1] / "models" / "digits-mlp.onnx"
OPTIONS = ("--method", "prune", "--ratio", "0.25", "--no-verify")
SIGNALS = "import onnxmerge.__main__ as program; program.end_on_signals(); "
BESIDE = "import onnxmerge.onnxio.storage as storage; storage.MESSAGE_LIMIT_BYTES = 4096; storage.SMALL_TENSOR_BYTES = 256; "
START = "program.main()"


def start(output: Path, beside: bool) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SIGNALS + BESIDE * beside + START, "compress", str(MODEL), str(output), *OPTIONS]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outputs(model: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": np.ones((1, 1, 8, 8), np.float32)})[0])


def files_of(*models: Path) -> list[str]:
    present = [model for model in models if model.exists()]
    data = [file for model in present for file in model_files.external_files(model_files.load(model))]
    return sorted(file.name for file in [*present, *data])


def main() -> None:
    """Print how many runs were ended and in which state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--signal", choices=("KILL", "INT", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    number, draw = signal.Signals[f"SIG{given.signal}"], random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target, other = folder / "m.onnx", folder / "n.onnx"
        began = time.perf_counter()
        start(target, True).communicate()
        seconds, expected = time.perf_counter() - began, outputs(target)
        ended = leftovers = 0
        while ended < given.kills:
            beside = bool(draw.getrandbits(1))
            running = start(target, beside)
            # half of the moments are in the last tenth of a run, where it writes
            time.sleep(seconds * draw.choice((draw.uniform(0.0, 1.1), draw.uniform(0.85, 1.05))))
            running.send_signal(number)
            error = running.communicate()[1]
            ended += running.returncode != 0
            assert running.returncode in (0, -number, 128 + number), (running.returncode, error)
            assert error in ("", "onnxmerge: interrupted\n"), error
            assert np.array_equal(outputs(target), expected)
            left = sorted(os.listdir(folder)) != files_of(target, other)
            leftovers += left
            assert number == signal.SIGKILL or not left, os.listdir(folder)
            if left:
                assert start(other, beside).wait() == 0
                assert sorted(os.listdir(folder)) == files_of(target, other), os.listdir(folder)
    print(f"{ended} runs ended by {number.name}: no broken file, and what {leftovers} of them left went with the next run")


if __name__ == "__main__":
    main()
