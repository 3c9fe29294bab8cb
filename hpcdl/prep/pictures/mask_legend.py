"""Which classes masks have: as the user names them, or as found in all masks."""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep.pictures.files import warn
from hpcdl.prep.pictures.mask_classes import Color, MaskClass, MaskClasses, is_colored, mask_values, read_mask
from hpcdl.prep.pictures.reading import picture_form
from hpcdl.raster.legend import IGNORE_INDEX, read_legend

Array = npt.NDArray[Any]

# More different values than this in masks without named classes are taken for blurred or JPEG masks.
_MOST_FOUND = 64


def choose_classes(
    masks: Sequence[Path],
    where: str,
    classes: Sequence[str],
    ignore: Sequence[str],
    threshold: int | None,
    ignore_unknown: bool,
    drop_damaged: bool,
) -> tuple[MaskClasses, set[Path]]:
    """The classes, after a look at all masks, and the masks that cannot be read.

    Args:
        masks: the mask files.
        where: names them in messages.
        classes: the setting of that name, see `given_classes`.
        ignore: values and colours that become 255.
        threshold: two classes, parted here.
        ignore_unknown: values of no class are ignored, not refused.
        drop_damaged: masks that cannot be read are left out, not refused.

    Raises:
        UsageError: settings that do not fit the masks, values of no class, or a damaged mask.
    """
    ignored = parse_ignored(ignore)
    given, also_ignored, colors = given_classes(classes) if classes else ((), frozenset[int](), None)
    values: Counter[int] = Counter()
    hues: Counter[int] = Counter()
    unread: set[Path] = set()
    colored = bool(colors) or any(text.startswith("#") for text in ignore)
    for path in masks:
        try:
            by_value, by_color = _look_at(path)
        except FailedError as error:
            if not drop_damaged:
                raise UsageError(f"{error}; or leave such files out with --damaged drop") from None
            unread.add(path)
            warn([f"{error}; left out"])
            continue
        if not by_value:
            if colors is False or threshold is not None:
                raise UsageError(f"{path}: is coloured; give its classes as --classes '#RRGGBB:NAME'")
            colored = True
        values += by_value
        hues += by_color
    if not hues and not values:
        raise UsageError(f"{where}: no mask can be read")
    if threshold is not None:
        names = ("background", "foreground")
        two = tuple(MaskClass(index, name, palette(index, 2), (index,)) for index, name in enumerate(names))
        if not min(values) < threshold <= max(values):
            raise UsageError(
                f"{where}: the masks hold values from {min(values)} to {max(values)}; --threshold {threshold} does "
                "not part them"
            )
        return MaskClasses(two, threshold=threshold), unread
    counts = hues if colored else values
    if not given:
        given = found_classes(counts, colored, ignored, where)
    elif colored and colors is None:
        given, also_ignored = by_colors(given), frozenset()
    chosen = MaskClasses(given, colored, None, ignored | also_ignored, ignore_unknown)
    known = {value for entry in given for value in entry.values} | chosen.ignored
    if (
        unknown := {value: number for value, number in counts.items() if value not in known}
    ) and not chosen.ignore_unknown:
        raise UsageError(chosen.refusal(where, unknown))
    return chosen, unread


def _look_at(path: Path) -> tuple[Counter[int], Counter[int]]:
    """How often each value and each colour occurs in a file; a palette has both."""
    mask_CHW = read_mask(path, False)
    by_value, by_color = count_values(mask_CHW)
    if len(mask_CHW) == 1 and picture_form(path, "keep").channels >= 3:
        by_color = count_values(read_mask(path, True))[1]
    return by_value, by_color


def count_values(mask_CHW: Array) -> tuple[Counter[int], Counter[int]]:
    """How often each value (nothing for a coloured mask) and each colour occurs."""
    by_value: Counter[int] = Counter()
    by_color: Counter[int] = Counter()
    if is_colored(mask_CHW):
        colors, numbers = np.unique(mask_values(mask_CHW, True, "mask"), return_counts=True)
        by_color.update(dict(zip(colors.tolist(), numbers.tolist(), strict=True)))
    else:
        counts = np.bincount(mask_CHW[0].ravel())
        by_value.update({value: int(counts[value]) for value in np.flatnonzero(counts).tolist()})
        by_color.update({value * 0x010101: number for value, number in by_value.items() if value < 256})
    return by_value, by_color


def parse_ignored(texts: Sequence[str]) -> frozenset[int]:
    """The values of --ignore: numbers or #RRGGBB.

    Raises:
        UsageError: something else.
    """
    return frozenset(_value(text, "--ignore") for text in texts)


