"""YAML to values that know their line: every complaint about a file says file:line. Also the precedence of options.

An option's value comes from the first of: command line, environment (HPCDL_*, then the SBATCH_* that sbatch itself honours),
hpcdl.yaml in the working directory, ~/.config/hpcdl/config.yaml, the cluster profile's `defaults`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hpcdl.errors import UsageError, suggestion

SBATCH_VARIABLES = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_MEM_PER_NODE": "mem",
}
"""What sbatch reads from the environment; hpcdl resolves them itself, because sbatch would put them above the script."""

MISTAKEN_VARIABLES = {"SBATCH_TIME": "SBATCH_TIMELIMIT", "SBATCH_MEM": "SBATCH_MEM_PER_NODE"}
"""Names that look right and that Slurm ignores silently, with the real ones."""


@dataclass(frozen=True)
class Document:
    """A YAML file's mapping, with the line of each dotted key."""

    path: Path
    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """'file:line' of a dotted key."""
        return f"{self.path}:{self.lines.get(key, 1)}"

    def section(self, key: str) -> dict[str, Any]:
        """The mapping below a top-level key, empty when absent.

        Raises:
            UsageError: there is something else below it.
        """
        body = self.values.get(key) or {}
        if not isinstance(body, dict):
            raise UsageError(f"{self.where(key)}: {key!r} must hold a mapping of names to values")
        return body

    def only(self, allowed: Mapping[str, str] | set[str]) -> None:
        """Refuse a top-level key that is not among the allowed ones."""
        for key in self.values:
            if key not in allowed:
                listed = ", ".join(sorted(allowed))
                raise UsageError(
                    f"{self.where(key)}: unknown key {key!r}; allowed: {listed}.{suggestion(key, allowed)}"
                )


def load_yaml(path: Path) -> Document:
    """Read a YAML mapping safely: no tag can run code.

    Raises:
        UsageError: unreadable, not YAML, a Python tag, a duplicate key, or not a mapping at the top.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not readable: {error}") from None
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        raise UsageError(f"{path}: not usable YAML: holds the character #x{error.character:04x}") from None
    try:
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        if node is None:
            return Document(path, {}, {})
        _note_lines(path, node, "", lines)
        values = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not usable YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not usable YAML: {error}") from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise UsageError(f"{path}:1: expected a mapping of names to values, found a {type(values).__name__}")
    return Document(path, values, lines)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names: {"optimizer": {"lr": 1}} is {"optimizer.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@dataclass(frozen=True)
class Layer:
    """One source of option values, with the words that name it in errors ({name} is replaced by the option).

    Attributes:
        settings: what `--set` takes, for every architecture, by dotted name.
        architectures: the same for some architectures, by their name.
    """

    where: str
    values: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    architectures: dict[str, dict[str, Any]] = field(default_factory=dict)


def user_layers(known: set[str]) -> list[Layer]:
    """Environment, project file and user file, highest precedence first.

    Args:
        known: the options that may stand in a file; `settings:` and `architectures:` may stand there too.

    Raises:
        UsageError: an unknown option in a file.
    """
    environment = {
        name: os.environ[f"HPCDL_{name.upper()}"] for name in sorted(known) if os.environ.get(f"HPCDL_{name.upper()}")
    }
    layers = [
        Layer("environment variable HPCDL_{name}", environment),
        Layer(
            "environment variable SBATCH_* for {name}",
            {option: os.environ[name] for name, option in SBATCH_VARIABLES.items() if os.environ.get(name)},
        ),
    ]
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for path in (Path.cwd() / "hpcdl.yaml", home / "hpcdl" / "config.yaml"):
        if path.is_file():
            document = load_yaml(path)
            document.only(known | {"settings", "architectures"})
            values = {key: value for key, value in document.values.items() if key in known}
            own = {str(name): flatten(body or {}) for name, body in document.section("architectures").items()}
            layers.append(Layer(f"{path}, {{name}}", values, flatten(document.section("settings")), own))
    return layers


def environment_warnings() -> list[str]:
    """A line for each environment variable that looks like one of Slurm's and that Slurm ignores."""
    return [
        f"{wrong} is set, but Slurm and hpcdl ignore it; the real name is {right}"
        for wrong, right in MISTAKEN_VARIABLES.items()
        if os.environ.get(wrong)
    ]


def _note_lines(path: Path, node: yaml.Node, prefix: str, lines: dict[str, int]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        line = key.start_mark.line + 1
        if name in lines:
            raise UsageError(f"{path}:{line}: the key {name!r} stands twice (first on line {lines[name]})")
        lines[name] = line
        _note_lines(path, value, name + ".", lines)
