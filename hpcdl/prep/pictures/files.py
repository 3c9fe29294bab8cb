"""Which picture files a folder, a file name or a glob stands for, which of two such lists belong together, and their digests."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep.pictures.reading import Form, picture_form
from hpcdl.prep.plan import Source, describe_sources
from hpcdl.raster.scene import natural_key

# fmt: off
SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".webp", ".pgm", ".ppm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".tga", ".pcx", ".sgi", ".ras",
})
# fmt: on
# What operating systems leave in folders.
_LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini", "Desktop.ini")
_MOST_LINES = 10


@dataclass(frozen=True)
class PictureFile:
    """A file, its path below the folder (or the fixed part of the glob) that it was found by, with "/", and which one it was."""

    path: Path
    below: str
    pattern: int = 0

    @property
    def name(self) -> str:
        """The file's name without its ending, in one Unicode form (macOS writes another one than Linux)."""
        return unicodedata.normalize("NFC", Path(self.below).stem)

    @property
    def folder(self) -> str:
        """The folder below the one that was given, "" for that one itself."""
        parent = Path(self.below).parent.as_posix()
        return "" if parent == "." else unicodedata.normalize("NFC", parent)


@dataclass(frozen=True)
class NameRule:
    """How the name of a pair is read from a file's name.

    Attributes:
        option: what the files were given by, such as "--masks".
        stem: how the options for the names begin: "--mask" for --mask-strip and --mask-name.
        strip: texts to take off the start or the end of the name, such as "_mask".
        regex: searched in the name; its groups (without any, all of the match) are the pair's name.
    """

    option: str
    stem: str
    strip: tuple[str, ...] = ()
    regex: str | None = None

    def key(self, file: PictureFile) -> str:
        """The pair's name.

        Raises:
            UsageError: the regular expression does not match.
        """
        name = file.name
        for text in self.strip:
            name = name.removesuffix(text) if name.endswith(text) else name.removeprefix(text)
        return name if self.regex is None else matched(self.regex, name, file.path, f"{self.stem}-name")


def find_pictures(patterns: Sequence[str], option: str) -> list[PictureFile]:
    """The pictures of folders (searched to any depth), files and globs, as given, each in natural order (b2 before b10).

    Other files in a folder are left aside; a warning names some. A file named by itself is taken whatever its ending.

    Raises:
        UsageError: nothing is there, no picture among it, or a file is given twice.
    """
    found: dict[Path, PictureFile] = {}
    others: list[Path] = []
    for number, pattern in enumerate(patterns):
        roots, base = _expand(pattern, option)
        for root in roots:
            inside = _walk(root) if root.is_dir() else [root]
            # A single folder is its own base, so that its name is no part of the names.
            start = root if root.is_dir() and len(roots) == 1 else base
            for path in inside:
                if root.is_dir() and path.suffix.lower() not in SUFFIXES:
                    others.append(path)
                    continue
                if path.absolute() in found:
                    raise UsageError(f"{path}: is given twice by {option}; name each file once (globs may overlap)")
                found[path.absolute()] = PictureFile(path, path.relative_to(start).as_posix(), number)
    if not found:
        raise UsageError(
            f"{option} {' '.join(patterns)}: holds no picture; endings that count: {', '.join(sorted(SUFFIXES))}"
        )
    warn(f"{path}: no picture by its ending; left aside" for path in others)
    return sorted(found.values(), key=lambda file: (file.pattern, natural_key(file.below), file.below))


def expand_paths(patterns: Sequence[str], option: str) -> list[Path]:
    """The files and folders that names and globs stand for, each once.

    Raises:
        UsageError: nothing is there.
    """
    return list(dict.fromkeys(path for pattern in patterns for path in _expand(pattern, option)[0]))


def pair_up(
    lefts: Sequence[PictureFile], rights: Sequence[PictureFile], left_rule: NameRule, right_rule: NameRule, drop: bool
) -> tuple[list[tuple[str, PictureFile, PictureFile]], int]:
    """The pairs of two lists by name, in the order of the left one, and how many files were left over.

    Names are compared without folders; where they are not unique then, with them, and the first folder or glob of the left
    belongs to the first one of the right, the second to the second, ….

    Args:
        lefts: files on one side.
        rights: files on the other side.
        left_rule: how their names are read.
        right_rule: the same for the other side.
        drop: leave files without a partner out (a warning names some) instead of refusing.

    Raises:
        UsageError: a file on both sides, two files of one name on one side, no pair at all, or files without a partner.
    """
    if both := {file.path.absolute() for file in lefts} & {file.path.absolute() for file in rights}:
        raise UsageError(
            f"{min(both)}: is found by {left_rule.option} and by {right_rule.option}; "
            "give globs that part them, such as '*_mask.png'"
        )
    with_folders = any(
        len({rule.key(f) for f in files}) < len(files) for rule, files in ((left_rule, lefts), (right_rule, rights))
    )
    num_patterns = [max(file.pattern for file in files) for files in (lefts, rights)]
    by_pattern = num_patterns[0] == num_patterns[1] > 0
    left, right = (
        _by_key(files, rule, with_folders, by_pattern) for files, rule in ((lefts, left_rule), (rights, right_rule))
    )
    alone = [(left_rule, right_rule, left[key].path) for key in left if key not in right]
    alone += [(right_rule, left_rule, right[key].path) for key in right if key not in left]
    if alone and (not drop or len(left.keys() & right.keys()) == 0):
        rule, other, path = alone[0]
        example = next(iter(right if rule is left_rule else left))
        raise UsageError(
            f"{path}: has no partner of the same name in {other.option} (there a name is {example!r}); {len(alone)} such "
            f"files of {len(left) + len(right)}; give {rule.stem}-strip or {other.stem}-strip the text that only one "
            "side has, such as _mask, or leave files without a partner out with --unpaired drop"
        )
    warn(f"{path}: has no partner; left out" for _, _, path in alone)
    return [(key, file, right[key]) for key, file in left.items() if key in right], len(alone)


