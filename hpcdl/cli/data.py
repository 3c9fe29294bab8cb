"""Look after data sets: check one's digests, the distance between its splits and the classes of each.

Example: hpcdl data check data/zion
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcdl.cli._options import Json
from hpcdl.cli._work import run_here
from hpcdl.shards.manifest import load_manifest


def command() -> typer.Typer:
    """The commands."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    app.command("check")(check)
    # A callback, so that a single command is a subcommand all the same.
    app.callback()(lambda: None)
    return app


def check(
    data: Annotated[str, typer.Argument(help="Folder of the data set.", metavar="DIR")],
    digests: Annotated[
        bool, typer.Option("--digests/--no-digests", help="Read every byte, or sizes and numbers of samples alone.")
    ] = True,
    picture: Annotated[
        str | None, typer.Option("--picture", help="Where to draw the splits on the map.  [default: DIR/splits.png]")
    ] = None,
    json_: Json = False,
) -> None:
    """Check a data set: shards and their digests, no leak between splits, classes of each split; draws the splits.

    Example: hpcdl data check data/zion --json
    """
    folder = Path(data).expanduser()
    load_manifest(folder)
    where = None if picture is None else str(Path(picture).expanduser())
    run_here("check", {"data": str(folder), "digests": digests, "picture": where, "json": json_})
