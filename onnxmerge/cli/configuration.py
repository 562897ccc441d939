"""Defaults of the command line from `[tool.onnxmerge]` of a pyproject.toml in the working folder or the nearest above it.

    [tool.onnxmerge]            # for every command that has the option
    mean = [0.485, 0.456, 0.406]
    fit = "letterbox"

    [tool.onnxmerge.compress]   # for one command
    bench = false

A key is the name of an option without its dashes; a path is relative to the folder of the file.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.types import FuncParamType

from onnxmerge.options.checks import as_text

FILE_NAME, TABLE = "pyproject.toml", "tool.onnxmerge"


def defaults(commands: Mapping[str, click.Command]) -> tuple[dict[str, dict[str, Any]], Path | None]:
    """The defaults that the file holds, by command and parameter as click's `default_map` has them, and the file.

    Raises
    ------
    click.UsageError
        Where the file cannot be read, or holds a key or a value that is none of an option.
    """
    file, table = _table()
    found: dict[str, dict[str, Any]] = {name: {} for name in commands}
    if file is None:
        return found, None
    own = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    for key, value in table.items():
        if key in own:
            continue
        takers = [name for name, command in commands.items() if key in _options(command)]
        if not takers:
            raise click.UsageError(f"{file}: [{TABLE}] has the key {key!r}, which is no option of any command")
        for name in takers:
            found[name].update(_default(commands[name], key, value, file, TABLE))
    for name, settings in own.items():
        if name not in commands:
            raise click.UsageError(f"{file}: [{TABLE}.{name}] is for no command; they are {', '.join(commands)}")
        for key, value in settings.items():
            if key not in _options(commands[name]):
                raise click.UsageError(f"{file}: [{TABLE}.{name}] has the key {key!r}, which is no option of {name}")
            found[name].update(_default(commands[name], key, value, file, f"{TABLE}.{name}"))
    return found, file


def contradicting(context: click.Context, refused: str) -> list[str]:
    """Options of the file that speak against what was typed.

    Parameters
    ----------
    context : click.Context
        Of a command that refuses its options.
    refused : str
        The message, which has those that cannot be given together in backticks.

    Returns
    -------
    list of str
        Names; empty where the message names no option that was typed.
    """
    named = [name for name in re.findall(r"`([a-z0-9_]+)(?:=\w+)?`", refused) if name in context.params]
    typed = any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in named)
    return list(dict.fromkeys(name for name in named if typed and _is_of_file(context, name)))


def without_effect(context: click.Context, option: str) -> list[str]:
    """An option that was found to have no effect, where the file holds it, for all commands perhaps: there it is no mistake."""
    return [option] if option in context.params and _is_of_file(context, option) else []


def _is_of_file(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.DEFAULT_MAP


def taken(context: click.Context, names: Iterable[str] | None = None) -> str:
    """The options, or some of them, that a command took from the file, `fit=crop from /a/pyproject.toml`; empty for none."""
    names = names if names is not None else [name for name in context.params if _is_of_file(context, name)]
    told = [f"{name}={_as_typed(context.params[name])}" for name in names]
    return f"{', '.join(told)} from {context.meta[__name__]}" if told else ""


def _as_typed(value: Any) -> str:
    return str(value) if isinstance(value, str | Path | bool) else as_text(value)


def _table() -> tuple[Path | None, Mapping[str, Any]]:
    """The nearest file with the table, and the table; nothing is imported for files that do not name this program."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return None, {}
    for folder in (here, *here.parents):
        file = folder / FILE_NAME
        if not file.is_file():
            continue
        try:
            content = file.read_bytes()
        except OSError as error:
            raise click.UsageError(f"{file} cannot be read: {error.strerror} (--no-config ignores it)") from error
        if b"onnxmerge" not in content:
            continue
        import tomllib  # noqa: PLC0415  --help does not wait for it where no file is

        try:
            table = tomllib.loads(content.decode()).get("tool", {}).get("onnxmerge")
        except (ValueError, AttributeError) as error:
            raise click.UsageError(f"{file} is no valid TOML file: {error} (--no-config ignores it)") from error
        if table is not None and not isinstance(table, Mapping):
            raise click.UsageError(f"{file}: [{TABLE}] must be a table, not {table!r}")
        if table is not None:
            return file, table
    return None, {}


def _options(command: click.Command) -> dict[str, click.Option]:
    """The options by their keys, those of `--bench/--no-bench` under both."""
    options = [each for each in command.params if isinstance(each, click.Option)]
    return {name.removeprefix("--"): each for each in options for name in (*each.opts, *each.secondary_opts) if name[:2] == "--"}


def _default(command: click.Command, key: str, value: Any, file: Path, table: str) -> dict[str, Any]:
    """The parameter's name with its value as the command line would have it."""
    option = _options(command)[key]
    assert option.name is not None
    try:
        read = _read(option, key, value, file.parent)
        option.type_cast_value(click.Context(command), read)
    except click.BadParameter as error:
        raise click.UsageError(f"{file}: [{table}] {key}: {error.message}") from None
    return {option.name: read}


def _read(option: click.Option, key: str, value: Any, folder: Path) -> Any:
    """A value of TOML as click takes it from a command line. click.BadParameter for one of another type."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.BadParameter(f"true or false is needed, not {value!r}")
        is_opposite = f"--{key}" in option.secondary_opts or option.flag_value is False
        return value != is_opposite
    several = value if isinstance(value, list) else [value]
    if any(isinstance(each, bool) or not isinstance(each, str | int | float) for each in several):
        raise click.BadParameter(f"{value!r} is not what it takes")
    if isinstance(option.type, click.Path):
        several = [folder / str(each) for each in several]
    if option.multiple or option.nargs > 1:
        return several
    if isinstance(option.type, FuncParamType):
        return ",".join(map(str, several))
    if len(several) != 1:
        raise click.BadParameter("one value is needed, not a list")
    is_whole, is_number = (isinstance(option.type, kind) for kind in (click.types.IntParamType, click.types.FloatParamType))
    if (is_whole and not isinstance(value, int)) or (is_number and isinstance(value, str)):
        raise click.BadParameter(f"a {'whole ' * is_whole}number is needed, not {value!r}")
    return several[0]
