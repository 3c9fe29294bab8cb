"""Legends: which code of a label raster is which class, with names and colours, and which dense index it gets.

A legend is YAML; configs/legends/nlcd.yaml is the bundled one. A class may gather several codes (`from`):

    name: coarse NLCD
    classes:
      - {code: 1, name: Water, color: "#466b9f", from: [11, 12]}
      - {code: 2, name: Forest, color: "#68ab5f", from: [41, 42, 43]}
    ignore: [0, 31]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from hpcdl.catalog import find_config
from hpcdl.errors import FailedError, UsageError, suggestion

# The dense index of a pixel that no loss and no score may count.
IGNORE_INDEX = 255
# Codes above this are refused: no legend has them, and the look-up table stays small.
MAX_CODE = 65535

_CLASS_KEYS = ("code", "name", "color", "from", "only")
_LEGEND_KEYS = ("name", "classes", "ignore")


@dataclass(frozen=True)
class LegendClass:
    """One class: its own code, the raster codes it gathers (`sources`), and where it is mapped, when not everywhere."""

    code: int
    name: str
    color: tuple[int, int, int]
    sources: tuple[int, ...]
    only: str | None = None


@dataclass(frozen=True)
class Legend:
    """The classes of a label raster in the order of their dense indices, and the codes to leave out, by name."""

    path: Path
    classes: tuple[LegendClass, ...]
    ignored: Mapping[int, str]

    def select(self, counts: Mapping[int, int], raster: Path, keep_all: bool = False) -> ClassMap:
        """The classes of a data set: those that occur, in the legend's order.

        Args:
            counts: pixels of each code in the raster; negative codes (no label) are left aside.
            raster: the label raster, for messages.
            keep_all: keep the classes that do not occur, too.

        Raises:
            UsageError: a code is in no class and not ignored, or nothing but ignored codes occurs.
        """
        present = {code: number for code, number in counts.items() if code >= 0 and number > 0}
        known = {code for entry in self.classes for code in entry.sources} | set(self.ignored)
        if unknown := sorted(present.keys() - known):
            code, more = unknown[0], f"; and {len(unknown) - 1} more such codes" if len(unknown) > 1 else ""
            raise UsageError(
                f"{raster}: code {code} ({present[code]} pixels{more}) is not in the legend {self.path}; "
                "add it under 'classes' or 'ignore' in a legend of your own: --classes FILE"
            )
        kept = tuple(entry for entry in self.classes if keep_all or any(code in present for code in entry.sources))
        if not kept:
            raise UsageError(f"{raster}: holds no class of the legend {self.path} here; found codes: {sorted(present)}")
        if len(kept) > IGNORE_INDEX:
            raise UsageError(
                f"{self.path}: {len(kept)} classes; at most {IGNORE_INDEX} fit, as index 255 means 'ignore'"
            )
        return ClassMap(kept)


@dataclass(frozen=True)
class ClassMap:
    """The classes of one data set; a class's place is its dense index."""

    classes: tuple[LegendClass, ...]

    def table(self) -> npt.NDArray[np.uint8]:
        """Dense index of every code from 0 to 65535, IGNORE_INDEX for codes of no class."""
        return _table(self.classes)

    def indices(self, codes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        """Dense indices of an array of codes, any shape; negative codes and codes of no class become IGNORE_INDEX.

        Raises:
            FailedError: a code above 65535.
        """
        if codes.size and int(codes.max()) > MAX_CODE:
            raise FailedError(f"class code {int(codes.max())} is above {MAX_CODE}, the highest that is understood")
        return np.where(codes < 0, np.uint8(IGNORE_INDEX), self.table()[np.maximum(codes, 0)])

    def to_json(self) -> list[dict[str, Any]]:
        """The manifest's `classes`; `from` is there for classes that gather other codes than their own."""
        entries: list[dict[str, Any]] = []
        for index, entry in enumerate(self.classes):
            own = {"index": index, "code": entry.code, "name": entry.name, "color": list(entry.color)}
            entries.append(own if entry.sources == (entry.code,) else {**own, "from": list(entry.sources)})
        return entries

    @classmethod
    def from_json(cls, entries: Sequence[Mapping[str, Any]]) -> ClassMap:
        """The classes of a manifest."""
        return cls(
            tuple(
                LegendClass(e["code"], e["name"], _triple(e["color"]), tuple(e.get("from", [e["code"]])))
                for e in entries
            )
        )


@lru_cache(maxsize=8)
def _table(classes: tuple[LegendClass, ...]) -> npt.NDArray[np.uint8]:
    table = np.full(MAX_CODE + 1, IGNORE_INDEX, np.uint8)
    for index, entry in enumerate(classes):
        table[list(entry.sources)] = index
    table.flags.writeable = False
    return table


def load_legend(name: str, classes_file: str | None = None) -> Legend:
    """The legend of that name (configs/legends, or a YAML file), or the one of `classes_file` on top of it.

    A classes file is a legend itself. It inherits the codes that `name` ignores, unless it gives them a class.

    Raises:
        UsageError: no such legend, not a legend, an unknown key, a code in two places; says in which file.
    """
    legend = read_legend(find_config("legends", name))
    if classes_file is None:
        return legend
    merged = read_legend(Path(classes_file))
    taken = {code for entry in merged.classes for code in entry.sources}
    inherited = {code: text for code, text in legend.ignored.items() if code not in taken}
    return replace(merged, ignored={**inherited, **merged.ignored})


def read_legend(path: Path) -> Legend:
    """A legend file, checked.

    Raises:
        UsageError: as for load_legend.
    """
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(body, dict) or not isinstance(body.get("classes"), list) or not body["classes"]:
        raise UsageError(f"{path}: not a legend; it needs a list 'classes' of entries {{code, name, color}}")
    _check_keys(path, "a legend", body, _LEGEND_KEYS)
    classes = tuple(_read_class(path, number, entry) for number, entry in enumerate(body["classes"], start=1))
    ignored = _read_ignored(path, body.get("ignore") or [])
    seen: dict[int, str] = {}
    for owner, code in [(entry.name, c) for entry in classes for c in entry.sources] + [("ignore", c) for c in ignored]:
        if code in seen:
            raise UsageError(
                f"{path}: code {code} is in {seen[code]!r} and in {owner!r}; a code belongs to one of them"
            )
        seen[code] = owner
    for attribute in ("code", "name"):
        values = [getattr(entry, attribute) for entry in classes]
        for value in values:
            if values.count(value) > 1:
                raise UsageError(f"{path}: two classes have the {attribute} {value!r}")
    return Legend(path, classes, ignored)


def _read_class(path: Path, number: int, entry: object) -> LegendClass:
    where = f"class number {number}"
    if not isinstance(entry, dict):
        raise UsageError(f"{path}: {where} is {entry!r}; write {{code: 11, name: Water, color: '#466b9f'}}")
    _check_keys(path, where, entry, _CLASS_KEYS)
    name, color, sources = entry.get("name"), entry.get("color"), entry.get("from")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{path}: {where} needs a 'name'")
    code = _code(path, where, entry.get("code"))
    if sources is not None and (not isinstance(sources, list) or not sources):
        raise UsageError(f"{path}: 'from' of {where} is {sources!r}; write a list of codes, such as [11, 12]")
    codes = tuple(_code(path, f"'from' of {where}", source) for source in sources) if sources else (code,)
    return LegendClass(code, name, _color(path, where, color), codes, entry.get("only"))


def _read_ignored(path: Path, entries: object) -> dict[int, str]:
    if not isinstance(entries, list):
        raise UsageError(f"{path}: 'ignore' is {entries!r}; write a list of codes, such as [0, 250]")
    ignored: dict[int, str] = {}
    for entry in entries:
        named = isinstance(entry, dict)
        if named:
            _check_keys(path, "an entry of 'ignore'", entry, ("code", "name"))
        code = _code(path, "an entry of 'ignore'", entry.get("code") if named else entry)
        ignored[code] = str(entry.get("name", "")) if named else ""
    return ignored


def _check_keys(path: Path, where: str, entry: Mapping[Any, Any], allowed: Sequence[str]) -> None:
    for key in entry:
        if key not in allowed:
            near = suggestion(str(key), allowed)
            raise UsageError(f"{path}: {where} has an unknown key {key!r}; allowed: {', '.join(allowed)}.{near}")


def _code(path: Path, where: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_CODE:
        raise UsageError(f"{path}: code {value!r} in {where}; codes are whole numbers from 0 to {MAX_CODE}")
    return value


def _color(path: Path, where: str, value: object) -> tuple[int, int, int]:
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
    if (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in value)
    ):
        return _triple(value)
    raise UsageError(f"{path}: color {value!r} of {where}; write '#466b9f' (in quotes) or [70, 107, 159]")


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = values
    return red, green, blue
