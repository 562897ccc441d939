"""The project's own models and the real labelled digits that judge them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxmerge.execution.providers import resolve_provider
from onnxmerge.execution.sessions import open_session

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
FACTS = json.loads((MODELS / "models.json").read_text(encoding="utf-8"))
BATCH = 64


@dataclass(frozen=True)
class DigitsModel:
    """A model of models/models.json: the file, and how uint8 images become its inputs."""

    path: Path
    input_name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def pixels(self) -> dict[str, Any]:
        """Options that tell onnxmerge what the pixels are like."""
        return {"input_range": (0.0, 1.0), "mean": self.mean, "std": self.std}


def models() -> list[DigitsModel]:
    """Every model of the folder."""
    return [
        DigitsModel(MODELS / entry["file"], entry["input"]["name"], tuple(entry["input"]["mean"]), tuple(entry["input"]["std"]))
        for entry in FACTS["models"]
    ]


def digits_accuracy(model: DigitsModel, path: Path) -> float:
    """Share of the real test digits that the file at `path` reads rightly; model: where it came from."""
    with np.load(MODELS / FACTS["data"]["file"], allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (model.mean, model.std))
    inputs = (images.astype(np.float32) / np.float32(255) - mean) / std
    session = open_session(path, resolve_provider("cpu"), optimise=False)
    batches = ({model.input_name: inputs[start : start + BATCH]} for start in range(0, len(inputs), BATCH))
    scores = [next(iter(session.run(feeds).values())) for feeds in batches]
    return float((np.concatenate(scores).argmax(1) == labels).mean())
