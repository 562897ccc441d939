"""`onnxmerge`: the group of commands, and the exit code of every way in which a run can end."""

import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from onnxmerge import __version__
from onnxmerge.cli import configuration
from onnxmerge.cli.commands import COMMANDS
from onnxmerge.errors import OnnxMergeError, VerificationError

BAD_USAGE = OnnxMergeError.exit_code
OWN_BUG = 70
"""EX_SOFTWARE of sysexits.h, so that a bug is taken neither for bad input nor for a failed verification."""


class _InOrder(click.Group):
    """Commands listed in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they were added, not by the alphabet."""
        return list(self.commands)


@click.group(
    cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, invoke_without_command=True
)
@click.version_option(__version__)
@click.option(
    "--no-config", is_flag=True, envvar="ONNXMERGE_NO_CONFIG", help="No defaults from [tool.onnxmerge] of a pyproject.toml."
)
@click.pass_context
def cli(context: click.Context, no_config: bool) -> None:
    """Make an ONNX model smaller and faster by removing channels: without training code, labels or fine-tuning."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(BAD_USAGE)
    if not no_config and not {"-h", "--help"} & set(context.obj):
        context.default_map, context.meta[configuration.__name__] = configuration.defaults(cli.commands)


for _command in COMMANDS:
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; what a user can act on is one line on stderr and an exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(cli(arguments, standalone_mode=False, obj=arguments))
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "onnxmerge"
        _fail(BAD_USAGE, f"{error.format_message().rstrip('.')} (see {command} --help)")
    except click.ClickException as error:
        _fail(BAD_USAGE, error.format_message())
    except OnnxMergeError as error:
        _fail(error.exit_code, f"{'verification failed: ' if isinstance(error, VerificationError) else ''}{error}")
    except MemoryError as error:
        _fail(BAD_USAGE, f"there is not enough memory for this: {error or 'try smaller inputs, or fewer at once'}")
    except Exception:
        traceback.print_exc()
        sys.exit(OWN_BUG)


def _fail(code: int, message: str) -> NoReturn:
    from onnxmerge.report.wording import as_command_line, printable  # noqa: PLC0415  loads rich, which --help does not need

    click.echo(f"onnxmerge: {printable(as_command_line(message))}", err=True)
    sys.exit(code)
