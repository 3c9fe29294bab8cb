"""The pictures of pairs: high and low resolution, two domains paired by name, or two domains without pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hpcdl.errors import UsageError
from hpcdl.prep.pictures.files import NameRule, PictureFile, digests_of, find_pictures, forms_of, pair_up
from hpcdl.prep.pictures.pair_places import Place, place_of, tags_of
from hpcdl.prep.pictures.pair_samples import Picture
from hpcdl.prep.pictures.reading import Form
from hpcdl.prep.plan import Source


class Pair(NamedTuple):
    """Two pictures of the same thing; without a second one, it is made from the first."""

    first: Picture
    second: Picture | None


Found = tuple[list[Pair], tuple[Source, ...], dict[str, int]]


def find_scales(settings: Any) -> Found:
    """The pictures of --high and --low.

    Raises:
        UsageError: nothing found, no partner, damaged, or sizes that do not fit the factor.
    """
    highs = find_pictures(settings.high, "--high")
    if not settings.low:
        pictures, source, left_out = _look_at(settings, highs, "high")
        return [Pair(picture, None) for picture in _tagged(pictures)], (source,), left_out
    pairs, sources, left_out = _look_at_pairs(settings, highs, find_pictures(settings.low, "--low"), ("high", "low"))
    for high, low in pairs:
        _check_alike(high, low)
        if (low.form.height, low.form.width) != (
            high.form.height // settings.factor,
            high.form.width // settings.factor,
        ):
            raise UsageError(
                f"{low.path}: is {low.form.height} × {low.form.width} pixels, and {high.path} {high.form.height} × "
                f"{high.form.width}: not {settings.factor} times as many; the factor looks like "
                f"{high.form.height / low.form.height:.4g}: give it with --factor, if it is whole"
            )
    return [Pair(first, second) for first, second in pairs], sources, left_out


def find_pairs(settings: Any, same_size: bool) -> Found:
    """The pictures of --a and --b, paired by name; of one size, where asked for.

    Raises:
        UsageError: nothing found, no partner, damaged, or of different sizes.
    """
    lefts, rights = find_pictures(settings.a, "--a"), find_pictures(settings.b, "--b")
    pairs, sources, left_out = _look_at_pairs(settings, lefts, rights, ("a", "b"))
    for a, b in pairs:
        if same_size and (a.form.height, a.form.width) != (b.form.height, b.form.width):
            raise UsageError(
                f"{b.path}: is {b.form.height} × {b.form.width} pixels, but {a.path} is {a.form.height} × {a.form.width}; "
                "pairs must be alike in size; --size-px resizes both"
            )
    return [Pair(first, second) for first, second in pairs], sources, left_out


def find_domains(settings: Any) -> tuple[list[list[Picture]], tuple[Source, ...], dict[str, int]]:
    """The pictures of --a and of --b. Those that may show one place (by name and size, or on the map) share a tag.

    Raises:
        UsageError: nothing found, damaged, or one picture in both domains.
    """
    files = [find_pictures(settings.a, "--a"), find_pictures(settings.b, "--b")]
    if both := {file.path.absolute() for file in files[0]} & {file.path.absolute() for file in files[1]}:
        raise UsageError(f"{min(both)}: is found by --a and by --b; give folders or globs that part them")
    looked = [_look_at(settings, found, name) for found, name in zip(files, "ab", strict=True)]
    rule = NameRule("--a", "--pair", settings.pair_strip, settings.pair_name)
    keys: list[list[tuple[str, int, int]]] = []
    for (pictures, _, _), found in zip(looked, files, strict=True):
        names = {file.path: rule.key(file) for file in found}
        keys.append([(names[picture.path], picture.form.height, picture.form.width) for picture in pictures])
    shared = set(keys[0]) & set(keys[1])
    pictures = [
        replace(picture, tags=(*picture.tags, f"name {key[0]}")) if key in shared else picture
        for (own, _, _), names in zip(looked, keys, strict=True)
        for picture, key in zip(own, names, strict=True)
    ]
    tagged = _tagged(pictures)
    first = len(looked[0][0])
    left_out: Counter[str] = Counter()
    for _, _, counts in looked:
        left_out.update(counts)
    return [tagged[:first], tagged[first:]], tuple(source for _, source, _ in looked), dict(left_out)


def _look_at(settings: Any, files: Sequence[PictureFile], role: str) -> tuple[list[Picture], Source, dict[str, int]]:
    """The pictures that are usable, and how many are not."""
    forms, damaged = forms_of([file.path for file in files], settings.mode, settings.damaged == "drop")
    usable = [file.path for file in files if file.path in forms]
    if not usable:
        raise UsageError(f"--{role}: every picture is damaged")
    digests, source = digests_of(role, usable)
    pictures = [_picture(path, forms[path], digest) for path, digest in zip(usable, digests, strict=True)]
    return pictures, source, {"num_damaged": len(damaged)} if damaged else {}


def _look_at_pairs(
    settings: Any, lefts: Sequence[PictureFile], rights: Sequence[PictureFile], roles: tuple[str, str]
) -> tuple[list[tuple[Picture, Picture]], tuple[Source, ...], dict[str, int]]:
    rules = [NameRule(f"--{role}", "--pair", settings.pair_strip, settings.pair_name) for role in roles]
    found, num_unpaired = pair_up(lefts, rights, rules[0], rules[1], settings.unpaired == "drop")
    drop = settings.damaged == "drop"
    sides = [[left.path for _, left, _ in found], [right.path for *_, right in found]]
    forms = [forms_of(paths, settings.mode, drop)[0] for paths in sides]
    usable = [n for n, paths in enumerate(zip(*sides, strict=True)) if paths[0] in forms[0] and paths[1] in forms[1]]
    if not usable:
        raise UsageError(f"--{roles[0]}: no pair is left; all are damaged")
    pictures, sources = [], []
    for side, role in enumerate(roles):
        paths = [sides[side][n] for n in usable]
        digests, source = digests_of(role, paths)
        sources.append(source)
        pictures.append(
            [_picture(path, forms[side][path], digest) for path, digest in zip(paths, digests, strict=True)]
        )
    # A copy of either picture keeps pairs together. "partner" sorts last, so that the first picture names the group.
    firsts = [replace(a, tags=(*a.tags, *(f"partner {tag}" for tag in b.tags))) for a, b in zip(*pictures, strict=True)]
    left_out = {"num_unpaired": num_unpaired, "num_damaged": len(found) - len(usable)}
    counts = {name: number for name, number in left_out.items() if number}
    return list(zip(_tagged(firsts), pictures[1], strict=True)), tuple(sources), counts


def _picture(path: Path, form: Form, digest: str) -> Picture:
    place: Place | None = place_of(path)
    return Picture(path, form, digest, place, (f"content {digest}",))


def _tagged(pictures: Sequence[Picture]) -> list[Picture]:
    """With tags for overlaps on the map."""
    more = tags_of([picture.place for picture in pictures])
    return [replace(picture, tags=(*picture.tags, *tags)) for picture, tags in zip(pictures, more, strict=True)]


def _check_alike(high: Picture, low: Picture) -> None:
    if (high.form.channels, high.form.dtype) != (low.form.channels, low.form.dtype):
        raise UsageError(
            f"{low.path}: has {low.form.channels} channel(s) of {low.form.dtype}, but {high.path} has {high.form.channels} of "
            f"{high.form.dtype}; give --mode gray or --mode rgb"
        )
