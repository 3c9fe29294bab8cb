"""Labelled pictures as lists: a folder for each class, or CSV files with a path and a label in each row."""

from __future__ import annotations

import csv
import gzip
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hpcdl.errors import UsageError, suggestion
from hpcdl.prep.pictures.files import SUFFIXES, find_pictures, folders_in, warn

# Names of splits as data sets ship them; t10k is MNIST's.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "t10k"), "test"),
}
_PATH_COLUMNS = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
    "picture",
)
_LABEL_COLUMNS = ("label", "class", "category", "target", "y", "class_name", "label_name")
_SPLIT_COLUMNS = ("split", "subset")


class Sample(NamedTuple):
    """A labelled picture: a file, or row `row` of an array file (then row is 0 or more); `label` as the input has it."""

    path: Path
    label: str | int
    split: str | None
    row: int = -1
    member: str | None = None


@dataclass
class Listing:
    """Samples, the files besides pictures that they were read from as (role, path), and rows left out, by reason."""

    samples: list[Sample] = field(default_factory=list)
    sources: list[tuple[str, Path]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Columns:
    """How CSV files are read: names of columns (None: found by their usual names), where paths start, how they end."""

    path: str | None
    label: str | None
    split: str | None
    root: str | None
    ending: str
    drop_damaged: bool
    use_split: bool = True


def split_in(name: str) -> str | None:
    """The split that a file's or array's name tells, such as x_train or t10k-images-idx3-ubyte.gz."""
    found = {SPLIT_NAMES[word] for word in re.split(r"[^a-z0-9]+", name.lower()) if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def list_folders(folders: Sequence[Path]) -> Listing:
    """Pictures in a folder for each class, these in folders train, val and test or not.

    Raises:
        UsageError: no class folder, or pictures that lie in none.
    """
    listing = Listing()
    for folder in folders:
        inside = folders_in(folder)
        splits = [sub for sub in inside if sub.name.lower() in SPLIT_NAMES]
        if any(SPLIT_NAMES[sub.name.lower()] == "train" for sub in splits):
            _refuse_stray(folder)
            warn(f"{sub}: lies beside the folder of the train split; left aside" for sub in inside if sub not in splits)
            for sub in splits:
                _list_classes(listing, sub, SPLIT_NAMES[sub.name.lower()])
        else:
            # Several folders may be the splits themselves.
            _list_classes(listing, folder, SPLIT_NAMES.get(folder.resolve().name.lower()) if len(folders) > 1 else None)
    return listing


def _list_classes(listing: Listing, folder: Path, split: str | None) -> None:
    classes = folders_in(folder)
    if not classes:
        raise UsageError(f"{folder}: has no folders; images need a folder for each class, or a CSV file with labels")
    _refuse_stray(folder)
    for sub in classes:
        try:
            files = find_pictures([str(sub)], "--images")
        except UsageError:
            warn([f"{sub}: holds no picture; no class"])
            continue
        label = unicodedata.normalize("NFC", sub.name)
        listing.samples += [Sample(file.path, label, split) for file in files]


def _refuse_stray(folder: Path) -> None:
    stray = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    stray = [path for path in stray if not path.name.startswith(".")]
    if stray:
        raise UsageError(
            f"{stray[0]}: lies in no class folder ({len(stray)} such pictures in {folder}); give the folder whose folders "
            "are the classes, or a CSV file with labels"
        )


def list_csv(paths: Sequence[Path], columns: Columns) -> Listing:
    """Pictures named in CSV files (comma, semicolon or tab; UTF-8, also with BOM, also gzip), paths relative to the file.

    Without a split column a file called train.csv, val.csv or test.csv is that split.

    Raises:
        UsageError: not readable, a column is missing, a row is incomplete, a picture is missing or listed with two labels.
    """
    listing = Listing()
    seen: dict[Path, tuple[str, str | None, str]] = {}
    dropped: list[str] = []
    for path in paths:
        listing.sources.append(("list", path))
        rows = _read_rows(path)
        if len(rows) < 2:
            raise UsageError(f"{path}: holds no rows below its header")
        header = [name.strip() for name in rows[0][1]]
        place = _needed(path, header, columns.path, "--path-column", _PATH_COLUMNS)
        label_at = _needed(path, header, columns.label, "--label-column", _LABEL_COLUMNS)
        split_at = _column(path, header, columns.split, _SPLIT_COLUMNS) if columns.use_split else None
        of_file = split_in(path.name.split(".")[0]) if len(paths) > 1 else None
        for line, row in rows[1:]:
            where = f"{path}: line {line}"
            if len(row) != len(header):
                raise UsageError(
                    f"{where}: has {len(row)} cells, but the header has {len(header)}; quote cells with commas"
                )
            text, label = row[place].strip(), unicodedata.normalize("NFC", row[label_at].strip())
            split = of_file if split_at is None else SPLIT_NAMES.get(row[split_at].strip().lower())
            if split_at is not None and split is None:
                raise UsageError(f"{where}: the split is {row[split_at]!r}; known: {', '.join(SPLIT_NAMES)}")
            file = None if not text else _locate(path, text, columns)
            if not text or not label or file is None:
                what = "has no path" if not text else "has no label" if not label else f"{text}: no such file"
                if not columns.drop_damaged:
                    raise UsageError(f"{where}: {what}; or leave such rows out with --damaged drop")
                dropped.append(f"{where}: {what}; left out")
                continue
            earlier = seen.setdefault(file, (label, split, where))
            if earlier[2] != where:
                if earlier[:2] != (label, split):
                    raise UsageError(
                        f"{where}: {text} was listed before ({earlier[2]}) with another label or split; keep one of the rows"
                    )
                dropped.append(f"{where}: {text} was listed before ({earlier[2]}); left out")
                continue
            listing.samples.append(Sample(file, label, split))
    warn(dropped)
    if dropped:
        listing.dropped["num_left_out"] = len(dropped)
    return listing


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each row that is not blank; the first one is the header."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}: line {line}: is not UTF-8; convert the file (iconv -f latin1 -t utf-8)") from None
    except (OSError, EOFError) as error:
        raise UsageError(f"{path}: not readable: {error}") from None
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num}: not readable as CSV: {error}") from None
    return rows


def _column(path: Path, header: Sequence[str], name: str | None, usual: Sequence[str]) -> int | None:
    """The place of a column in the header; None when it has no name and none of the usual ones is there."""
    lower = [text.lower() for text in header]
    if name is None:
        return next((lower.index(text) for text in usual if text in lower), None)
    if name not in header and name.lower() not in lower:
        raise UsageError(f"{path}: has no column {name!r}; columns: {', '.join(header)}.{suggestion(name, header)}")
    return header.index(name) if name in header else lower.index(name.lower())


def _needed(path: Path, header: Sequence[str], name: str | None, option: str, usual: Sequence[str]) -> int:
    place = _column(path, header, name, usual)
    if place is None:
        raise UsageError(f"{path}: none of its columns has a usual name; give {option}; columns: {', '.join(header)}")
    return place


def _locate(path: Path, text: str, columns: Columns) -> Path | None:
    """The file that a row names; Windows' separators and both Unicode forms of accents are understood."""
    root = path.parent if columns.root is None else Path(columns.root)
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    for name in (text, text.replace("\\", "/"), *forms):
        file = root / (name + columns.ending)
        if file.is_file():
            return file
    return None
