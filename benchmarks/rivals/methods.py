"""Every row of the comparison: who chooses the channels, which settings are tried, and what makes the model."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxmerge import compress
from rivals.cases import Case, NotRun, outputs
from rivals.folding import write_folded
from rivals.packages import write_onnxsim, write_torch_pruning
from rivals.restoration import PUBLISHED_THRESHOLDS, write_corp, write_grail, write_lbyl, write_neuron_merging

Write = Callable[[Case, dict[str, Any], Path], None]

DRAWS = 4
"""Seeds, 0 and those after it, of methods that draw random numbers: on LeNet-300-100 without half of its channels eight draws of
synthetic inputs spread over 0.9 points, twice what tells some methods apart."""

TUNING = 128
"""Calibration images on which the settings of a rival are chosen, by how often the class is that of the original model."""


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes
    ----------
    name : str
        As the table says it.
    family : str
        Methods of one family are one line of a plot: the best of them.
    chooser : str
        What the channels are chosen by.
    calibration : int
        Unlabelled images that it sees, 0 for none.
    write : Write
        Makes the model of a case.
    grid : Mapping[str, tuple]
        Settings; where several are possible those are taken that agree best with the original model.
    needs : tuple of str
        Optional packages.
    models : tuple of str
        Regular expressions, one of which the name of a model that it is for contains; all by default.
    is_random : bool
        Whether the result depends on a `seed` among the settings: then its accuracy is the mean of `DRAWS` of them.
    """

    name: str
    family: str
    chooser: str
    calibration: int
    write: Write
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    models: tuple[str, ...] = ("",)
    is_random: bool = False

    def is_for(self, case: Case) -> bool:
        """Whether the case has a row of it."""
        return any(re.search(part, case.path.stem) for part in self.models)

    def settings(self) -> list[dict[str, Any]]:
        """All combinations of the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def chosen(self, case: Case, target: Path) -> dict[str, Any]:
        """The settings that agree best with the original model; without a choice the only ones."""
        found = self.settings()
        if len(found) == 1:
            return found[0]
        images = case.inputs(TUNING)
        wanted = outputs(case.path, images).argmax(-1)

        def agreement(settings: dict[str, Any]) -> float:
            self.write(case, settings, target)
            return float((outputs(target, images).argmax(-1) == wanted).mean())

        return max(found, key=agreement)


def _write_with_program(case: Case, settings: dict[str, Any], target: Path, *, calibration: int = 0) -> None:
    options = {**case.options(), **settings, "threads": 1, "provider": "cpu"}
    if settings["method"] == "merge" and "lenet" in case.path.name:
        options["threshold"] = PUBLISHED_THRESHOLDS[False]
    if calibration:
        options["calibration"] = target.with_suffix(".npy")
        np.save(options["calibration"], case.inputs(calibration))
    result = compress(case.path, target, verify=False, **options)
    kept = {group.name: group.kept for group in result.groups}
    whole = [name for name, count in case.counts.items() if kept.get(name) != count]
    if whole:
        reason = next((each.text for each in result.refusals if each.where == whole[0]), "other counts")
        raise NotRun(f"{len(whole)} of {len(case.counts)} groups stay whole: {reason}")


def _of_program(
    name: str, calibration: int = 0, chooser: str = "reconstruction", models: tuple[str, ...] = ("",), **settings: Any
) -> Method:
    write = partial(_write_with_program, calibration=calibration)
    grid = {key: (value,) for key, value in settings.items()}
    family = f"{settings['method']}{', images' if calibration else ''}"
    is_random = calibration == 0 and settings["method"] in ("auto", "reconstruct")  # synthetic inputs
    return Method(name, f"onnxmerge {family}", chooser, calibration, write, grid, models=models, is_random=is_random)


RIDGES = (1e-4, 1e-3, 1e-2)
METHODS = (
    *(_of_program("prune", 0, norm, method="prune", criterion=norm) for norm in ("l1-norm", "l2-norm")),
    *(_of_program("merge", 0, norm, method="merge", criterion=norm) for norm in ("l1-norm", "l2-norm", "l2-gm")),
    _of_program("auto", 0, "reconstruction or norm", ("lenet", "vit", "llama", "cifar10$", "folded"), method="auto"),
    _of_program("reconstruct", 0, method="reconstruct"),
    *(_of_program("reconstruct", count, method="reconstruct") for count in (64, 500, 1000)),
    Method(
        "Neuron Merging",
        "Neuron Merging",
        "norm, best of three",
        0,
        write_neuron_merging,
        {"criterion": ("l1-norm", "l2-norm", "l2-gm")},
    ),
    Method(
        "LBYL",
        "LBYL",
        "norm, best of two",
        0,
        write_lbyl,
        {"criterion": ("l1-norm", "l2-norm"), "lambda_1": (1e-4, 1e-1), "lambda_2": (1e-3, 1e-2, 1e-1, 1.0)},
    ),
    Method(
        "Model Folding",
        "Model Folding",
        "k-means",
        0,
        write_folded,
        {"features": ("own", "both"), "repair": (True, False)},
        is_random=True,
    ),
    Method(
        "GRAIL",
        "GRAIL",
        "norm or activations, best of three",
        500,
        write_grail,
        {"criterion": ("l1-norm", "l2-norm", "wanda"), "ridge": RIDGES},
    ),
    Method(
        "CORP",
        "CORP",
        "activations or norm",
        500,
        write_corp,
        {"criterion": ("wanda", "l2-norm"), "ridge": RIDGES},
        models=("vit", "llama"),
    ),
    Method("onnxsim", "onnxsim", "l1", 0, write_onnxsim, {"importance_norm": ("l1",)}, ("onnxsim",)),
    Method("onnxsim", "onnxsim", "l2", 0, write_onnxsim, {"importance_norm": ("l2",)}, ("onnxsim",)),
    Method(
        "onnxsim, its fine-tuning",
        "onnxsim, images",
        "l2",
        500,
        write_onnxsim,
        {"importance_norm": ("l2",), "finetune": (True,)},
        ("onnxsim",),
    ),
    *(
        Method(
            "Torch-Pruning", "Torch-Pruning", text, 0, write_torch_pruning, {"importance": (kind,)}, ("torch", "torch_pruning")
        )
        for kind, text in (("l1", "l1 of filters"), ("group", "l2 of groups"))
    ),
)
