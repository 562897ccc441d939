"""Plan files: which channels of which group stay, readable, editable, bound to one model by its fingerprint.

    {"schema": "onnxmerge.plan/1", "model": {"file": ..., "sha256": ...}, "method": "auto",
     "held_out": 32,
     "groups": [{"name": ..., "channels": 16, "kept": 12, "method": "reconstruct", "kept_channels": [0, 2, ...]}, ...]}

To edit one: change `kept` and delete `kept_channels`, or change both. Groups that are not listed stay whole. The methods are
those that `method` auto found, and hold where that is asked for again; of a group only together with its channels. `held_out` is
how many of the calibration inputs were left to the check: layers are solved on the others again, of which a search has fewer.
"""

import json
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxmerge.errors import OptionError
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.onnxio.side_files import write_atomically
from onnxmerge.onnxio.stored_provenance import sha256_of
from onnxmerge.options import PlannedGroup, PruningOptions
from onnxmerge.options.checks import METHOD_NAMES, is_whole
from onnxmerge.pipeline.candidates import Candidate

SCHEMA = "onnxmerge.plan/1"
KEYS = {"schema", "model", "method", "held_out", "groups"}
GROUP_KEYS = {"name", "channels", "kept", "method", "kept_channels"}
LARGEST_FILE = 1 << 26


@dataclass(frozen=True)
class PlanFile:
    """What a plan says.

    Attributes
    ----------
    method : str
        The method of the whole model.
    groups : Mapping[str, PlannedGroup]
        By name of each group what stays of it.
    held_out : int or None
        How many of the calibration inputs nothing was solved on.
    """

    method: str
    groups: Mapping[str, PlannedGroup]
    held_out: int | None = None


def fingerprint(model: Path, external: Sequence[Path]) -> str:
    """SHA-256 of the model file and of its external data files, in hexadecimal."""
    return sha256_of((model, *external))


def plan_of(candidate: Candidate, pruning: PruningOptions, held_out: int | None) -> PlanFile:
    """The plan that gives a candidate again; "auto" is the method that leaves every group its own."""
    methods = {group.name: group.method for group in candidate.groups}
    groups = {name: PlannedGroup(len(kept), kept, methods[name]) for name, kept in candidate.kept.items()}
    method = "prune" if candidate.only_pruned else pruning.method
    is_mixed = method == "reconstruct" and any(each != method for each in methods.values())
    return PlanFile("auto" if is_mixed else method, groups, held_out)


def write_plan(path: Path, model: Path, model_sha256: str, groups: Sequence[ChannelGroup], plan: PlanFile) -> None:
    """What was kept of each group. model_sha256: of the model, see `fingerprint`; plan: the groups that shrank."""
    rows: list[dict[str, Any]] = []
    for group in groups:
        planned = plan.groups.get(group.name, PlannedGroup(group.size))
        row = {"name": group.name, "channels": group.size, "kept": planned.kept}
        whole = planned.kept_channels is None
        rows.append(row if whole else {**row, "method": planned.method, "kept_channels": list(planned.kept_channels or ())})
    told: dict[str, Any] = {"schema": SCHEMA, "model": {"file": model.name, "sha256": model_sha256}, "method": plan.method}
    head = json.dumps(told if plan.held_out is None else {**told, "held_out": plan.held_out}, indent=2)
    body = ",\n".join(f"    {json.dumps(row)}" for row in rows)  # a line a group, to be edited by hand
    text = f'{head[:-2]},\n  "groups": [\n{body}\n  ]\n}}\n'
    write_atomically(path, "the plan", lambda draft: draft.write_text(text, encoding="utf-8"))


def read_plan(path: Path, model_sha256: str, groups: Sequence[ChannelGroup]) -> PlanFile:
    """The plan for the model with that fingerprint. OptionError with one line where it does not fit.

    Whether the groups can keep what it says is for `kept_counts` to find out.
    """
    method, rows = _rows(path, model_sha256)
    sizes = {group.name: group.size for group in groups}
    planned: dict[str, PlannedGroup] = {}
    for row in rows:
        name, named = row.get("name"), row.get("kept_channels")
        where = f"{path}: group {name!r}"
        _check_keys(row, GROUP_KEYS, where)
        if not isinstance(name, str) or name not in sizes:
            raise OptionError(f"{where} is no group that may shrink here; `onnxmerge inspect` lists them")
        if row.get("channels", sizes[name]) != sizes[name]:
            raise OptionError(f"{where} has {sizes[name]} channels, not {row['channels']!r}; how many stay is `kept`")
        if name in planned:
            raise OptionError(f"{where} is listed twice")
        if not isinstance(named, list | None):
            raise OptionError(f"{where}: kept_channels must be a list")
        try:
            planned[name] = PlannedGroup(row.get("kept", 0), None if named is None else tuple(named), row.get("method"))
        except OptionError as error:
            raise OptionError(f"{where}: {error}; without kept_channels they are chosen") from None
        if named is None or planned[name].kept == sizes[name]:
            planned[name] = PlannedGroup(planned[name].kept)
    return PlanFile(method, planned, planned_held_out(path))


def _check_keys(found: Mapping[str, Any], known: set[str], where: str) -> None:
    """A misspelt key would be an edit without effect."""
    unknown = sorted(found.keys() - known)
    if unknown:
        raise OptionError(f"{where}: {unknown[0]!r} is no key here; known are {', '.join(sorted(known))}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Readers disagree about which of two equal keys counts, and so may the person who wrote them."""
    twice = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    if twice:
        raise ValueError(f"the key {twice[0]!r} occurs twice in one object")
    return dict(pairs)


def planned_held_out(path: Path) -> int | None:
    """How many of the calibration inputs a plan leaves to the check; None where it does not say. Read before the model is known.

    OptionError with one line where it is no plan.
    """
    held_out = _content(path).get("held_out")
    if held_out is not None and (not is_whole(held_out) or held_out < 1):
        raise OptionError(f"{path}: held_out must be a number of inputs, at least 1, not {held_out!r}")
    return held_out


def _content(path: Path) -> dict[str, Any]:
    """A plan as it stands in its file."""
    try:
        file = path.stat()
        if not stat.S_ISREG(file.st_mode):
            raise OptionError(f"the plan {path} cannot be read: it is no regular file")
        if file.st_size > LARGEST_FILE:
            raise OptionError(f"{path} is too large to be a plan")
        plan = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise OptionError(f"the plan {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"the plan {path} is not JSON as a plan needs it: {error}") from error
    if not isinstance(plan, dict) or plan.get("schema") != SCHEMA:
        found = plan.get("schema") if isinstance(plan, dict) else None
        raise OptionError(f"{path} is no plan: its schema is {found!r}, needed is {SCHEMA!r}")
    return plan


def _rows(path: Path, model_sha256: str) -> tuple[str, list[dict[str, Any]]]:
    """The method of the whole plan and its groups."""
    plan = _content(path)
    model, rows = plan.get("model"), plan.get("groups")
    if not isinstance(model, dict) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise OptionError(f'{path} is no plan: it needs "model" with its sha256 and "groups", a list')
    if model.get("sha256") != model_sha256:
        raise OptionError(f"the plan {path} was made for another model ({model.get('file')!r}): its sha256 differs")
    _check_keys(plan, KEYS, str(path))
    if (method := plan.get("method", "auto")) not in METHOD_NAMES:
        raise OptionError(f"{path}: method must be one of {', '.join(METHOD_NAMES)}, not {method!r}")
    return method, rows