def matched(regex: str, text: str, path: Path, option: str) -> str:
    """What the groups of a regular expression match in a text; without groups, all of the match.

    Raises:
        UsageError: it is no regular expression, or does not match.
    """
    try:
        match = re.search(regex, text)
    except re.error as error:
        raise UsageError(f"{option} {regex!r}: not a regular expression: {error}") from None
    if match is None:
        raise UsageError(f"{path}: {option} {regex!r} matches nothing in its name {text!r}")
    return "/".join(group or "" for group in match.groups()) if match.re.groups else match[0]


def forms_of(files: Iterable[Path], mode: str, drop_damaged: bool) -> tuple[dict[Path, Form], list[Path]]:
    """What each picture gives when read in that mode, from the heads of the files; and the files that are damaged.

    Raises:
        UsageError: a file is missing, damaged, or does not give the mode; unless such files are dropped.
    """
    forms: dict[Path, Form] = {}
    damaged: list[Path] = []
    messages: list[str] = []
    for path in files:
        try:
            forms[path] = picture_form(path, mode)
        except FailedError as error:
            if not drop_damaged:
                raise UsageError(f"{error}; or leave such files out with --damaged drop") from None
            damaged.append(path)
            messages.append(f"{error}; left out")
    warn(messages)
    return forms, damaged


def digests_of(role: str, paths: Sequence[Path]) -> tuple[list[str], Source]:
    """The sha256 of each file, and one entry for the manifest that stands for all of them.

    Raises:
        UsageError: a file cannot be read.
    """
    sources = describe_sources([(role, path) for path in paths])
    digests = [source.sha256 for source in sources]
    whole = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    place = os.path.commonpath([path.absolute() for path in paths])
    return digests, Source(role, place, whole, sum(source.num_bytes for source in sources))


def warn(messages: Iterable[str]) -> None:
    """Print warnings to stderr, ten at most."""
    lines = list(messages)
    for line in lines[:_MOST_LINES]:
        print(f"warning: {line}", file=sys.stderr)
    if len(lines) > _MOST_LINES:
        print(f"warning: … and {len(lines) - _MOST_LINES} more", file=sys.stderr)


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, in natural order, without hidden ones and litter."""
    inside = (path for path in folder.iterdir() if path.is_dir() and not _is_litter(path.name))
    return sorted(inside, key=lambda path: (natural_key(path.name), path.name))


def _by_key(
    files: Sequence[PictureFile], rule: NameRule, with_folders: bool, by_pattern: bool
) -> dict[str, PictureFile]:
    found: dict[str, PictureFile] = {}
    for file in files:
        key = rule.key(file)
        if with_folders:
            key = "/".join(
                [*([str(file.pattern + 1)] if by_pattern else []), *([file.folder] if file.folder else []), key]
            )
        if key in found:
            raise UsageError(
                f"{file.path}: has the same name for pairing, {key!r}, as {found[key].path}; give one file of a name to "
                f"{rule.option}, or read longer names with {rule.stem}-name REGEX"
            )
        found[key] = file
    return found


def _expand(pattern: str, option: str) -> tuple[list[Path], Path]:
    """Files and folders of a name or glob, and the folder that their names start from."""
    pattern = os.path.expanduser(pattern)  # noqa: PTH111 - it may be a glob, which is text
    if os.path.lexists(pattern):
        path = Path(pattern)
        return [path], path if path.is_dir() else path.parent
    # Path.glob takes no absolute pattern.
    hits = sorted(glob.glob(pattern, recursive=True), key=natural_key)  # noqa: PTH207
    hits = [hit for hit in hits if not _is_litter(Path(hit).name)]
    if not hits:
        what = "no file matches" if glob.has_magic(pattern) else "no such file or folder"
        raise UsageError(f"{option} {pattern}: {what} (searched from {Path.cwd()})")
    fixed: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    paths = [Path(hit) for hit in hits]
    # With ** a folder comes along with what is in it.
    if any(path.is_file() for path in paths):
        paths = [path for path in paths if not path.is_dir()]
    return paths, Path(*fixed)


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, links followed once, without hidden files and litter."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_litter(name))
        yield from (Path(root, name) for name in sorted(names) if not _is_litter(name))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in _LITTER
