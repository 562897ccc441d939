"""The keywords of the public verbs: sorted into option classes, and shown in the verbs' signatures."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from onnxmerge.options import CheckedOptions

Verb = TypeVar("Verb", bound=Callable[..., Any])


def takes(*classes: type[CheckedOptions]) -> Callable[[Verb], Verb]:
    """Decorate a verb so that its signature shows, in place of **options, what `options_of` accepts for these classes."""

    def decorate(verb: Verb) -> Verb:
        own = inspect.signature(verb)
        shown = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        keyword = inspect.Parameter.KEYWORD_ONLY
        for kind in classes:
            for field in fields(kind):  # type: ignore[arg-type]
                shown.append(inspect.Parameter(field.name, keyword, default=field.default, annotation=field.type))
            shown.append(inspect.Parameter(kind.part, keyword, default=None, annotation=f"{kind.__name__} | None"))
        verb.__signature__ = own.replace(parameters=shown)  # type: ignore[attr-defined]
        return verb

    return decorate


def options_of(keywords: Mapping[str, Any], *classes: type[CheckedOptions]) -> tuple[Any, ...]:
    """One object of each class from a verb's keywords: the names of fields, or of whole parts.

    Parameters
    ----------
    keywords : Mapping[str, Any]
        Name -> value; a field beside the whole part that it belongs to replaces that part's value.
    *classes : type
        Option classes, no two of which share a field.

    Returns
    -------
    tuple
        An object of each class, in order.

    Raises
    ------
    TypeError
        For a keyword that none of the classes has, as Python does, or for a part of another class.
    OptionError
        For a value that is not allowed.
    """
    found = []
    left = dict(keywords)
    for kind in classes:
        whole = left.pop(kind.part, None)
        if not isinstance(whole, kind | None):
            raise TypeError(f"{kind.part!r} must be an object of {kind.__name__}, not of {type(whole).__name__}")
        own = {field.name: left.pop(field.name) for field in fields(kind) if field.name in left}  # type: ignore[arg-type]
        found.append(kind(**own) if whole is None else replace(whole, **own))  # type: ignore[type-var]
    if left:
        known = sorted(field.name for kind in classes for field in fields(kind))  # type: ignore[arg-type]
        raise TypeError(f"unexpected keyword argument {min(left)!r}; known are {', '.join(known)}")
    return tuple(found)
