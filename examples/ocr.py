"""The text reader of PP-OCR, out of the wheel of rapidocr-onnxruntime, fitted to the lines that it is to read.

`pip install rapidocr-onnxruntime`, then `python examples/ocr.py`. Lines drawn here stand for those of a real application: give
some hundred of your own. Of the 6,625 characters, most Chinese, these need a few, and what only the others need goes first.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont

import onnxmerge

WORDS = ("pear", "apple", "lemon", "plum", "cherry", "grape", "fig", "lime", "2024", "17.50", "42", "No.", "total", "paid", "tax")


def main(arguments: list[str] | None = None) -> None:
    """Draw lines, compress on some of them, read the others with both models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("reader-smaller.onnx"))
    parser.add_argument("--lines", type=int, default=96)
    parser.add_argument("--target", default="macs=0.8")
    given = parser.parse_args(arguments)
    package = find_spec("rapidocr_onnxruntime")
    if package is None:
        parser.exit(2, "this example needs the model of rapidocr-onnxruntime: pip install rapidocr-onnxruntime\n")
    model = Path(package.submodule_search_locations[0]) / "models" / "ch_PP-OCRv4_rec_infer.onnx"
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, 2)) for _ in range(given.lines)]
    lines, judged = np.stack([drawn(text) for text in texts]), min(32, given.lines // 2)
    result = onnxmerge.compress(model, given.output, target=given.target, calibration=lines[judged:], bench=False)
    before, after = (read(path, lines[:judged]) for path in (model, given.output))
    print(f"{result.after.macs / result.before.macs:.0%} of the MACs left, fidelity {result.fidelity.worst.fidelity:.3f}")
    right = [
        sum(found.replace(" ", "") == text.replace(" ", "") for found, text in zip(each, texts, strict=False))
        for each in (before, after)
    ]
    print(f"of {judged} lines that it never saw {right[0]} were read right before but for spaces, {right[1]} are now")


def drawn(text: str) -> np.ndarray:
    """A line of text as the model takes it: (3, 48, 320) float32, pixels from -1 to 1."""
    image = Image.new("RGB", (320, 48), "white")
    ImageDraw.Draw(image).text((8, 8), text, "black", ImageFont.load_default(28))
    return (np.asarray(image, np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5


def read(model: Path, lines: np.ndarray) -> list[str]:
    """The texts: of each step the best character, repetitions and blanks (class 0) left out."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    characters = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    steps = np.concatenate([session.run(None, {"x": line[None]})[0].argmax(axis=2) for line in lines])
    return ["".join(characters[c] for c, last in zip(row, [0, *row[:-1]], strict=True) if c != last) for row in steps]


if __name__ == "__main__":
    main()
