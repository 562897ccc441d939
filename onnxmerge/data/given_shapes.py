"""Sizes of a model's inputs that the user gives, as `input_shape` or by calibration inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import ModelProto

from onnxmerge.data.images import image_reading_of
from onnxmerge.data.inputs import calibration_inputs
from onnxmerge.data.synthetic import image_range_of
from onnxmerge.errors import OptionError
from onnxmerge.execution.first_run import first_observations
from onnxmerge.execution.input_sizes import NOTHING_GIVEN, GivenShapes, first_trials, with_given_sizes
from onnxmerge.execution.size_hints import size_hints
from onnxmerge.execution.tensor_specs import TensorSpec, input_specs
from onnxmerge.execution.trial_runs import FirstRuns
from onnxmerge.onnxio.validation import read_checked
from onnxmerge.options import InputOptions
from onnxmerge.results.execution import size_text


def given_shapes(model: Path, options: InputOptions, proto: ModelProto | None = None) -> GivenShapes:
    """What the options say of the sizes of a model's inputs; images of a folder are scaled to the sizes of `input_shape`.

    Parameters
    ----------
    model : Path
        An ONNX file.
    options : InputOptions
        The user's.
    proto : ModelProto or None
        What `read_checked` read from the file, where that is at hand.

    Raises
    ------
    OptionError
        Where `input_shape` does not fit the model.
    ModelError, InputError
        Where the model, or the calibration inputs, cannot be read or do not fit it.
    """
    if options.input_shape is None and options.calibration is None:
        return NOTHING_GIVEN
    proto = proto or read_checked(model)
    specs = input_specs(proto)
    shapes: dict[str, tuple[int | None, ...]] = dict(checked_shapes(options.input_shape or {}, specs))
    given = GivenShapes(shapes, dict.fromkeys(shapes, "given"))
    if options.calibration is None:
        return given
    sized = with_given_sizes(specs, given)
    likely = first_trials(specs, size_hints(proto), given)[0].shapes
    inputs = calibration_inputs(options.calibration, sized, likely, image_range_of(options), image_reading_of(options))
    feeds = inputs.feeds_with(0)
    found = {name: value.shape for name, value in feeds.items()}
    counted = inputs.axes.keys() - {spec.name for spec in specs if spec.is_setting}
    values = {name: value.tolist() for name, value in feeds.items() if name not in counted and value.dtype.kind in "iub"}
    origins = {**dict.fromkeys(found, "calibration"), **given.origins}
    path = options.calibration_path
    rows = {name: (axis, inputs.count) for name, axis in inputs.axes.items() if path is None or not path.is_dir()}
    return GivenShapes({**found, **shapes}, origins, inputs.pixels, values, rows).without_batch(inputs.axes)


def checked_shapes(given: Mapping[str, tuple[int, ...]], specs: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """The option `input_shape` by the names of the model's inputs. OptionError where it does not fit them."""
    by_name = {spec.name: spec for spec in specs}
    inputs = ", ".join(size_text(spec.name, spec.dims) for spec in specs) or "none"
    if "" in given and len(specs) != 1:
        example = size_text(specs[0].name if specs else "NAME", given[""])
        raise OptionError(
            f"`input_shape` {size_text('', given[''])} needs the name of an input, as in {example}; they are {inputs}"
        )
    found = {name or specs[0].name: shape for name, shape in given.items()}
    if len(found) < len(given):
        raise OptionError(f"`input_shape` is given twice for the input {specs[0].name!r}: drop one of the two")
    for name, shape in found.items():
        if name not in by_name:
            raise OptionError(f"`input_shape`: the model has no input {name!r}; its inputs are {inputs}")
        dims = by_name[name].dims
        if len(shape) != len(dims):
            raise OptionError(
                f"`input_shape` {size_text(name, shape)} has {len(shape)} sizes, needed are {len(dims)}: {size_text(name, dims)}"
            )
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            if isinstance(dim, int) and dim != size:
                fixed = f"the model fixes axis {axis} to {dim}"
                raise OptionError(f"`input_shape` {size_text(name, shape)} does not fit {size_text(name, dims)}: {fixed}")
    return found


def first_runs_of_pair(
    reference: Path, candidate: Path, protos: Sequence[ModelProto], options: InputOptions, max_memory: int | None
) -> tuple[FirstRuns, FirstRuns]:
    """The first runs of two models on inputs of the same sizes: those of the reference. Errors are those of `given_shapes`.

    protos: what `read_checked` read from the two files.
    """
    given = given_shapes(reference, options, protos[0])
    first = first_observations(reference, protos[0], label=str(reference), max_memory=max_memory, given=given)
    shapes = {each.name: each.shape for each in first.inputs}
    given = GivenShapes(shapes, dict.fromkeys(shapes, "reference"), values={**first.call.settings, **given.values})
    return first, first_observations(candidate, protos[1], label=str(candidate), max_memory=max_memory, given=given)
