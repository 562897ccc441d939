"""Writes docs/options.md from the commands: `python docs/write_options.py`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import click

from onnxmerge.cli.app import cli
from onnxmerge.cli.command import OUTPUT_SECTION
from onnxmerge.cli.commands import COMMANDS

TARGET = Path(__file__).parent / "options.md"
HEAD = """# Options by purpose

Every option of every command, in the words of `onnxmerge COMMAND --help` (written by `docs/write_options.py`). In Python an
option is a keyword, `round_to=8` for `--round-to 8`.

| command | what it does |
|---|---|
"""
TABLE = "| option | commands | what it says |\n|---|---|---|"


def options_page() -> str:
    """The page as text."""
    commands = (f"| {_usage(command)} | {_cell(command.get_short_help_str(limit=200))} |" for command in COMMANDS)
    return HEAD + "\n".join((*commands, *_sections(), ""))


def _sections() -> Iterator[str]:
    """A table for each section of --help; what is the same in several commands is one row, in the first of its sections."""
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    section_of: dict[tuple[str, str], str] = {}
    for command in (*sorted(COMMANDS, key=lambda command: command.name != "compress"), cli):
        context = click.Context(command)
        section = "Before the command" if command is cli else OUTPUT_SECTION
        for option in command.params:
            record = option.get_help_record(context)
            if isinstance(option, click.Option) and record is not None:
                rows[record].append("`onnxmerge`" if command is cli else f"`{command.name}`")
                section_of.setdefault(record, getattr(option, "section", section))
    for title in dict.fromkeys(section_of.values()):
        yield from ("", f"## {title}", "", TABLE)
        for record, commands in rows.items():
            if section_of[record] == title:
                named = "all" if len(commands) == len(COMMANDS) else ", ".join(commands)
                yield f"| {_option(record[0])} | {named} | {_cell(record[1])} |"


def _usage(command: click.Command) -> str:
    arguments = (argument.human_readable_name for argument in command.params if isinstance(argument, click.Argument))
    return f"`onnxmerge {' '.join([str(command.name), *arguments])}`"


def _option(text: str) -> str:
    """'--method [auto|prune]' -> '`--method` auto, prune': a bar would end the cell, in some dialects within a code span too."""
    name, _, choices = text.partition(" [")
    return f"`{name}` {choices[:-1].replace('|', ', ')}" if "|" in choices else f"`{text}`"


def _cell(text: str) -> str:
    """`<` would begin a tag."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(options_page(), encoding="utf-8")
    print(f"wrote {TARGET}")
