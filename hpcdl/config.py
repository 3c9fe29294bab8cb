"""YAML to values that know their line: every complaint about a file says file:line. Also the precedence of options.

An option's value comes from the first of: command line, environment (HPCDL_*, then the SBATCH_* that sbatch itself honours),
hpcdl.yaml in the working directory, ~/.config/hpcdl/config.yaml, the cluster profile's `defaults`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hpcdl.errors import UsageError, suggestion

TAG = "tag:yaml.org,2002:"

SBATCH_VARIABLES = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_GPUS_PER_NODE": "gpus_per_node",
    "SBATCH_SIGNAL": "signal",
}
"""What sbatch reads from the environment; hpcdl resolves them itself, because sbatch would put them above the script."""

SBATCH_SWITCHES = {"SBATCH_NO_REQUEUE": ("requeue", False), "SBATCH_REQUEUE": ("requeue", True)}
"""Those that count by being set, whatever their value; with both, sbatch takes the later of this order."""

MISTAKEN_VARIABLES = {"SBATCH_TIME": "SBATCH_TIMELIMIT", "SBATCH_MEM": "SBATCH_MEM_PER_NODE"}
"""Names that look right and that Slurm ignores silently, with the real ones."""


@dataclass(frozen=True)
class Document:
    """A YAML file's mapping, with the line of each dotted key."""

    path: Path
    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """'file:line' of a dotted key; of the nearest one above it when a merge (`<<`) brought the key in."""
        while key not in self.lines and "." in key:
            key = key.rpartition(".")[0]
        return f"{self.path}:{self.lines.get(key, 1)}"

    def section(self, key: str) -> dict[str, Any]:
        """The mapping below a top-level key, empty when absent.

        Raises:
            UsageError: there is something else below it.
        """
        return self._mapping(key, self.values.get(key))

    def sections(self, key: str) -> dict[str, dict[str, Any]]:
        """The mappings below a top-level key, by their names.

        Raises:
            UsageError: there is something else below it or below one of the names.
        """
        return {name: self._mapping(f"{key}.{name}", body) for name, body in self.section(key).items()}

    def only(self, allowed: Mapping[str, str] | set[str]) -> None:
        """Refuse a top-level key that is not among the allowed ones."""
        for key in self.values:
            if key not in allowed:
                listed = ", ".join(sorted(allowed))
                raise UsageError(
                    f"{self.where(key)}: unknown key {key!r}; allowed: {listed}.{suggestion(key, allowed)}"
                )

    def _mapping(self, key: str, body: Any) -> dict[str, Any]:
        if body is None:
            return {}
        if not isinstance(body, dict):
            raise UsageError(f"{self.where(key)}: {key!r} must hold a mapping of names to values")
        return body


def load_yaml(path: Path) -> Document:
    """Read a YAML mapping safely: no tag can run code. All keys are text.

    Raises:
        UsageError: unreadable, not YAML, a Python tag, a duplicate key, an alias in itself, or no mapping at the top.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not readable: {error}") from None
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(f"{path}:{line}: not usable YAML: holds the character #x{error.character:04x}") from None
    try:
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        if node is None:
            return Document(path, {}, {})
        _note_lines(path, node, "", lines)
        values = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{at}: not usable YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not usable YAML: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: not usable YAML: nested too deeply") from None
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
        places: the words for one key, such as `time`, `settings.epochs` or `architectures.unet.width`.
    """

    where: str
    values: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    architectures: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def placed(self, values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, Any]]]:
        """Some of the layer's values as `settings.resolve` takes them, each with its own place.

        Args:
            prefix: what stands before their names in the file, such as `settings.`.
        """
        return [
            (self.places.get(prefix + name) or self.where.replace("{name}", name), {name: value})
            for name, value in values.items()
        ]


def user_layers(known: set[str]) -> list[Layer]:
    """Environment, project file and user file, highest precedence first.

    Args:
        known: the options that may stand in a file; `settings:` and `architectures:` may stand there too.

    Raises:
        UsageError: an unknown option in a file.
    """
    own = _environment_layer("HPCDL_*", {name: f"HPCDL_{name.upper()}" for name in sorted(known)})
    slurms = _environment_layer("SBATCH_*", {option: name for name, option in SBATCH_VARIABLES.items()})
    for name, (option, value) in SBATCH_SWITCHES.items():
        if os.environ.get(name):
            slurms.values[option] = value
            slurms.places[option] = f"environment variable {name}"
    layers = [own, slurms]
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for path in (Path.cwd() / "hpcdl.yaml", home / "hpcdl" / "config.yaml"):
        if path.is_file():
            document = load_yaml(path)
            document.only(known | {"settings", "architectures"})
            values = {key: value for key, value in document.values.items() if key in known}
            settings = flatten(document.section("settings"))
            architectures = {name: flatten(body) for name, body in document.sections("architectures").items()}
            places = {key: document.where(key) for key in [*document.lines, *flatten(document.values)]}
            layers.append(Layer(f"{path}, {{name}}", values, settings, architectures, places))
    return layers


def environment_warnings() -> list[str]:
    """A line for each SBATCH_* variable that has no effect: Slurm does not know it, or hpcdl does not pass it on."""
    lines = []
    for name in sorted(name for name, value in os.environ.items() if name.startswith("SBATCH_") and value):
        if name in MISTAKEN_VARIABLES:
            real = MISTAKEN_VARIABLES[name]
            lines.append(f"{name} is set, but Slurm and hpcdl ignore it; the real name is {real}")
        elif name not in SBATCH_VARIABLES and name not in SBATCH_SWITCHES:
            lines.append(
                f"{name} is set; hpcdl does not pass it on; use --sbatch with the flag of sbatch that it stands for"
            )
    return lines


def _environment_layer(kind: str, variables: Mapping[str, str]) -> Layer:
    """The options that are set in the environment; `variables` has the variable of each option."""
    found = {option: name for option, name in variables.items() if os.environ.get(name)}
    return Layer(
        f"environment variable {kind} for {{name}}",
        {option: os.environ[name] for option, name in found.items()},
        places={option: f"environment variable {name}" for option, name in found.items()},
    )


class _Loader(yaml.SafeLoader):
    """SafeLoader without YAML 1.1's surprises: 12:00:00, 2020-01-02, 007 and `no` stay text, as do all keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        node = super().compose_node(parent, index)
        if node is None:
            return None
        if node.end_mark is None:  # An alias to a node that is still being read.
            raise yaml.composer.ComposerError(None, None, "an alias that holds itself", node.start_mark)
        if isinstance(parent, yaml.MappingNode) and index is None and node.tag != TAG + "merge":
            if not isinstance(node, yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, "a key must be text", node.start_mark)
            return yaml.ScalarNode(TAG + "str", node.value, node.start_mark, node.end_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # Of a value that is not what its tag says.
            problem = f"{getattr(node, 'value', '')!r} is no {node.tag.removeprefix(TAG)}: {error}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (TAG + "null", TAG + "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(TAG + "bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(TAG + "int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    TAG + "float",
    re.compile(r"([-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+0123456789."),
)


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