def given_classes(texts: Sequence[str]) -> tuple[tuple[MaskClass, ...], frozenset[int], bool | None]:
    """The classes of --classes: a YAML legend, or VALUE:NAME and #RRGGBB:NAME entries.

    Returns:
        Classes, values to ignore, and whether they are colours (None: a legend has both).

    Raises:
        UsageError: not of this form, or a value, a colour or a name twice.
    """
    if len(texts) == 1 and texts[0].lower().endswith((".yaml", ".yml")):
        legend = read_legend(Path(texts[0]))
        classes = tuple(MaskClass(entry.code, entry.name, entry.color, entry.sources) for entry in legend.classes)
        return _checked(classes), frozenset(legend.ignored), None
    colors = [text.startswith("#") for text in texts]
    if any(colors) != all(colors):
        raise UsageError("--classes: values and colours are mixed; give all classes by value, or all as '#RRGGBB:NAME'")
    classes_list = []
    for index, text in enumerate(texts):
        value_text, colon, name = text.partition(":")
        if not colon or not name.strip():
            raise UsageError(
                f"--classes {text!r}: write VALUE:NAME, such as 0:background, '#RRGGBB:NAME', or a YAML file"
            )
        value = _value(value_text, "--classes")
        color = _rgb(value) if colors[index] else palette(index, len(texts))
        classes_list.append(MaskClass(index if colors[index] else value, name.strip(), color, (value,)))
    return _checked(tuple(classes_list)), frozenset(), all(colors)


def by_colors(classes: Sequence[MaskClass]) -> tuple[MaskClass, ...]:
    """The classes of a legend, matched by their colours."""
    matched = tuple(
        MaskClass(entry.code, entry.name, entry.color, (entry.color[0] << 16 | entry.color[1] << 8 | entry.color[2],))
        for entry in classes
    )
    return _checked(matched)


def found_classes(
    counts: Mapping[int, int], by_color: bool, ignored: frozenset[int], where: str
) -> tuple[MaskClass, ...]:
    """The classes of masks whose values nobody named: two values are background and foreground, more are named by value.

    Raises:
        UsageError: one value only, very many (a blurred or JPEG mask), or 255 beside others, which often means "ignore".
    """
    values = sorted(set(counts) - ignored)
    show = MaskClasses((), by_color).show
    if len(values) < 2:
        raise UsageError(
            f"{where}: the masks hold {', '.join(map(show, values)) or 'nothing'} only; two classes are needed"
        )
    if len(values) > _MOST_FOUND:
        raise UsageError(
            f"{where}: the masks hold {len(values)} different values, from {show(values[0])} to {show(values[-1])}: blurred, "
            "or saved as JPEG? Cut them with --threshold 128, or name the classes with --classes"
        )
    if len(values) == 2:
        names: list[str] = ["background", "foreground"]
    else:
        if not by_color and 255 in values:
            raise UsageError(
                f"{where}: the masks hold 255 beside {len(values) - 1} other values; say --ignore 255 if it means 'no label', "
                "or name the classes with --classes"
            )
        names = [show(value) if by_color else f"value {value}" for value in values]
    return tuple(
        MaskClass(
            index if by_color else value,
            names[index],
            _rgb(value) if by_color else palette(index, len(values)),
            (value,),
        )
        for index, value in enumerate(values)
    )


def palette(index: int, count: int) -> Color:
    """A colour for a class without one: black for the first, white for the second of two, else spread over the hues."""
    if index == 0:
        return 0, 0, 0
    if count == 2:
        return 255, 255, 255
    # Steps of the golden ratio keep neighbouring classes far apart in hue.
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.85 if index % 2 else 0.55, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _value(text: str, option: str) -> int:
    text = text.strip()
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return int(text[1:], 16)
    if text.isdecimal() and int(text) <= 65535:
        return int(text)
    raise UsageError(f"{option} {text!r}: a value is a whole number from 0 to 65535, or a colour #RRGGBB")


def _rgb(value: int) -> Color:
    return value >> 16 & 255, value >> 8 & 255, value & 255


def _checked(classes: tuple[MaskClass, ...]) -> tuple[MaskClass, ...]:
    if not 2 <= len(classes) <= IGNORE_INDEX:
        raise UsageError(f"--classes: {len(classes)} classes; 2 to {IGNORE_INDEX} are possible, as 255 means 'ignore'")
    for what, items in (
        ("name", [entry.name for entry in classes]),
        ("value or colour", [value for entry in classes for value in entry.values]),
    ):
        if doubled := [item for item, number in Counter(items).items() if number > 1]:
            raise UsageError(f"--classes: two classes have the {what} {doubled[0]!r}")
    return classes
