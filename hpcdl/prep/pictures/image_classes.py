"""The classes of labelled pictures: which index each label of the input gets, and its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcdl.errors import UsageError, suggestion

Label = str | int


@dataclass(frozen=True)
class Classes:
    """Names by index, and the index of each label as the input has it."""

    names: tuple[str, ...]
    indices: Mapping[Label, int]

    def index(self, label: Label) -> int:
        """The dense index of a label."""
        return self.indices[label]

    def to_json(self) -> list[dict[str, Any]]:
        """The manifest's `classes`; `code` is the input's label where that is a number and not the name."""
        codes = {index: label for label, index in self.indices.items()}
        entries: list[dict[str, Any]] = []
        for index, name in enumerate(self.names):
            code = codes.get(index)
            own = {"index": index, "name": name}
            entries.append(
                {**own, "code": int(code)} if code is not None and _is_number(code) and str(code) != name else own
            )
        return entries


def find_classes(labels: Sequence[Label], names: Sequence[str]) -> Classes:
    """The classes of a data set.

    Labels that are numbers are ordered as numbers, others as texts. Names given for numbers belong to 0, 1, 2, …, or, where
    other numbers occur, to the numbers in ascending order; names given for texts are these texts in the order wanted.

    Raises:
        UsageError: fewer than two classes, or names that do not fit the labels.
    """
    present = set(labels)
    doubled = sorted({name for name in names if list(names).count(name) > 1})
    if doubled:
        raise UsageError(f"--class-names: {doubled[0]!r} is given twice")
    if names and {str(label) for label in present} <= set(names):
        place = {name: index for index, name in enumerate(names)}
        return _checked(Classes(tuple(names), {label: place[str(label)] for label in present}))
    if all(_is_number(label) for label in present):
        ordered: list[Label] = sorted(present, key=int)
        if not names:
            return _checked(Classes(tuple(str(label) for label in ordered), {x: n for n, x in enumerate(ordered)}))
        if int(ordered[0]) >= 0 and int(ordered[-1]) < len(names):
            return _checked(Classes(tuple(names), {label: int(label) for label in present}))
        if len(names) == len(ordered):
            return _checked(Classes(tuple(names), {label: index for index, label in enumerate(ordered)}))
        raise UsageError(
            f"--class-names: {len(names)} names for {len(ordered)} classes, numbered {ordered[0]} to {ordered[-1]}"
        )
    ordered = sorted(present, key=str)
    if names:
        odd = next(str(label) for label in ordered if str(label) not in names)
        raise UsageError(
            f"--class-names: the input has the class {odd!r}, which is not among them.{suggestion(odd, names)}"
        )
    return _checked(
        Classes(tuple(str(label) for label in ordered), {label: index for index, label in enumerate(ordered)})
    )


def _is_number(label: Label) -> bool:
    return isinstance(label, int) or (label.removeprefix("-").isdecimal() and label.isascii())


def _checked(classes: Classes) -> Classes:
    if len(classes.indices) < 2:
        only = next(iter(classes.names))
        raise UsageError(f"--images: all samples have one class, {only!r}; classification needs two or more")
    return classes
