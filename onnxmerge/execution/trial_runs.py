"""The first two runs of a model: with sizes that run, and with others; they show what is dynamic, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onnxmerge.errors import ModelError
from onnxmerge.execution.batch_axes import Call, batch_axes, batch_symbol, changing_axes, named_axes, possible_axes, tied_axes
from onnxmerge.execution.example_feeds import Shapes, example_feeds
from onnxmerge.execution.input_sizes import NOTHING_GIVEN, GivenShapes, Trial, first_trials, origins_of, other_shapes
from onnxmerge.execution.row_trials import are_apart, other_axes
from onnxmerge.execution.sessions import ModelSource, Session
from onnxmerge.execution.setting_values import numbers_used, settings_to_try
from onnxmerge.execution.shapes import Observations, label_of_source, observed, opened_with_outputs, read_graph
from onnxmerge.execution.size_hints import SizeHints, size_hints
from onnxmerge.execution.tensor_specs import Feeds, TensorSpec
from onnxmerge.results import InputShape

MOST_DISAGREEING = 6  # runs whose outputs have other shapes than declared, before the first of them is taken

Allowed = Callable[[Sequence[TensorSpec], Mapping[str, tuple[int, ...]]], None]


class FirstRuns(NamedTuple):
    """What a model's first runs showed.

    Attributes
    ----------
    first : dict of str to Observation
        Of a run with the sizes on which everything is counted, checked and timed.
    second : dict of str to Observation or None
        Of a run with others: what differs is dynamic. The batch, or the other sizes, stay the same where only so it runs; None
        where no input is dynamic or no second run succeeds.
    origins : dict of str to str
        By input where its sizes come from, see `origins_of`.
    pixels : Mapping of str to str
        By input how the pixels of the user's images become its values.
    call : Call
        Which axes are the batch, and the values of settings.
    """

    first: Observations
    second: Observations | None
    origins: dict[str, str]
    pixels: Mapping[str, str]
    call: Call

    @property
    def inputs(self) -> tuple[InputShape, ...]:
        """The sizes of the first run, for reports."""
        return tuple(
            InputShape(name, self.first[name].shape, origin, self.pixels.get(name, ""), self.call.assumed.get(name, ""))
            for name, origin in self.origins.items()
        )


def anything_goes(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Inputs of any size are allowed."""


def observe_twice(
    model: ModelSource,
    *,
    given: GivenShapes = NOTHING_GIVEN,
    seed: int = 0,
    label: str | None = None,
    folder: Path | None = None,
    allowed: Allowed = anything_goes,
) -> FirstRuns:
    """Two runs on random inputs: the first of `first_trials` that runs and gives outputs of the shapes declared, then another.

    Of a model that nobody has run before use `first_run.first_observations`.

    Parameters
    ----------
    given : GivenShapes
        Sizes that are not to be chosen.
    seed : int
        Of the inputs. The others are those of `observe`.
    allowed : callable
        Called with the inputs before their values are made; a ModelError of it counts as one of the model's.

    Raises
    ------
    ModelError
        Where no first run succeeds, with the reason of the first try.
    """
    proto = read_graph(model, label_of_source(model, label))
    session = opened_with_outputs(proto, model, label, folder)
    declared = tuple(spec for spec in session.outputs if spec.name in {output.name for output in proto.graph.output})
    tries = settings_to_try(proto, session.inputs, given.values)
    operators = frozenset(node.op_type for node in proto.graph.node)
    trials = _Trials(session, declared, size_hints(proto), seed, allowed, operators)
    found, reason = list[_First](), None
    for settings in tries:
        try:
            found.append(trials.first(settings, given))
        except ModelError as error:
            reason = reason or error
    if not found:
        assert reason is not None
        raise reason
    works = [numbers_used(proto.graph, each.conditions) for each in found]
    return trials.both(found[works.index(max(works))])


@dataclass(frozen=True)
class _First:
    """A run that succeeded: what the inputs were taken for, their sizes, and what was observed."""

    inputs: tuple[TensorSpec, ...]
    call: Call
    given: GivenShapes
    trial: Trial
    observed: Observations

    @property
    def conditions(self) -> dict[str, bool]:
        """Single booleans by name."""
        single = {name: seen.value for name, seen in self.observed.items() if seen.value is not None and seen.value.size == 1}
        return {name: bool(value.all()) for name, value in single.items() if value.dtype.kind == "b"}


