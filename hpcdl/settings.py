"""The settings a file accepts, read from its frozen dataclass with `ast`: nothing is imported, so it takes milliseconds.

A settings class has fields of int, float, str, bool, tuple[T, ...], Literal[…], `T | None`, Annotated[T, Range(low, high)]
or another settings class of the same file (its fields are then dotted: `optimizer.lr`), literal defaults, and a docstring
below each field, which is its help.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdl.errors import UsageError, suggestion

REQUIRED = object()
"""The default of a field that has none."""

BASE_TYPES = {"int": int, "float": float, "str": str, "bool": bool}
TRUE, FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclass(frozen=True)
class Setting:
    """One field: `type_name` is int, float, str or bool; `many` a tuple of them; `choices` and bounds limit each value."""

    name: str
    type_name: str
    default: Any
    help: str = ""
    many: bool = False
    optional: bool = False
    choices: tuple[Any, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    def describe(self) -> str:
        """What is allowed, in a few words: 'int from 1 to 8', 'one of adamw, sgd', 'float, several allowed'."""
        if self.choices:
            text = "one of " + ", ".join(map(str, self.choices))
        else:
            text = self.type_name
            if math.isfinite(self.low) and math.isfinite(self.high):
                text += f" from {self.low:g} to {self.high:g}"
            elif math.isfinite(self.low):
                text += f" of at least {self.low:g}"
        return text + (", several separated by commas" if self.many else "") + (", or none" if self.optional else "")

    def parse(self, text: str) -> Any:
        """The value that a command line's text stands for.

        Raises:
            ValueError: the text is not of this setting's type or range; the message says what is allowed.
        """
        if self.optional and text.lower() in {"none", "null", ""}:
            return None
        if self.many:
            return tuple(self._one(part.strip()) for part in text.strip("[]()").split(",") if part.strip())
        return self._one(text)

    def accept(self, value: Any) -> Any:
        """The value that a YAML file's scalar or list stands for; raises ValueError as `parse` does."""
        if value is None and self.optional:
            return None
        if self.many:
            items = value if isinstance(value, list | tuple) else [value]
            return tuple(self._one(str(item)) for item in items)
        if value is None or isinstance(value, list | dict | tuple):
            raise ValueError(f"expected {self.describe()}")
        return self._one(str(value))

    def _one(self, text: str) -> Any:
        try:
            if self.type_name == "bool":
                if text.lower() not in TRUE | FALSE:
                    raise ValueError
                value: Any = text.lower() in TRUE
            else:
                value = BASE_TYPES[self.type_name](text)
        except ValueError:
            raise ValueError(f"{text!r} is not allowed; expected {self.describe()}") from None
        if self.choices and value not in self.choices:
            raise ValueError(
                f"{text!r} is not allowed; expected {self.describe()}.{suggestion(text, map(str, self.choices))}"
            )
        if isinstance(value, int | float) and not self.low <= value <= self.high:  # NaN fails this as well
            raise ValueError(f"{text} is out of range; expected {self.describe()}")
        return value


def read_settings(path: Path, class_name: str = "Settings") -> dict[str, Setting]:
    """The settings of the class `class_name` in a Python file, by dotted name, in order.

    Raises:
        UsageError: the file does not parse, has no such class, or a field is not of the forms above.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise UsageError(f"{path}:{error.lineno}: Python syntax error: {error.msg}") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if class_name not in classes:
        raise UsageError(f"{path}: has no class {class_name} (a frozen dataclass with the settings it accepts)")
    return dict(_fields(path, classes, classes[class_name], prefix=""))


def read_help(path: Path) -> str:
    """A Python file's module docstring, or an empty string."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))) or ""


def read_needs(path: Path) -> tuple[str, ...]:
    """The constant NEEDS of a job file: the fields of a data set that it trains on.

    Raises:
        UsageError: it has none.
    """
    for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NEEDS":
            return tuple(ast.literal_eval(node.value))
    raise UsageError(f"{path}: has no constant NEEDS, such as NEEDS = ('image', 'label')")


