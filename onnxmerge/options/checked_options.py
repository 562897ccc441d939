"""Options that check themselves."""

from dataclasses import fields
from typing import ClassVar

from onnxmerge.errors import OptionError
from onnxmerge.options.checks import CHECKS, READ_FROM_TEXT, SINGLE_VALUES, as_text, input_shapes


class CheckedOptions:
    """Options whose values are read from text where they are given as text, then checked against `CHECKS`."""

    part: ClassVar[str]
    """The keyword by which a verb takes a whole object of the class."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # all subclasses are dataclasses
            value = getattr(self, field.name)
            if field.name == "input_shape":
                value = input_shapes(value)
            elif isinstance(value, str) and field.name in READ_FROM_TEXT:
                value = READ_FROM_TEXT[field.name](value)
            if isinstance(value, SINGLE_VALUES.get(field.name, ())):
                value = (value,)
            object.__setattr__(self, field.name, value)
            check = CHECKS.get(field.name)
            if check is not None and value is not None and not check.accepts(value):
                raise OptionError(f"`{field.name}` must be {check.needed}, not {as_text(value)}")
