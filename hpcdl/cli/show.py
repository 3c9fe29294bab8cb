"""Show an architecture's settings: what --set takes, with types, defaults and meaning.

Example: hpcdl show unet
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from hpcdl.architecture import load_architecture
from hpcdl.cli._options import Json, print_json
from hpcdl.config import flatten
from hpcdl.settings import REQUIRED, Setting


def command() -> Callable[..., None]:
    """The command."""
    return show


def show(
    architecture: Annotated[str, typer.Argument(help="A name of configs/architectures/ or a .yaml file.")],
    json_: Json = False,
) -> None:
    """Read the files, print."""
    chosen = load_architecture(architecture)
    known = chosen.known_settings()
    own = flatten(chosen.document.section("settings"))
    rows = [_row(setting, own.get(name, setting.default)) for name, setting in known.items()]
    about = str(chosen.document.values.get("description", ""))
    if json_:
        files = {"config": str(chosen.document.path), "job": str(chosen.job_file)}
        print_json({"architecture": chosen.name, "description": about, **files, "settings": rows})
        return
    print(f"{chosen.name}: {about}\n  {chosen.document.path}\n  {chosen.job_file}\n")
    wide = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:{wide}}  {row['default']!s:>8}  {row['allowed']}\n{'':{wide}}            {row['help']}")
    print(f"\nhpcdl submit {chosen.name} --data DIR --set {rows[0]['name']}={rows[0]['default']}")


def _row(setting: Setting, value: Any) -> dict[str, Any]:
    default = None if value is REQUIRED else value
    return {"name": setting.name, "default": default, "allowed": setting.describe(), "help": setting.help}
