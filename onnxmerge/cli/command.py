"""A command with its options in sections of --help, which a file may give too."""

from typing import Any

import click

from onnxmerge.cli.configuration import contradicting, taken, without_effect
from onnxmerge.errors import InputError, OptionError, UnusedOptionError

OUTPUT_SECTION, CUDA_SECTION = "Output", "CUDA"


class Command(click.Command):
    """A command whose --help has its options in sections, and examples below them."""

    def __init__(self, *arguments: Any, examples: tuple[str, ...] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what was typed, to be read again without some options of a file."""
        ctx.meta[__name__] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """What is typed puts aside what a file says against it, and a file may hold options that have no effect.

        Other refusals name the options of the file, a likely reason.
        """
        try:
            return super().invoke(ctx)
        except (InputError, OptionError) as error:
            unused = without_effect(ctx, error.option) if isinstance(error, UnusedOptionError) else []
            if aside := contradicting(ctx, str(error)) or unused:
                if ctx.params["verbose"]:
                    why = "without effect here" if aside is unused else "for what was typed"
                    click.echo(f"onnxmerge: put aside {why}: {taken(ctx, aside)}", err=True)
                kept = {name: value for name, value in (ctx.default_map or {}).items() if name not in aside}
                with self.make_context(ctx.info_name, ctx.meta[__name__], ctx.parent, default_map=kept) as again:
                    return self.invoke(again)
            if told := taken(ctx):
                raise type(error)(f"{error} ({told}; `onnxmerge --no-config` ignores that file)") from error
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options of each section, those of CUDA last."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None and isinstance(option, click.Option):
                rows.setdefault(getattr(option, "section", OUTPUT_SECTION), []).append(record)
        for title in sorted(rows, key=lambda title: title == CUDA_SECTION):
            with formatter.section(title):
                formatter.write_dl(rows[title])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples."""
        with formatter.section("Examples"):
            formatter.write("".join(f"  onnxmerge {example}\n" for example in self.examples))
