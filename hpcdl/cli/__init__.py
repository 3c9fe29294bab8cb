"""The `hpcdl` command: one file a command in this folder, found by its name and imported only when it is called.

A command file's module docstring is its help: the first line in the list, all of it under `--help`. It offers
`command()`, which gives the function that Typer turns into the command.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hpcdl import __version__
from hpcdl.errors import HpcdlError
from hpcdl.settings import read_help

FOLDER = Path(__file__).parent
MANY_VALUES = ("--images", "--quality")
"""Options that take everything up to the next option, so that an unquoted glob, which the shell expands, works."""


class Commands(TyperGroup):
    """The commands of this folder, imported one at a time."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands."""
        return [path.stem for path in sorted(FOLDER.glob("[a-z]*.py"))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command itself, or None when there is no such file."""
        path = FOLDER / f"{cmd_name}.py"
        if cmd_name not in self.list_commands(ctx):
            return None
        wanted = sys.argv[1:2] == [cmd_name] or cmd_name in sys.argv
        help_text = read_help(path)
        if not wanted:  # only its line in the list is needed
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command(cmd_name, help=help_text)(lambda: None)
            return typer.main.get_command(app)
        module = importlib.import_module(f"hpcdl.cli.{cmd_name}")
        made = module.command()
        app = typer.Typer(add_completion=False, rich_markup_mode=None, cls=TyperGroup)
        if isinstance(made, typer.Typer):
            made.info.help = help_text
            return typer.main.get_command(made)
        app.command(cmd_name, help=help_text)(made)
        return typer.main.get_command(app)


app = typer.Typer(
    cls=Commands,
    name="hpcdl",
    help=__doc__,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hpcdl {__version__}")
        raise typer.Exit


@app.callback(
    help="Deep learning on a supercomputer, without writing a Slurm script.\n\n"
    "The four steps: `hpcdl preprocess landcover` makes a data set, `hpcdl submit unet` trains on it, `hpcdl status` "
    "watches, `hpcdl predict` draws the map.\n\nExample: hpcdl submit unet --data data/zion --nodes 4 --dry-run"
)
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["HPCDL_DEBUG"] = "1"


def spread(arguments: list[str]) -> list[str]:
    """`--images a b --out c` as `--images a --images b --out c`."""
    result: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            option = argument if argument in MANY_VALUES else ""
            result.append(argument)
        elif option and result[-1] != option:
            result += [option, argument]
        else:
            result.append(argument)
    return result


def main() -> None:
    """Entry point: run a command; an hpcdl error is one line on stderr and its class's exit code."""
    try:
        app(args=spread(sys.argv[1:]))
    except HpcdlError as error:
        if os.environ.get("HPCDL_DEBUG"):
            raise
        print(f"hpcdl: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("hpcdl: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; keep Python from complaining again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