def read_files(path: Path) -> tuple[str, ...]:
    """The constant FILES of an input kind: the settings that name files or globs; empty when it has none."""
    for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FILES":
            return tuple(ast.literal_eval(node.value))
    return ()


def build(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """An instance of a settings class from dotted names and values; names that the class does not have are left alone."""
    arguments: dict[str, Any] = {}
    for name, field in cls.__dataclass_fields__.items():
        inner = {key.removeprefix(name + "."): value for key, value in values.items() if key.startswith(name + ".")}
        if inner:
            nested = type(field.default_factory()) if callable(field.default_factory) else type(field.default)
            arguments[name] = build(nested, inner)
        elif name in values:
            value = values[name]
            arguments[name] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)


def resolve(
    known: Mapping[str, Setting], layers: Iterable[tuple[str, Mapping[str, Any]]], accepted_by: str
) -> dict[str, Any]:
    """Values of all settings: defaults, overlaid by each layer in turn.

    Args:
        known: the settings by dotted name.
        layers: pairs of a label that says where a layer's names come from (with {name} replaced), and dotted name to
            value; text is parsed, anything else is a YAML value.
        accepted_by: the file to name in errors.

    Raises:
        UsageError: an unknown name (with the nearest known one), a value that does not fit, or a required one missing.
    """
    values = {name: setting.default for name, setting in known.items()}
    for where, layer in layers:
        for name, value in layer.items():
            place = where.replace("{name}", name)  # Not format(): a folder's name may hold braces.
            if name not in known:
                top = ", ".join(known)
                raise UsageError(
                    f"{place}: unknown setting {name!r}. {accepted_by} accepts: {top}.{suggestion(name, known)}"
                )
            try:
                values[name] = known[name].parse(value) if isinstance(value, str) else known[name].accept(value)
            except ValueError as error:
                raise UsageError(f"{place}: setting {name!r}: {error}") from None
    missing = [name for name, value in values.items() if value is REQUIRED]
    if missing:
        raise UsageError(f"{accepted_by}: needs a value for {', '.join(missing)}; give it with --set {missing[0]}=…")
    return values


def _fields(
    path: Path, classes: Mapping[str, ast.ClassDef], node: ast.ClassDef, prefix: str
) -> Iterable[tuple[str, Setting]]:
    for position, item in enumerate(node.body):
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        name = prefix + item.target.id
        where = f"{path}:{item.lineno}"
        if isinstance(item.annotation, ast.Name) and item.annotation.id in classes:
            yield from _fields(path, classes, classes[item.annotation.id], prefix=name + ".")
            continue
        following = node.body[position + 1] if position + 1 < len(node.body) else None
        text = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = " ".join(str(following.value.value).split())
        try:
            default = REQUIRED if item.value is None else ast.literal_eval(item.value)
        except ValueError:
            raise UsageError(f"{where}: the default of {name!r} must be a literal value") from None
        yield name, Setting(name=name, default=default, help=text, **_type(where, item.annotation))


def _type(where: str, node: ast.expr) -> dict[str, Any]:
    """The Setting fields that an annotation stands for."""
    if isinstance(node, ast.Name) and node.id in BASE_TYPES:
        return {"type_name": node.id}
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and ast.unparse(node.right) == "None":
        return {**_type(where, node.left), "optional": True}
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "tuple":
            return {**_type(where, inner[0]), "many": True}
        if node.value.id == "Literal":
            choices = tuple(ast.literal_eval(choice) for choice in inner)
            return {"type_name": type(choices[0]).__name__, "choices": choices}
        if node.value.id == "Annotated" and isinstance(inner[1], ast.Call):
            bounds = [float(ast.literal_eval(argument)) for argument in inner[1].args]
            return {**_type(where, inner[0]), "low": bounds[0], "high": bounds[1] if len(bounds) > 1 else math.inf}
    raise UsageError(f"{where}: a setting cannot be of type {ast.unparse(node)!r}; see docs/add-architecture.md")