@dataclass(frozen=True)
class _Trials:
    """A model to be tried, and what it is tried with; the fields are those of `observe_twice`."""

    session: Session
    declared: tuple[TensorSpec, ...]
    hints: SizeHints
    seed: int
    allowed: Allowed
    operators: frozenset[str]

    def first(self, settings: Mapping[str, object], given: GivenShapes) -> _First:
        """The first run that succeeds with some settings. Axes are the batch where names say so, or else where runs show it."""
        found = self._by_names(settings, given)
        others = list(other_axes(self.session.inputs, found.call.axes, self.operators))
        if not others or self._are_apart(found):
            return found
        for axes in others:
            try:
                other = self._with(Call(axes, settings), given.with_counted(axes))
            except ModelError:
                continue
            if self._are_apart(other):
                return other
        return found

    def _by_names(self, settings: Mapping[str, object], given: GivenShapes) -> _First:
        """Inputs that may count inputs on an axis under another name do so where runs show it."""
        plain = Call(batch_axes(self.session.inputs), settings)
        possible = possible_axes(self.session.inputs, plain.axes)
        if possible:
            opened = given.opened(possible)  # sizes that were given are no sizes of a batch, unless runs show it
            try:
                found = self._with(Call({**plain.axes, **possible}, settings), opened)
            except ModelError:
                return self._with(plain, given)
            runs = partial(self._runs, found.inputs, found.given)
            tied = tied_axes(self.session.inputs, possible, plain.axes, found.trial.shapes, runs)
            if tied == possible and opened == given:
                return found
            plain = replace(plain, axes={**plain.axes, **tied})
        return self._with(plain, given)

    def _with(self, call: Call, given: GivenShapes) -> _First:
        inputs = call.described(self.session.inputs)
        given = given.without_batch(batch_axes(inputs))
        trials = first_trials(inputs, self.hints, given)
        ran: list[tuple[Trial, Observations]] = []
        reason = None
        for trial in trials:
            try:
                ran.append((trial, self._observe(inputs, trial.shapes, given)))
            except ModelError as error:
                reason = reason or error
                continue
            if agrees(inputs, self.declared, ran[-1][1]) or len(ran) == MOST_DISAGREEING:
                break
        if not ran:
            alone = len(trials) == 1 and not given.shapes
            raise reason if alone and reason is not None else ModelError(_never_runs(inputs, trials, given, reason))
        return _First(inputs, call, given, *next((each for each in ran if agrees(inputs, self.declared, each[1])), ran[0]))

    def both(self, first: _First) -> FirstRuns:
        """With a run of other sizes, as much changed as the model allows."""
        inputs, second = first.inputs, None
        for shapes in other_shapes(inputs, first.trial.shapes):
            try:
                second = self._observe(inputs, shapes, first.given)
                break
            except ModelError:
                continue
        others = None if second is None else {spec.name: second[spec.name].shape for spec in inputs}
        origins = origins_of(inputs, first.trial, others, first.given)
        axes, whole = batch_axes(inputs), list[str]()
        for name, axis in list(axes.items())[:1]:
            one, other = ({name: seen.shape for name, seen in run.items()} for run in (first.observed, second or first.observed))
            sizes = one[name][axis], other[name][axis]
            axes = changing_axes((spec.name for spec in self.declared), one, other, sizes) | axes
            whole = [spec.name for spec in self.declared if sizes[0] != sizes[1] and one.get(spec.name) == other.get(spec.name)]
        axes = named_axes(self.declared, batch_symbol(inputs, axes)) | axes
        call = replace(first.call, axes=axes, whole=tuple(name for name in whole if name not in axes))
        return FirstRuns(first.observed, second, origins, first.given.pixels, call)

    def _are_apart(self, first: _First) -> bool:
        """Whether two inputs are computed as each of them alone is."""
        axes = batch_axes(first.inputs)
        shapes = {
            name: tuple(2 if number == axes.get(name) else size for number, size in enumerate(shape))
            for name, shape in first.trial.shapes.items()
        }
        try:
            feeds = self._feeds(first.inputs, shapes, first.given)
            return are_apart(self.session.run, feeds, axes, [spec.name for spec in self.declared])
        except ModelError:
            return False

    def _runs(self, inputs: Sequence[TensorSpec], given: GivenShapes, shapes: Shapes) -> bool:
        try:
            self._observe(inputs, shapes, given)
        except ModelError:
            return False
        return True

    def _observe(self, inputs: Sequence[TensorSpec], shapes: Shapes, given: GivenShapes) -> Observations:
        return observed(self.session, self._feeds(inputs, shapes, given))

    def _feeds(self, inputs: Sequence[TensorSpec], shapes: Shapes, given: GivenShapes) -> Feeds:
        self.allowed(inputs, shapes)
        values = {name: np.asarray(value) for name, value in given.values.items()}
        known = {spec.name: values[spec.name].astype(spec.dtype) for spec in inputs if spec.name in values}
        single = {name: np.full(shapes[name], value.item(), value.dtype) for name, value in known.items() if value.size == 1}
        return example_feeds(inputs, shapes, self.seed) | known | single


def agrees(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], observed: Observations) -> bool:
    """Whether the outputs had the sizes that are declared: numbers, and names that the inputs have too."""
    sizes: dict[int | str | None, set[int]] = {}
    for spec in inputs:
        for dim, size in zip(spec.dims, observed[spec.name].shape, strict=True):
            sizes.setdefault(dim, set()).add(size)
    for spec in outputs:
        shape = observed[spec.name].shape
        if len(shape) == len(spec.dims) and any(
            size not in ({dim} if isinstance(dim, int) else sizes.get(dim or "", {size}))
            for dim, size in zip(spec.dims, shape, strict=True)
        ):
            return False
    return True


def _never_runs(inputs: Sequence[TensorSpec], trials: Sequence[Trial], given: GivenShapes, reason: ModelError | None) -> str:
    guessed = (spec for spec in inputs if spec.is_setting and spec.name not in given.values)
    settings = ", ".join(f"{spec.name} was set to {spec.set_to(())}" for spec in guessed)
    reason_told = f"{reason}; {settings}: inputs of yours as `calibration` give what it takes" if settings else reason
    if given.shapes:
        sizes = ", ".join(InputShape(name, shape, "").text for name, shape in trials[0].shapes.items())
        whose = {"reference": "of the reference's sizes", "calibration": "of the sizes of the calibration inputs"}
        return f"with inputs {whose.get(next(iter(given.origins.values())), 'of the sizes given')}, {sizes}: {reason_told}"
    return f"no input size tried makes it run ({len(trials)} were tried; give yours with `input_shape`): {reason_told}"
